import type { Command } from "commander";
import { allocateMinor, freeMinor } from "../../control/minors/minors.ts";
import { DEVICE_MAKERS } from "../../frontend/device_makers.ts";
import { printJson, printLine } from "../print.ts";

/** Prints whether tapdisk can run on this machine, and which kinds of block device the kernel has. */
function check({ json }: { json?: boolean }): void {
  freeMinor(allocateMinor());
  const devices = DEVICE_MAKERS.map((maker) => ({ kind: maker.kind, missing: maker.missing() }));
  if (json) return printJson({ devices });
  printLine("ok");
  for (const { kind, missing } of devices) {
    printLine(missing === null ? `${kind}: ok` : `${kind}: not here (${missing})`);
  }
}

/** `tap-ctl check`. */
export function defineCheck(command: Command): Command {
  return command
    .option("--json", "print JSON")
    .addHelpText(
      "after",
      "\nPrints 'ok', or what is missing, and one line for each kind of block device.\n" +
        "NBD needs no kernel module.",
    )
    .action(check);
}
