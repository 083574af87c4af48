import type { Command } from "commander";
import { type DeviceAddress, resumeDevice } from "../../control/client/client.ts";
import { absoluteImage, deviceOptions, hiddenOption } from "./options.ts";

interface UnpauseOptions extends DeviceAddress {
  readonly args?: string;
  readonly secondary?: string;
  readonly log?: string;
}

/** `tap-ctl unpause`. */
export function defineUnpause(command: Command): Command {
  return deviceOptions(command)
    .option("-a, --args <type:/path>", "go on with this image, no smaller than the disk")
    .addOption(hiddenOption("-2, --secondary <type:/path>", "refused"))
    .addOption(hiddenOption("-c, --log <file>", "refused"))
    .addHelpText(
      "after",
      "\nA larger image makes the disk larger. NBD clients that connect from now on see the new size,\n" +
        "and so do users of an nbd device, or of a ublk device from Linux 6.16. Another block device is\n" +
        "made again with the new size as soon as nobody has it open: at once, or within a few seconds\n" +
        "after its last user closed or unmounted it.",
    )
    .action((options: UnpauseOptions) => {
      const image = options.args === undefined ? null : absoluteImage(options.args);
      resumeDevice(options, image, { secondary: options.secondary, log: options.log });
    });
}
