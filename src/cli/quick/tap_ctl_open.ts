import { NotPlain } from "../plain_command.ts";
import { defineOpening } from "../tap_ctl/opening.ts";
import { quickCommand } from "./tap_ctl.ts";

/** The name of a file with an absolute path, of a type whose names are all of that form. */
function plainName(name: string): string {
  if (/^(?:aio|qcow2|vhd|vhdx):\//.test(name)) return name;
  throw new NotPlain(name);
}

// Without keys: what reads them is a third of what this call would load.
export const run = quickCommand(
  "open",
  (command) => defineOpening(command, { absolute: plainName }),
);
