import type { Command } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { deviceLog } from "../../control/client/device_log.ts";
import { deviceOptions } from "./options.ts";
import { printJson, printLine } from "../print.ts";

interface LogOptions extends DeviceAddress {
  readonly clear?: boolean;
  readonly json?: boolean;
}

/** `tap-ctl log`. */
export function defineLog(command: Command): Command {
  return deviceOptions(command)
    .option("--clear", "start a new log")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nThe image of the device must be named log:TYPE:PATH. A line is a run of changed sectors: the\n" +
        "first, and how many. Writes in flight while the log is cleared are in the new log, too.",
    )
    .action(({ json, clear, ...device }: LogOptions) => {
      const { sectors, runs } = deviceLog(device, { clear });
      if (json) printJson({ sectors, runs }, { indent: 0 });
      else for (const [sector, count] of runs) printLine(`${sector} ${count}`);
    });
}
