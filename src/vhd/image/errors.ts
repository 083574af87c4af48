import { Errno, SystemError } from "../../../ffi/errno.ts";

/** The fault that an error about the content of an image reports. */
export interface VhdFault {
  /** The structure and field, such as `header.tableOffset` or `bat[17]`. */
  readonly field: string;
  /** Byte offset of the field in the file. */
  readonly offsetBytes: number;
  /** The value of the field, as text. */
  readonly value: string;
  /** The problem, as the end of a sentence: `lies past the end of the file`. */
  readonly problem: string;
}

/**
 * An image that does not follow the format (EINVAL). It names the file, the field, its offset and
 * its value.
 */
export class VhdFormatError extends SystemError {
  /** `VhdFormatError`. */
  override readonly name = "VhdFormatError";
  /** The image. */
  readonly path: string;
  /** The field, its value, and the problem. */
  readonly fault: VhdFault;

  /** Makes the error for one field of the image at `path`. */
  constructor(path: string, fault: VhdFault) {
    const message = `Cannot use ${path} as a VHD image: ${fault.field} at byte ` +
      `${fault.offsetBytes} holds ${fault.value}, which ${fault.problem}`;
    super(Errno.EINVAL, message, { file: path, message });
    this.path = path;
    this.fault = fault;
  }
}

/** A chain that cannot be followed: a loop, or a missing or wrong parent. */
export class VhdChainError extends SystemError {
  /** `VhdChainError`. */
  override readonly name = "VhdChainError";
  /** The image whose parent cannot be used. */
  readonly path: string;
  /** The problem, as the end of a sentence. */
  readonly problem: string;

  /** Makes the error for the image at `path`, whose parent cannot be used. */
  constructor(path: string, errno: number, problem: string) {
    const message = `Cannot follow the chain from ${path}: ${problem}`;
    super(errno, message, { file: path, message });
    this.path = path;
    this.problem = problem;
  }
}
