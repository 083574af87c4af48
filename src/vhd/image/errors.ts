import { Errno } from "../../../ffi/errno.ts";

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

/** An image that is not what the format says: which file, which field, where, and what is in it. */
export class VhdFormatError extends Error {
  override readonly name = "VhdFormatError";
  /** The error number that commands end with: EINVAL. */
  readonly errno: number = Errno.EINVAL;
  readonly path: string;
  readonly fault: VhdFault;

  constructor(path: string, fault: VhdFault) {
    super(
      `Cannot use ${path} as a VHD image: ${fault.field} at byte ${fault.offsetBytes} ` +
        `holds ${fault.value}, which ${fault.problem}`,
    );
    this.path = path;
    this.fault = fault;
  }
}

/** A chain of images that does not hold together: a loop, a missing or a wrong parent. */
export class VhdChainError extends Error {
  override readonly name = "VhdChainError";
  /** The error number that commands end with. */
  readonly errno: number;
  /** The image whose parent is the trouble. */
  readonly path: string;
  /** What is wrong, as the end of a sentence. */
  readonly problem: string;

  constructor(path: string, errno: number, problem: string) {
    super(`Cannot follow the chain from ${path}: ${problem}`);
    this.path = path;
    this.problem = problem;
    this.errno = errno;
  }
}

/** 32 bits as a person wants to see them: `0x0000001f`. */
export function hex32(value: number): string {
  return `0x${value.toString(16).padStart(8, "0")}`;
}
