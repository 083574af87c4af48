import { Errno, messageOf } from "../../../ffi/errno.ts";
import { resolveParent } from "../../vhd/image/parent.ts";
import { VhdChainError } from "../../vhd/image/errors.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { type CommandCall, expectedErrno } from "../subcommands/command.ts";

/**
 * Warns when an image was just given a parent outside the allowed folders. The change is made, but the
 * image cannot be opened until the folder is allowed.
 */
export function warnOfConfinement({ output }: CommandCall, path: string): void {
  const image = openVhd(path);
  try {
    resolveParent(image, { anyUuid: true });
  } catch (error) {
    if (!(error instanceof VhdChainError) || error.errno !== Errno.EPERM) {
      // Other faults of the parent are reported when the image is opened.
      expectedErrno(error);
      return;
    }
    output.printError(`Warning: ${path} cannot be opened with this parent. ${messageOf(error)}`);
  } finally {
    image.close();
  }
}
