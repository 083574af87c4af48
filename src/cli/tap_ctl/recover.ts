import type { Command } from "commander";
import { orphanedMinors, recoverDevice } from "../../control/client/lifecycle.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { minorPath } from "../../control/paths.ts";
import { parseMinor } from "./options.ts";
import { Tries } from "./tries.ts";
import { printLine } from "../print.ts";

/** `tap-ctl recover`. */
export function defineRecover(command: Command): Command {
  return parentRootOption(keyOptions(command))
    .option("-m, --minor <minor>", "only this device", parseMinor)
    .addHelpText(
      "after",
      "\nTakes over the block devices of tapdisks that died, and prints their nodes. The users of a device\n" +
        "see only a pause. When a device cannot be taken over, the others still are; the exit status is\n" +
        "that of the first failure.",
    )
    .action(async (choices: KeyChoices & ParentRootChoices & { minor?: number }) => {
      const { minor, ...keys } = choices;
      allowParentRoots(choices);
      const key = await encryptionKey(keys);
      const recover = async (orphan: number): Promise<void> =>
        printLine((await recoverDevice(orphan, { key })).node ?? minorPath(orphan));
      if (minor !== undefined) return await recover(minor);
      const tries = new Tries("taken over");
      for (const orphan of orphanedMinors()) {
        await tries.each(`tap-ctl recover: minor ${orphan}`, () => recover(orphan));
      }
      tries.end();
    });
}
