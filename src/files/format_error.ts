import { Errno, SystemError } from "../../ffi/errno.ts";

/** A field of an image that does not follow its format. */
export interface FormatFault {
  /** The structure and field, such as `header.cluster_bits` or `l1[17]`. */
  readonly field: string;
  /** Byte offset of the field in the file. */
  readonly offsetBytes: number;
  /** The value of the field, as text. */
  readonly value: string;
  /** The problem, as the end of a sentence: `lies past the end of the file`. */
  readonly problem: string;
}

/**
 * An image that does not follow its format (EINVAL). It names the file, the field, its offset and its
 * value.
 */
export class ImageFormatError extends SystemError {
  /** `ImageFormatError`. */
  override readonly name = "ImageFormatError";
  /** The image. */
  readonly path: string;
  /** The field, its value, and the problem. */
  readonly fault: FormatFault;

  /**
   * Makes the error for one field of the image at `path`.
   *
   * @param kind The format's name, such as `QCOW2`.
   */
  constructor(path: string, kind: string, fault: FormatFault) {
    const message = `Cannot use ${path} as a ${kind} image: ${fault.field} at byte ` +
      `${fault.offsetBytes} holds ${fault.value}, which ${fault.problem}`;
    super(Errno.EINVAL, message, { file: path, message });
    this.path = path;
    this.fault = fault;
  }
}
