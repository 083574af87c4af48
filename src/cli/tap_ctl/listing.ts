import type { Command } from "commander";
import { inventory, type InventoryEntry } from "../../control/client/inventory.ts";
import { printLine } from "../print.ts";
import { filterOptions } from "./options.ts";
import { warnOfSilent } from "./silent.ts";

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

function list(
  { pid, minor, type, file, json }: ListOptions,
  printAsJson?: (entries: readonly InventoryEntry[]) => void,
): void {
  const all = inventory({ pid, minor });
  warnOfSilent("list", all);
  const chosen = all.filter((entry) =>
    (minor === undefined || entry.minor === minor) &&
    (type === undefined || entry.type === type) &&
    (file === undefined || entry.path === file)
  );
  if (json) return printAsJson?.(chosen);
  const format = Deno.stdout.isTerminal() ? row : fields;
  for (const entry of chosen) printLine(format(entry));
}

/**
 * The options and the action of `tap-ctl list`.
 *
 * @param printAsJson Without it, the command has no `--json`.
 */
export function defineListing(
  command: Command,
  printAsJson?: (entries: readonly InventoryEntry[]) => void,
): Command {
  filterOptions(command)
    .option("-t, --type <type>", "only devices with an image of this type")
    .option("-f, --file <path>", "only devices with this image");
  if (printAsJson !== undefined) {
    const text = "print JSON, with sockets, block device, limits and ports of each";
    command.option("--json", text);
  }
  return command.action((choices: ListOptions) => list(choices, printAsJson));
}
