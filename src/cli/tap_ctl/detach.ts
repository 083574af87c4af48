import type { Command } from "commander";
import { detachDevice, type DeviceAddress } from "../../control/client/client.ts";
import { statusOfOriginal } from "./status.ts";
import { deviceOptions } from "./options.ts";

/** `tap-ctl detach`. */
export function defineDetach(command: Command): Command {
  return deviceOptions(command).action((device: DeviceAddress) =>
    statusOfOriginal(() => detachDevice(device))
  );
}
