import type { Command } from "commander";
import { type DeviceAddress, pauseDevice } from "../../control/client/client.ts";
import { deviceOptions, timeLimit, timeLimitOption } from "./options.ts";

/** `tap-ctl pause`. */
export function definePause(command: Command): Command {
  return timeLimitOption(deviceOptions(command))
    .action((options: DeviceAddress & { timeout?: number }) =>
      pauseDevice(options, timeLimit(options))
    );
}
