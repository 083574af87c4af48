import { Errno, messageOf } from "../../../ffi/errno.ts";
import { resolveParent } from "../../vhd/image/parent.ts";
import { VhdChainError } from "../../vhd/image/errors.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { type CommandCall, expectedErrno } from "./command.ts";

/**
 * Warns when an image has just been given a parent that lies where none may be: what was asked for is
 * done, but nobody opens the image like that.
 */
export function warnOfConfinement({ output }: CommandCall, path: string): void {
  const image = openVhd(path);
  try {
    resolveParent(image, { anyUuid: true });
  } catch (error) {
    if (!(error instanceof VhdChainError) || error.errno !== Errno.EPERM) {
      // What else may be wrong with the parent was there before, and is told when it is opened.
      expectedErrno(error);
      return;
    }
    output.printError(`Warning: ${path} cannot be opened like this. ${messageOf(error)}`);
  } finally {
    image.close();
  }
}
