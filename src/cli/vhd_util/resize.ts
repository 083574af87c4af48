import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { ForeignImageError, growWithinMetadata, resizeVhd } from "../../vhd/resize/resize.ts";
import { RevertError } from "../../vhd/resize/journal.ts";
import { roundToBlocks } from "../../vhd/create.ts";
import { openProgress } from "../progress.ts";
import {
  type CommandCall,
  expectedErrno,
  failedTo,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";

const MIB = 1024 * 1024;

/** `vhd-util resize`. */
export const resizeCommand: Subcommand = {
  name: "resize",
  summary: "Change the size of a disk",
  synopsis: "-n FILE -s MIB {-j JOURNAL | -f}",
  usage: "options: <-n name> <-s size (in MB)> (<-j journal>|<-f fast>) [-h help]\n\n" +
    "The resize operation can only be performed offline and must be journaled because " +
    "resizing the metadata might require moving data blocks. However, if a VHD was created " +
    "with -S <msize> option (during vhd-util create/snapshot), which preallocates the metadata " +
    "for growing the VHD up to size <msize>, then resizing such a VHD up to <msize> can be " +
    "performed online without journaling (-f option).",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "s", value: "MIB", text: "the new size in MiB, rounded up to blocks; at most 2088960" },
    {
      name: "j",
      value: "JOURNAL",
      text: "a new file or a block device; 'revert' undoes a failed resize",
    },
    {
      name: "f",
      text: "grow into the room of 'create -S'; pause a disk in use first",
    },
  ],
  followsParents: true,
  example: `
$ vhd-util resize -n disk.vhd -s 20480 -j disk.journal
$ vhd-util query -n disk.vhd -v
20480`,

  async run(call: CommandCall): Promise<number> {
    const path = call.required("n");
    const size = call.number("s");
    const journal = call.value("j");
    const fast = call.has("f");
    if (size === null || fast === (journal !== null)) throw new UsageError(null);
    const sizeBytes = size * MIB;
    try {
      openVhd(path).close();
    } catch (error) {
      return failedTo(call, `error opening ${path}: `, error);
    }
    if (journal === null) return growFast(call, path, sizeBytes);
    const progress = await openProgress("resize");
    try {
      resizeVhd(path, { sizeBytes, journal, onProgress: progress.update });
      return 0;
    } catch (error) {
      return report(call, path, error);
    } finally {
      progress.stop();
    }
  },
};

function growFast({ output }: CommandCall, path: string, sizeBytes: number): number {
  const image = openVhd(path);
  image.close();
  const rounded = roundToBlocks(sizeBytes);
  if (rounded > 0 && rounded < image.sizeBytes) {
    output.printLine(`${path}: size (${rounded}) < curr size (${image.sizeBytes})`);
    return Errno.EINVAL;
  }
  growWithinMetadata(path, { sizeBytes });
  return 0;
}

function report({ output }: CommandCall, path: string, error: unknown): number {
  const errno = expectedErrno(error);
  if (error instanceof ForeignImageError) {
    output.printLine(`${path} not created by xen; resize not supported`);
  } else if (error instanceof SystemError && errno === Errno.EEXIST) {
    output.printLine(`creating journal failed: ${-errno}`);
  } else {
    output.printLine(`resize failed: ${-errno}`);
    if (error instanceof RevertError) output.printLine(`closing journal failed: ${-errno}`);
  }
  output.printError(messageOf(error));
  return errno;
}
