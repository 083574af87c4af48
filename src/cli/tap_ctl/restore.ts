import type { Command } from "commander";
import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { decodeName } from "../../../ffi/names.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import {
  DEVICE_LIST_PATH,
  type ListedDevice,
  parseDeviceList,
} from "../../control/client/device_list.ts";
import { nbdSocketPath } from "../../control/paths.ts";
import {
  restoreDevice,
  restoredNames,
  stopRestored,
  withNamesLocked,
} from "../../control/client/restore.ts";
import { inventory } from "../../control/client/inventory.ts";
import { requireTrustedFile } from "../../files/trusted_path.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { encryptionKey } from "./encryption.ts";
import { timeLimit, timeLimitOption } from "./options.ts";
import { warnOfSilent } from "./silent.ts";
import { Tries } from "./tries.ts";
import { printErrorLine, printLine } from "../print.ts";

interface RestoreChoices {
  readonly file: string;
  readonly stop?: boolean;
  readonly timeout?: number;
}

const NOTES = `
${DEVICE_LIST_PATH} has one disk per line, 'NAME IMAGE [OPTION,OPTION…]', and explains the options. A
disk that is already served is left as it is. A disk whose tapdisk died is taken over. When a disk
cannot be served, the others still are; the exit status is that of the first failure.

Prints each name and its block device, which also has the name /dev/blktap/NAME, or its NBD socket.`;

function readList(path: string): ReturnType<typeof parseDeviceList> {
  requireTrustedFile(path.startsWith("/") ? path : `${workingFolder()}/${path}`);
  try {
    return parseDeviceList(decodeName(Deno.readFileSync(path)));
  } catch (error) {
    throw systemError(error, `Cannot read ${path}`);
  }
}

function chosenFrom(devices: readonly ListedDevice[], names: readonly string[]): ListedDevice[] {
  if (names.length === 0) return devices.filter(({ auto }) => auto);
  return names.map((name) => {
    const found = devices.find((device) => device.name === name);
    if (found !== undefined) return found;
    throw new SystemError(Errno.ENOENT, `Cannot serve ${name}: no such name is in the list`);
  });
}

async function restore(names: readonly string[], path: string): Promise<void> {
  const { devices, faults } = readList(path);
  const tries = new Tries("served");
  const present = inventory();
  warnOfSilent("restore", present);
  for (const { line, reason } of names.length === 0 ? faults : []) {
    await tries.each(`${path}, line ${line}`, () => {
      throw new SystemError(Errno.EINVAL, `Cannot read it (${reason})`);
    });
  }
  for (const listed of chosenFrom(devices, names)) {
    await tries.each(`${path}, line ${listed.line}: ${listed.name}`, async () => {
      const readKey = () => encryptionKey({ keyFile: listed.keyFile });
      const restored = await restoreDevice(listed, { present, readKey });
      const { node, pid, minor, how, unserved = [] } = restored;
      for (const why of unserved) printErrorLine(`tap-ctl restore: ${listed.name}: ${why}`);
      const where = node ?? nbdSocketPath(pid, minor);
      printLine(`${listed.name}: ${where}${how === "created" ? "" : ` (${how})`}`);
    });
  }
  tries.end();
}

async function stop(names: readonly string[], choices: RestoreChoices): Promise<void> {
  const tries = new Tries("stopped");
  for (const name of names.length > 0 ? names : restoredNames()) {
    await tries.each(name, async () => {
      if (await stopRestored(name, timeLimit(choices))) printLine(`${name}: stopped`);
    });
  }
  tries.end();
}

/** `tap-ctl restore`. */
export function defineRestore(command: Command): Command {
  return parentRootOption(timeLimitOption(command))
    .argument("[name...]", "the disks; by default all without 'noauto'")
    .option("--file <path>", "the list", DEVICE_LIST_PATH)
    .option("--stop", "stop serving the disks that were restored, the last one first")
    .addHelpText("after", NOTES)
    .action((names: string[], choices: RestoreChoices & ParentRootChoices) => {
      allowParentRoots(choices);
      return withNamesLocked(() =>
        choices.stop ? stop(names, choices) : restore(names, choices.file)
      );
    });
}
