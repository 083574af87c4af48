import type { Command } from "commander";
import { createDevice } from "../../control/client/lifecycle.ts";
import { minorPath } from "../../control/paths.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { absoluteImage, imagesHelp } from "./image_names.ts";
import { deviceChoice, type ImageChoices, imageOptions, openRequest } from "./image_options.ts";
import { hiddenOption } from "./options.ts";
import { printLine } from "../print.ts";
import { applyRunChoices, type RunChoices, runOptions } from "./run_options.ts";

/** `tap-ctl create`. */
export function defineCreate(command: Command): Command {
  const withImage = imageOptions(command, deviceChoice("auto").env("BLKTAP_DEVICE"));
  return runOptions(parentRootOption(keyOptions(withImage)))
    .addOption(hiddenOption("-d, --name <name>", "ignored"))
    .addHelpText("after", `\n${imagesHelp()}`)
    .addHelpText(
      "after",
      "\nPrints the node of the block device, such as /dev/ublkb0, or the path of the minor when there is\n" +
        "no block device. 'auto' is the first kind that the kernel has, or none.\n\n" +
        "BLKTAP_NBD_CONNECTIONS is the number of connections of an nbd device. Another tapdisk can take\n" +
        "the device over only with one connection, the default. BLKTAP_NBD_INTERFACE is the interface that\n" +
        "makes an nbd device: netlink or ioctl.",
    )
    .action(async (choices: ImageChoices & KeyChoices & ParentRootChoices & RunChoices) => {
      allowParentRoots(choices);
      applyRunChoices(choices);
      const extras = { key: encryptionKey(choices) };
      const device = await createDevice(openRequest(absoluteImage, choices), extras);
      printLine(device.node ?? minorPath(device.minor));
    });
}
