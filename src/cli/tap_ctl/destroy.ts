import type { Command } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { destroyDevice } from "../../control/client/lifecycle.ts";
import { deviceOptions, timeLimit, timeLimitOption } from "./options.ts";

/** `tap-ctl destroy`. */
export function defineDestroy(command: Command): Command {
  return timeLimitOption(deviceOptions(command))
    .action((options: DeviceAddress & { timeout?: number }) =>
      destroyDevice(options, timeLimit(options))
    );
}
