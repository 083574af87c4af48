import type { Command } from "commander";
import { allocateMinor, freeMinor } from "../../control/minors.ts";

/** `tap-ctl check`. */
export function defineCheck(command: Command): Command {
  return command
    .addHelpText("after", "\nPrints 'ok', or what is missing. No kernel module is needed for NBD.")
    .action(() => {
      freeMinor(allocateMinor());
      console.log("ok");
    });
}
