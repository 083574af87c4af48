import type { Command } from "commander";
import { allocateMinor } from "../../control/minors/minors.ts";
import { minorPath } from "../../control/paths.ts";
import { printLine } from "../print.ts";

/** `tap-ctl allocate`. */
export function defineAllocate(command: Command): Command {
  return command.action(() => printLine(minorPath(allocateMinor())));
}
