import type { Command } from "commander";
import { orphanedMinors, recoverDevice } from "../../control/client/lifecycle.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { parseMinor } from "./options.ts";

/** `tap-ctl recover`. */
export function defineRecover(command: Command): Command {
  return keyOptions(command)
    .option("-m, --minor <minor>", "only this device", parseMinor)
    .addHelpText(
      "after",
      "\nTakes over the block devices of tapdisks that died, and prints their nodes. Whoever uses a\n" +
        "device notices no more than a pause.",
    )
    .action(async ({ minor, ...keys }: KeyChoices & { minor?: number }) => {
      const key = await encryptionKey(keys);
      for (const orphan of minor === undefined ? orphanedMinors() : [minor]) {
        console.log((await recoverDevice(orphan, { encryptionKey: key })).node);
      }
    });
}
