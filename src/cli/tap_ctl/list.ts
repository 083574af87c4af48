import type { Command } from "commander";
import {
  inventory,
  type InventoryEntry,
  withExports,
  withLimits,
  withNodes,
} from "../../control/client/inventory.ts";
import { filterOptions } from "./options.ts";
import { warnOfSilent } from "./silent.ts";
import { printJson, printLine } from "../print.ts";

interface ListOptions {
  readonly pid?: number;
  readonly minor?: number;
  readonly type?: string;
  readonly file?: string;
  readonly json?: boolean;
}

/** A state as C's `%#x` prints it: 0, 0x2a. */
function stateText(state: number): string {
  return state === 0 ? "0" : `0x${state.toString(16)}`;
}

/** A line for people, in columns. */
function row({ pid, minor, state, type, path }: InventoryEntry): string {
  return [
    String(pid ?? "-").padStart(8),
    String(minor ?? "-").padStart(4),
    (state === null ? "-" : stateText(state)).padStart(4),
    (type ?? "-").padStart(10),
    path ?? "-",
  ].join(" ");
}

/** A line for programs: `pid=17908 minor=0 state=0 args=vhd:/path`. */
function fields({ pid, minor, state, args }: InventoryEntry): string {
  const parts: string[] = [];
  if (pid !== null) parts.push(`pid=${pid}`);
  if (minor !== null) parts.push(`minor=${minor}`);
  if (state !== null) parts.push(`state=${stateText(state)}`);
  if (args !== null) parts.push(`args=${args}`);
  return parts.join(" ");
}

function list({ pid, minor, type, file, json }: ListOptions): void {
  const all = inventory({ pid, minor });
  warnOfSilent("list", all);
  const chosen = all.filter((entry) =>
    (minor === undefined || entry.minor === minor) &&
    (type === undefined || entry.type === type) &&
    (file === undefined || entry.path === file)
  );
  if (json) {
    printJson(withExports(withLimits(withNodes(chosen))));
    return;
  }
  const format = Deno.stdout.isTerminal() ? row : fields;
  for (const entry of chosen) printLine(format(entry));
}

/** `tap-ctl list`. */
export function defineList(command: Command): Command {
  return filterOptions(command)
    .option("-t, --type <type>", "only devices with an image of this type")
    .option("-f, --file <path>", "only devices with this image")
    .option("--json", "print JSON, with sockets, block device, limits and ports of each")
    .addHelpText(
      "after",
      "\nOn a terminal, the columns are process, minor, state, type and path. Otherwise, a line has the\n" +
        "fields that apply: 'pid=17908 minor=0 state=0 args=vhd:/path'.\n\n" +
        "All tapdisks are asked at once. A tapdisk that does not answer within 3 s is named on standard\n" +
        "error, and listed with its minors only.",
    )
    .action(list);
}
