import { streamImage, type StreamSink } from "../../images/stream.ts";
import { interruptible } from "../interruption.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import type { Output } from "../subcommands/output.ts";
import { imageOf, operandsOf } from "./operands.ts";

/** `td-util stream`. */
export const streamCommand: Subcommand = {
  name: "stream",
  summary: "Write the content of a disk to standard output",
  synopsis: "[--skip SECTOR] [--count COUNT] IMAGE",
  usage: "td-util stream [--skip SECTOR] [--count COUNT] IMAGE",
  options: [
    { name: "skip", value: "SECTOR", text: "begin at this sector of 512 bytes" },
    { name: "count", value: "COUNT", text: "write so many sectors" },
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util stream vhd:disk.vhd | gzip > disk.raw.gz
$ td-util stream vhd:disk.vhd > disk.raw`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    await streamTo(call.output, imageOf(image), {
      skip: call.number("skip") ?? 0,
      count: call.number("count") ?? undefined,
    });
    return 0;
  },
};

/** Writes a disk to an output. Holes stay holes at the end of a file. */
export async function streamTo(
  output: Output,
  name: string,
  { skip, count }: { skip: number; count?: number },
): Promise<void> {
  const sink: StreamSink = {
    write: (bytes) => output.printBytes(bytes),
    skip: (lengthBytes) => output.printZeros(lengthBytes),
  };
  await interruptible((signal) => streamImage(name, sink, { skip, count, signal }));
}
