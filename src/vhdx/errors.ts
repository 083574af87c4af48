import { Errno, SystemError } from "../../ffi/errno.ts";
import { type FormatFault, ImageFormatError } from "../files/format_error.ts";

/** The error for a field of an image. */
export function vhdxFault(path: string, fault: FormatFault): ImageFormatError {
  return new ImageFormatError(path, "VHDX", fault);
}

/** The error for an image that has something which is required and not known here. */
export function vhdxUnknown(path: string, what: string): SystemError {
  return new SystemError(Errno.EOPNOTSUPP, `Cannot open ${path}: it requires ${what}`);
}
