import { workingFolder } from "../../../ffi/paths.ts";
import type { Command } from "commander";
import { type DeviceAddress, snapshotDevice } from "../../control/client/client.ts";
import { deviceOptions, timeLimitOption } from "./options.ts";
import { printJson, printLine } from "../print.ts";

interface SnapshotChoices extends DeviceAddress {
  readonly name: string;
  readonly rename?: boolean;
  readonly timeout?: number;
  readonly type?: string;
  readonly json?: boolean;
}

const NOTES = `
The running image keeps the data of this moment and is not written to any more. A new image on top of it
takes all writes from now on: a QCOW2 on a QCOW2, and a VHD on a VHD or a raw image. The new image is
FILE. With --rename, the running image becomes FILE, and the new image gets its old name. With --type
qcow2, the new image is a QCOW2 whatever it is on.

With --type rbd, the running image is one on Ceph, and FILE is the name of a snapshot that is made within
it. The image stays the one that is written to, and requests go on. With --type rbd-clone, FILE is the
name of a new image in its pool, a clone on a snapshot of that name: the clone takes all writes from now on.

Prints how long requests were held back. When the snapshot fails, the disk keeps the image that it had.`;

function makeSnapshot(
  { name, rename = false, timeout = 0, json, type, ...device }: SnapshotChoices,
): void {
  const isInside = type === "rbd";
  const isFile = !isInside && type !== "rbd-clone";
  const path = !isFile || name.startsWith("/") ? name : `${workingFolder()}/${name}`;
  const made = snapshotDevice(device, {
    path,
    rename,
    timeoutSeconds: timeout,
    childType: type,
  });
  if (json) {
    const { image, parent, stallMs } = made;
    printJson({ image, parent, stall_ms: stallMs });
  } else {
    printLine(`${made.image} is open, ${isInside ? "with the snapshot" : "on"} ${made.parent}`);
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
    .option(
      "--type <type>",
      "the new image's type: vhd, qcow2 or rbd-clone; rbd for a snapshot within an image",
    )
    .option("--rename", "give the running image's name to the new one")
    .option("--json", "print JSON")
    .addHelpText("after", NOTES)
    .action(makeSnapshot);
}
