import type { Command } from "commander";
import {
  type InventoryEntry,
  withExports,
  withLimits,
  withNodes,
} from "../../control/client/inventory.ts";
import { printJson } from "../print.ts";
import { defineListing } from "./listing.ts";

function printAsJson(entries: readonly InventoryEntry[]): void {
  printJson(withExports(withLimits(withNodes(entries))));
}

/** `tap-ctl list`. */
export function defineList(command: Command): Command {
  return defineListing(command, printAsJson).addHelpText(
    "after",
    "\nOn a terminal, the columns are process, minor, state, type and path. Otherwise, a line has the\n" +
      "fields that apply: 'pid=17908 minor=0 state=0 args=vhd:/path'.\n\n" +
      "All tapdisks are asked at once. A tapdisk that does not answer within 3 s is named on standard\n" +
      "error, and listed with its minors only.",
  );
}
