import type { Command } from "commander";
import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { hiddenOption } from "./options.ts";
import { printLine } from "../print.ts";

const DEVICES_FILE = "/proc/devices";

function blockMajor(): string {
  let devices: string;
  try {
    devices = Deno.readTextFileSync(DEVICES_FILE);
  } catch (error) {
    throw systemError(error, `Cannot read ${DEVICES_FILE}`);
  }
  const major = /^ *(\d+) tapdev/m.exec(devices)?.[1];
  if (major !== undefined) return major;
  const hint = "no kernel module for blktap devices is loaded";
  throw new SystemError(Errno.ENODEV, `Cannot find 'tapdev' in ${DEVICES_FILE} (${hint})`);
}

/** `tap-ctl major`. */
export function defineMajor(command: Command): Command {
  return command
    .addOption(hiddenOption("-b, --block", "ignored").conflicts("character"))
    .addOption(hiddenOption("-c, --character", "refused: character devices have no major number"))
    .action(({ character }: { character?: boolean }) => {
      if (character) throw new SystemError(Errno.EINVAL, "Cannot tell a character device's major");
      printLine(blockMajor());
    });
}
