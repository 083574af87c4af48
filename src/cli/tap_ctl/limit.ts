import type { Command } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { limitDevice } from "../../control/client/questions.ts";
import { summaryOfLimits } from "../../vbd/rate_limits.ts";
import { limitChanges, type LimitChoices, limitOptions } from "./limit_options.ts";
import { deviceOptions } from "./options.ts";
import { printJson, printLine } from "../print.ts";

const NOTES = `
Limits what a running disk does. A limit that is not given stays as it is; 0 or none removes one.
Without any, prints the limits. A number may end in K, M, G (1000) or Ki, Mi, Gi (1024).

A request that would go beyond a limit waits in tapdisk; 'tap-ctl stats' shows how long requests
waited. Reads and writes are counted apart and, for the total, together. Zeroing counts as writing. A
discard counts as one write without bytes. Flushes are never held back. A request of more than 256 KiB
is counted as several. Limits outlast pauses, snapshots and 'tap-ctl recover'.`;

function limit({ json, ...choices }: DeviceAddress & LimitChoices & { json?: boolean }): void {
  const changes = limitChanges(choices);
  const summary = summaryOfLimits(limitDevice(choices, changes));
  if (json) return printJson(summary);
  if (Object.keys(changes).length > 0) return;
  const entries = Object.entries(summary ?? {}).filter(([, value]) => value > 0);
  if (entries.length === 0) printLine("none");
  for (const [name, value] of entries) printLine(`${name} ${value}`);
}

/** `tap-ctl limit`. */
export function defineLimit(command: Command): Command {
  return limitOptions(deviceOptions(command))
    .option("--json", "print the limits as JSON, or null without any")
    .addHelpText("after", NOTES)
    .action(limit);
}
