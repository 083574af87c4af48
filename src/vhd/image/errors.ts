import { Errno, SystemError } from "../../../ffi/errno.ts";

/** What an error about the content of an image points to. */
export interface VhdFault {
  /** The structure and field, such as `header.tableOffset` or `bat[17]`. */
  readonly field: string;
  /** Where the field is in the file. */
  readonly offsetBytes: number;
  /** What it holds, as text. */
  readonly value: string;
  /** What is wrong with that, as the end of a sentence: `lies past the end of the file`. */
  readonly problem: string;
}

/** An image that is not what the format says (EINVAL): which file, which field, where, what is in it. */
export class VhdFormatError extends SystemError {
  /** `VhdFormatError`. */
  override readonly name = "VhdFormatError";
  /** The image. */
  readonly path: string;
  /** The field, what it holds, and what is wrong with that. */
  readonly fault: VhdFault;

  /** Makes the error of one field of the image at `path`. */
  constructor(path: string, fault: VhdFault) {
    const message = `Cannot use ${path} as a VHD image: ${fault.field} at byte ` +
      `${fault.offsetBytes} holds ${fault.value}, which ${fault.problem}`;
    super(Errno.EINVAL, message, { file: path, message });
    this.path = path;
    this.fault = fault;
  }
}

/** A chain of images that does not hold together: a loop, a missing or a wrong parent. */
export class VhdChainError extends SystemError {
  /** `VhdChainError`. */
  override readonly name = "VhdChainError";
  /** The image whose parent is the trouble. */
  readonly path: string;
  /** What is wrong, as the end of a sentence. */
  readonly problem: string;

  /** Makes the error of the image at `path`, whose parent is the trouble. */
  constructor(path: string, errno: number, problem: string) {
    const message = `Cannot follow the chain from ${path}: ${problem}`;
    super(errno, message, { file: path, message });
    this.path = path;
    this.problem = problem;
  }
}
