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
    .option("--clear", "begin a new log with what is printed")
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nOf a device whose image is named log:TYPE:PATH. A line is a run of changed sectors: the first,\n" +
        "and how many. What is being written while the log is cleared is in the next one, too.",
    )
    .action(({ json, clear, ...device }: LogOptions) => {
      const { sectors, runs } = deviceLog(device, { clear });
      if (json) printJson({ sectors, runs }, { indent: 0 });
      else for (const [sector, count] of runs) printLine(`${sector} ${count}`);
    });
}
