import type { Command } from "commander";
import { freeMinor } from "../../control/minors/minors.ts";
import { minorOption } from "./options.ts";

/** `tap-ctl free`. */
export function defineFree(command: Command): Command {
  return minorOption(command).action(({ minor }: { minor: number }) => freeMinor(minor));
}
