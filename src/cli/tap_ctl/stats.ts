import type { Command } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { deviceStatistics } from "../../control/client/questions.ts";
import { deviceOptions } from "./options.ts";
import { printText } from "../print.ts";
import { plainJson } from "../../log/plain_text.ts";

/** `tap-ctl stats`. */
export function defineStats(command: Command): Command {
  return deviceOptions(command)
    .addHelpText("after", "\nPrints JSON on one line. Images are listed from leaf to root.")
    .action((device: DeviceAddress) => printText(`${plainJson(deviceStatistics(device))}\n`));
}
