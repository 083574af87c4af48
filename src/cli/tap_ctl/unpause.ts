import type { Command } from "commander";
import { type DeviceAddress, resumeDevice } from "../../control/client/client.ts";
import { absoluteImage, deviceOptions } from "./options.ts";

interface UnpauseOptions extends DeviceAddress {
  readonly args?: string;
  readonly secondary?: string;
  readonly log?: string;
}

/** `tap-ctl unpause`. */
export function defineUnpause(command: Command): Command {
  return deviceOptions(command)
    .option("-a, --args <type:/path>", "go on with this image, no smaller than the disk")
    .option("-2, --secondary <type:/path>", "mirror writes to a second image")
    .option("-c, --log <file>", "note in a log which blocks change")
    .action((options: UnpauseOptions) => {
      const image = options.args === undefined ? "" : absoluteImage(options.args);
      resumeDevice(options, image, { secondary: options.secondary, logPath: options.log });
    });
}
