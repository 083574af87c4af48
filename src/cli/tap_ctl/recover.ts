import type { Command } from "commander";
import type { Secret } from "../../../ffi/secret.ts";
import { resumeDevice } from "../../control/client/client.ts";
import { inventory } from "../../control/client/inventory.ts";
import {
  type CreatedDevice,
  disksEndedByFaults,
  orphanedMinors,
  recoverDevice,
} from "../../control/client/lifecycle.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { minorPath } from "../../control/paths.ts";
import { parseMinor } from "./options.ts";
import { Tries } from "./tries.ts";
import { warnOfSilent } from "./silent.ts";
import { printErrorLine, printLine } from "../print.ts";

function printNode({ node, minor }: Pick<CreatedDevice, "node" | "minor">): void {
  printLine(node ?? minorPath(minor));
}

/** Opens the image of a disk that a fault has ended again, in its tapdisk, which lives on. */
function resume(disk: CreatedDevice): void {
  resumeDevice(disk, { image: null });
  printNode(disk);
}

async function recover(only: number | undefined, key: Secret | undefined): Promise<void> {
  const present = inventory({ minor: only });
  warnOfSilent("recover", present);
  const ended = disksEndedByFaults(present);
  const takeOver = async (minor: number): Promise<void> => {
    const { unserved = [], ...device } = await recoverDevice(minor, { key });
    for (const why of unserved) printErrorLine(`tap-ctl recover: minor ${minor}: ${why}`);
    printNode(device);
  };
  if (only !== undefined) {
    const disk = ended.find(({ minor }) => minor === only);
    return disk === undefined ? await takeOver(only) : resume(disk);
  }
  const tries = new Tries("recovered");
  const attempt = (minor: number, work: () => Promise<void>): Promise<void> =>
    tries.each(`tap-ctl recover: minor ${minor}`, work);
  for (const disk of ended) {
    await attempt(disk.minor, () => Promise.resolve().then(() => resume(disk)));
  }
  for (const minor of orphanedMinors()) await attempt(minor, () => takeOver(minor));
  tries.end();
}

/** `tap-ctl recover`. */
export function defineRecover(command: Command): Command {
  return parentRootOption(keyOptions(command))
    .option("-m, --minor <minor>", "only this device", parseMinor)
    .addHelpText(
      "after",
      "\nBrings back disks after a fault, and prints their nodes:\n" +
        "- When a tapdisk died, a new one takes over its block devices. Their users see only a pause. A\n" +
        "  Xen guest's ring is taken over, too: tapback connects it to the new tapdisk.\n" +
        "- When a fault ended a single disk (state 0x1 in 'tap-ctl list', requests fail with EIO), its\n" +
        "  tapdisk opens the image again, as 'tap-ctl unpause' does.\n" +
        "When a disk cannot be recovered, the others still are; the exit status is that of the first\n" +
        "failure.",
    )
    .action(async (choices: KeyChoices & ParentRootChoices & { minor?: number }) => {
      const { minor, ...keys } = choices;
      allowParentRoots(choices);
      await recover(minor, encryptionKey(keys));
    });
}
