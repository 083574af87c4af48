import { fillImage, preallocate } from "../../vhd/fill.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { openProgress } from "../progress.ts";
import { type CommandCall, failedTo, type Subcommand, UsageError } from "../subcommands/command.ts";

/** `vhd-util fill`. */
export const fillCommand: Subcommand = {
  name: "fill",
  summary: "Allocate all of an image's blocks",
  synopsis: "-n FILE [-b [-f SECTOR] [-t SECTOR]]",
  usage: "options: <-n name> [-h help] [-b initialise the BAT and bitmaps, " +
    "don't write to the data blocks (much faster)] [-f start " +
    "intialisation from this sector, only usable with -b] [-t " +
    "intialise up to this sector (inclusive), only usable with -b] " +
    "[-B ignore the 2 TB limit, only usable with -b]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "b", text: "allocate the blocks without writing data to them" },
    { name: "f", value: "SECTOR", text: "with -b: start at the block of this sector" },
    { name: "t", value: "SECTOR", text: "with -b: end with the block of this sector" },
  ],
  ignoredOptions: [{ name: "B", text: "it lifts a limit that no VHD reaches" }],
  followsParents: true,
  example: `
$ vhd-util fill -n disk.vhd -b
$ vhd-util query -n disk.vhd -a
5120`,

  async run(call: CommandCall): Promise<number> {
    const path = call.required("n");
    const fromSector = call.number("f") ?? undefined;
    const toSector = call.number("t") ?? undefined;
    const refuse = (problem: string): UsageError => {
      call.output.printLine(`${problem}`);
      return new UsageError(null);
    };
    if ((fromSector !== undefined || toSector !== undefined) && !call.has("b")) {
      throw refuse("-f/-t can only be used with -b");
    }
    if (fromSector !== undefined && toSector !== undefined && toSector < fromSector) {
      throw refuse(`invalid sector range ${fromSector}-${toSector}`);
    }
    if (call.has("B") && !call.has("b")) throw refuse("-B can only be used with -b");
    try {
      openVhd(path).close();
    } catch (error) {
      return failedTo(call, `error opening ${path}: `, error);
    }
    const progress = await openProgress("fill");
    try {
      const onProgress = progress.update;
      if (call.has("b")) preallocate(path, { fromSector, toSector, onProgress });
      else fillImage(path, { onProgress });
    } finally {
      progress.stop();
    }
    return 0;
  },
};
