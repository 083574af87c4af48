import type { Command } from "commander";
import { type DeviceAddress, resumeDevice } from "../../control/client/client.ts";
import { absoluteImage } from "./image_names.ts";
import { absoluteFile, secondaryImage } from "./image_options.ts";
import { deviceOptions } from "./options.ts";

interface UnpauseOptions extends DeviceAddress {
  readonly args?: string;
  readonly secondary?: string;
  readonly log?: string;
}

/** `tap-ctl unpause`. */
export function defineUnpause(command: Command): Command {
  return deviceOptions(command)
    .option("-a, --args <type:/path>", "open this image, which must not be smaller than the disk")
    .option("-2, --secondary <type:/path>", "write to this image as well; 'null' ends that")
    .option("-c, --log <file>", "note changed blocks in this log, or in none without this option")
    .addHelpText(
      "after",
      "\nA larger image makes the disk larger. The new size is visible to NBD clients that connect from\n" +
        "now on, to users of an nbd device, and, with Linux 6.16 or later, to users of a ublk device. Other\n" +
        "block devices are made again with the new size when they are not in use: at once, or within a few\n" +
        "seconds after the last user closed or unmounted them.",
    )
    .action((options: UnpauseOptions) => {
      const image = options.args === undefined ? null : absoluteImage(options.args);
      const changedBlocks = absoluteFile(options.log);
      const secondary = secondaryImage(absoluteImage, options.secondary);
      resumeDevice(options, { image, changedBlocks, secondary });
    });
}
