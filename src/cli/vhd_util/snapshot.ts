import { Errno } from "../../../ffi/errno.ts";
import { osStorage } from "../../files/storage.ts";
import { cephNameOfPath } from "../../vhd/format/ceph_path.ts";
import { snapshot, SnapshotDepthError } from "../../vhd/snapshot.ts";
import { warnOfConfinement } from "./confined.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";

const MIB = 1024 * 1024;

/** `vhd-util snapshot`. */
export const snapshotCommand: Subcommand = {
  name: "snapshot",
  summary: "Make an image that holds the differences from its parent",
  synopsis: "-n FILE -p PARENT [-m] [-e] [-l LAYERS] [-S MIB]",
  usage: "options: <-n name> <-p parent name> [-l snapshot depth limit]" +
    " [-m parent_is_raw] [-S size (MB) for metadata preallocation " +
    "(see vhd-util resize)] [-e link to supplied parent name even " +
    "if it's empty] [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image to make" },
    {
      name: "p",
      value: "PARENT",
      text: "the parent image; with -m also /dev/rbd/POOL/IMAGE@SNAPSHOT, on Ceph",
    },
    { name: "l", value: "LAYERS", text: "fail if the chain would have more layers than this" },
    { name: "m", text: "the parent is a raw image" },
    {
      name: "S",
      value: "MIB",
      text: "reserve room for 'resize -f' to grow the disk to this many MiB",
    },
    {
      name: "e",
      text: "use PARENT even if it is empty, not its first ancestor with data",
    },
  ],
  followsParents: true,
  example: `
$ vhd-util snapshot -n today.vhd -p disk.vhd
$ vhd-util query -n today.vhd -p
/images/disk.vhd`,

  async run(call: CommandCall): Promise<number> {
    const path = call.value("n");
    const parent = call.value("p");
    if (path === null || parent === null) throw new UsageError(null);
    // As with all raw parents, -e and -l change nothing.
    const onCeph = call.has("m") && !osStorage.exists(parent) ? cephNameOfPath(parent) : null;
    if (onCeph !== null) {
      if (call.has("S")) throw new UsageError("-S cannot be used with a parent on Ceph");
      // What speaks to clusters is loaded for them only.
      const { snapshotImage } = await import("../../images/change.ts");
      snapshotImage(`rbd:${onCeph}`, `vhd:${path}`);
      return 0;
    }
    try {
      snapshot(path, {
        parent,
        rawParent: call.has("m"),
        keepEmptyParent: call.has("e"),
        reserveBytes: (call.number("S") ?? 0) * MIB,
        depthLimit: call.number("l") ?? 0,
      });
      warnOfConfinement(call, path);
    } catch (error) {
      if (!(error instanceof SnapshotDepthError)) throw error;
      call.output.printLine(
        `snapshot depth exceeded: current depth: ${error.depth}, limit: ${error.limit}`,
      );
      return Errno.ENOSPC;
    }
    return 0;
  },
};
