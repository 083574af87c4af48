import { workingFolder } from "../../../ffi/paths.ts";
import type { Command } from "commander";
import { type DeviceAddress, snapshotDevice } from "../../control/client/client.ts";
import { deviceOptions, timeLimitOption } from "./options.ts";
import { printJson, printLine } from "../print.ts";

interface SnapshotChoices extends DeviceAddress {
  readonly name: string;
  readonly rename?: boolean;
  readonly timeout?: number;
  readonly json?: boolean;
}

const NOTES = `
The running image keeps the data of this moment and is not written to any more. A new VHD on top of it
takes all writes from now on. The new VHD is FILE. With --rename, the running image becomes FILE, and
the new VHD gets its old name. The running image may be a VHD or a raw image.

Prints how long requests were held back. When the snapshot fails, the disk keeps the image that it had.`;

function makeSnapshot(
  { name, rename = false, timeout = 0, json, ...device }: SnapshotChoices,
): void {
  const path = name.startsWith("/") ? name : `${workingFolder()}/${name}`;
  const made = snapshotDevice(device, { path, rename, timeoutSeconds: timeout });
  if (json) {
    const { image, parent, stallMs } = made;
    printJson({ image, parent, stall_ms: stallMs });
  } else {
    printLine(`${made.image} is open, on ${made.parent}`);
    printLine(`requests waited ${made.stallMs.toFixed(1)} ms`);
  }
}

/** `tap-ctl snapshot`. */
export function defineSnapshot(command: Command): Command {
  return timeLimitOption(deviceOptions(command))
    .requiredOption(
      "-n, --name <file>",
      "the new image or, with --rename, the running one's new name",
    )
    .option("--rename", "give the running image's name to the new one")
    .option("--json", "print JSON")
    .addHelpText("after", NOTES)
    .action(makeSnapshot);
}
