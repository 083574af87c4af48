import type { Command } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { tapdevMajor } from "../../control/minors/tapdev.ts";
import { hiddenOption } from "./options.ts";
import { printLine } from "../print.ts";

function blockMajor(): number {
  const major = tapdevMajor();
  if (major !== null) return major;
  const hint = "no kernel module for blktap devices is loaded";
  throw new SystemError(Errno.ENODEV, `Cannot find 'tapdev' in /proc/devices (${hint})`);
}

/** `tap-ctl major`. */
export function defineMajor(command: Command): Command {
  return command
    .addOption(hiddenOption("-b, --block", "ignored").conflicts("character"))
    .addOption(hiddenOption("-c, --character", "refused: character devices have no major number"))
    .action(({ character }: { character?: boolean }) => {
      if (character) throw new SystemError(Errno.EINVAL, "Cannot tell a character device's major");
      printLine(String(blockMajor()));
    });
}
