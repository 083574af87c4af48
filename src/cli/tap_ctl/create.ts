import type { Command } from "commander";
import { createDevice } from "../../control/client/lifecycle.ts";
import { minorPath } from "../../control/paths.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import type { ForeignOptions } from "../../control/protocol/open_request.ts";
import {
  deviceChoice,
  foreignOptions,
  hiddenOption,
  type ImageChoices,
  imageOptions,
  openRequest,
} from "./options.ts";
import { printLine } from "../print.ts";

/** `tap-ctl create`. */
export function defineCreate(command: Command): Command {
  const withImage = imageOptions(command, deviceChoice("auto").env("BLKTAP_DEVICE"));
  return parentRootOption(keyOptions(withImage))
    .addOption(hiddenOption("-d, --name <name>", "changes nothing: the name is the one printed"))
    .addHelpText(
      "after",
      "\nPrints the block device's node, such as /dev/ublkb0; without one the path of the minor.\n" +
        "'auto' takes the first kind that the kernel has, if any.\n\n" +
        "BLKTAP_NBD_CONNECTIONS=N gives an nbd device several connections; only with one, the default,\n" +
        "can it be taken over when its tapdisk dies. BLKTAP_NBD_INTERFACE=netlink or ioctl chooses how\n" +
        "it is made.",
    )
    .action(async (choices: ImageChoices & ForeignOptions & KeyChoices & ParentRootChoices) => {
      allowParentRoots(choices);
      const extras = { key: await encryptionKey(choices), foreign: foreignOptions(choices) };
      const device = await createDevice(openRequest(choices), extras);
      printLine(device.node ?? minorPath(device.minor));
    });
}
