import type { Command } from "commander";
import { type DeviceAddress, deviceStatistics } from "../../control/client/client.ts";
import { deviceOptions } from "./options.ts";

/** `tap-ctl stats`. */
export function defineStats(command: Command): Command {
  return deviceOptions(command)
    .addHelpText("after", "\nPrints JSON on one line; images come from leaf to root.")
    .action((device: DeviceAddress) => console.log(`${deviceStatistics(device)}\n`));
}
