import { convertImage } from "../../images/convert.ts";
import type { CompressionName } from "../../images/kind.ts";
import { interruptible } from "../interruption.ts";
import { openProgress } from "../progress.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";
import { imageOf, makingOf, ON_CEPH_OPTIONS, operandsOf, QUIET_OPTION } from "./operands.ts";

/** Converts an image, with a bar on a terminal. */
export async function convertWithProgress(
  call: CommandCall,
  { from, to }: { from: string; to: string },
): Promise<void> {
  const progress = call.has("quiet") ? null : await openProgress("copy");
  try {
    await interruptible((signal) =>
      convertImage(from, to, {
        fixed: call.has("fixed"),
        azure: call.has("azure"),
        compression: compressionOf(call),
        detectZeros: !call.has("keep-zeros"),
        onCeph: makingOf(call),
        signal,
        onProgress: progress?.update,
        log: (line) => call.output.printError(line),
      })
    );
  } finally {
    progress?.stop();
  }
}

/** How the clusters of the new image are compressed, if they are. */
function compressionOf(call: CommandCall): CompressionName | undefined {
  const value = call.value("compress");
  if (value === null) return undefined;
  if (value === "" || value === "zlib") return "zlib";
  if (value === "zstd") return "zstd";
  throw new UsageError(`Cannot compress by '${value}': it must be zlib or zstd`);
}

/** `td-util convert`. */
export const convertCommand: Subcommand = {
  name: "convert",
  summary: "Copy a disk into a new image of another type",
  synopsis:
    "[--fixed | --azure | --compress[=TYPE]] [--keep-zeros] [--object-size=SIZE] [--data-pool=POOL] [--quiet] IMAGE NEW",
  usage:
    "td-util convert [--fixed | --azure | --compress[=TYPE]] [--keep-zeros] [--object-size=SIZE] [--data-pool=POOL] [--quiet] IMAGE NEW",
  options: [
    { name: "fixed", text: "make a fixed VHD" },
    { name: "azure", text: "make a VHD as Azure wants it: fixed, with whole MiB" },
    {
      name: "compress",
      optionalValue: "TYPE",
      text: "compress the clusters of a new qcow2 by zlib, or by zstd; all processors do that",
    },
    { name: "keep-zeros", text: "write zeros that the image holds; by default they become holes" },
    ...ON_CEPH_OPTIONS,
    QUIET_OPTION,
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util convert vhd:disk.vhd raw:disk.raw
$ td-util convert --compress=zstd raw:disk.raw qcow2:disk.qcow2
$ td-util convert vhdx:disk.vhdx nbd:localhost:10809
$ td-util convert vhd:disk.vhd rbd:vms/disk`,

  async run(call: CommandCall): Promise<number> {
    const [from, to] = operandsOf(call, "IMAGE", "NEW");
    await convertWithProgress(call, { from: imageOf(from), to: imageOf(to) });
    return 0;
  },
};
