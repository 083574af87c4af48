import type { Command } from "commander";
import { closeImage, type DeviceAddress } from "../../control/client/client.ts";
import { deviceOptions, timeLimit, timeLimitOption } from "./options.ts";

/** `tap-ctl close`. */
export function defineClose(command: Command): Command {
  return timeLimitOption(deviceOptions(command))
    .option("-f, --force", "drop the clients instead of waiting for their requests")
    .action((options: DeviceAddress & { timeout?: number; force?: boolean }) =>
      closeImage(options, { ...timeLimit(options), force: options.force })
    );
}
