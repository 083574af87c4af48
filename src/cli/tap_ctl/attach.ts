import type { Command } from "commander";
import { attachDevice, type DeviceAddress } from "../../control/client/client.ts";
import { statusOfOriginal } from "./status.ts";
import { deviceOptions } from "./options.ts";

/** `tap-ctl attach`. */
export function defineAttach(command: Command): Command {
  return deviceOptions(command).action((device: DeviceAddress) =>
    statusOfOriginal(() => attachDevice(device))
  );
}
