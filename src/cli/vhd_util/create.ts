import { Errno } from "../../../ffi/errno.ts";
import { createDynamic, createFixed } from "../../vhd/create.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";

const MIB = 1024 * 1024;

/** `vhd-util create`. */
export const createCommand: Subcommand = {
  name: "create",
  summary: "Make an empty image",
  synopsis: "-n FILE -s MIB [-r] [-S MIB]",
  usage: "options: <-n name> <-s size (MB)> [-r reserve] [-h help] " +
    "[<-S size (MB) for metadata preallocation (see vhd-util resize)>]",
  options: [
    { name: "n", value: "FILE", text: "the image to make" },
    {
      name: "s",
      value: "MIB",
      text: "size of the disk in MiB, rounded up to 2 MiB; at most 2088960",
    },
    {
      name: "S",
      value: "MIB",
      text: "reserve room for 'resize -f' to grow the disk to this many MiB",
    },
    { name: "r", text: "make a fixed image, whose space is allocated now" },
  ],
  example: `
$ vhd-util create -n disk.vhd -s 10240
$ vhd-util query -n disk.vhd -v
10240`,

  run(call: CommandCall): number {
    const path = call.value("n");
    const size = call.number("s");
    const reserve = call.number("S") ?? 0;
    if (path === null || (size === null && reserve === 0)) throw new UsageError(null);
    const sizeBytes = (size ?? 0) * MIB;
    if (reserve !== 0 && reserve * MIB < sizeBytes) {
      call.output.printLine("Error: <-S size> must be greater than <-s size>");
      return Errno.EINVAL;
    }
    if (call.has("r")) createFixed(path, { sizeBytes });
    else createDynamic(path, { sizeBytes, reserveBytes: reserve * MIB });
    return 0;
  },
};
