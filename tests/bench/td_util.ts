/**
 * Measures how long td-util takes to convert a disk with data and holes, next to qemu-img on the same pair
 * of types. The two take turns; a ratio is that of the medians. Times are those of whole processes; the
 * start of one is measured by a conversion of 1 MiB.
 *
 * The images are in a tmpfs, or in the folder that is named: there both have to bring the new image to
 * the disk, which qemu-img does with `-t writeback` only.
 *
 *     deno task bench:convert [--data GIB] [--folder FOLDER] [--rounds N] [PAIR…]
 *
 * @module
 */
import { parseArgs } from "node:util";
import { binaryPath, findTool } from "../support/tools.ts";

const MIB = 1 << 20;

/** A type for td-util, and the format for qemu-img. */
interface Type {
  readonly type: string;
  readonly format: string;
}

const RAW: Type = { type: "raw", format: "raw" };
const VHD: Type = { type: "vhd", format: "vpc" };
const QCOW2: Type = { type: "qcow2", format: "qcow2" };
const QCOW: Type = { type: "qcow", format: "qcow" };
const VHDX: Type = { type: "vhdx", format: "vhdx" };

interface Pair {
  readonly from: Type;
  readonly to: Type;
  /** How clusters are compressed. Less data then: random bytes and text. */
  readonly compression?: string;
}

const PAIRS: readonly Pair[] = [
  { from: RAW, to: RAW },
  { from: RAW, to: VHD },
  { from: RAW, to: QCOW2 },
  { from: RAW, to: QCOW },
  { from: VHD, to: RAW },
  { from: VHD, to: VHD },
  { from: VHD, to: QCOW2 },
  { from: QCOW2, to: RAW },
  { from: QCOW2, to: VHD },
  { from: VHDX, to: RAW },
  { from: RAW, to: QCOW2, compression: "zlib" },
  { from: RAW, to: QCOW2, compression: "zstd" },
];

/** Compressed pairs have this part of the data. */
const COMPRESSED_SHARE = 8;

/** Makes runs of bytes of 1 MiB with holes of the same length between them. */
function makeRaw(path: string, dataBytes: number, fill: (part: Uint8Array<ArrayBuffer>) => void) {
  const part = new Uint8Array(MIB);
  const file = Deno.openSync(path, { create: true, write: true });
  for (let at = 0; at < dataBytes; at += part.length) {
    fill(part);
    file.seekSync(2 * at, Deno.SeekMode.Start);
    for (let done = 0; done < part.length;) done += file.writeSync(part.subarray(done));
  }
  file.close();
}

function fillRandom(part: Uint8Array<ArrayBuffer>): void {
  for (let i = 0; i < part.length; i += 65536) crypto.getRandomValues(part.subarray(i, i + 65536));
}

/** Random bytes, each four times: about as compressible as programs and documents are. */
function fillCompressible(part: Uint8Array<ArrayBuffer>): void {
  fillRandom(part);
  for (let i = 0; i < part.length; i++) part[i] = part[i - i % 4] & 0x3f;
}

/** What one run of a program took, seconds. */
interface Taken {
  readonly wall: number;
  /** Processor time of all its threads. */
  readonly processor: number;
}

async function run(command: string, args: readonly string[], output: string): Promise<Taken> {
  await Deno.remove(output).catch(() => {});
  const startMs = performance.now();
  const { success, stderr } = await new Deno.Command("/usr/bin/time", {
    args: ["-f", "%U %S", command, ...args],
    stdout: "null",
    stderr: "piped",
  }).output();
  const wall = (performance.now() - startMs) / 1000;
  const lines = new TextDecoder().decode(stderr).trim();
  if (!success) throw new Error(`${command} ${args.join(" ")} failed: ${lines}`);
  const [user, system] = (lines.split("\n").at(-1) ?? "").split(" ").map(Number);
  return { wall, processor: user + system };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}

function medians(taken: readonly Taken[]): Taken {
  return {
    wall: median(taken.map(({ wall }) => wall)),
    processor: median(taken.map(({ processor }) => processor)),
  };
}

interface Bench {
  readonly folder: string;
  readonly rounds: number;
  readonly qemuImg: string;
  /** Whether the images are on a disk. */
  readonly isDisk: boolean;
}

/** Both programs in turn. */
async function measure(
  { folder, rounds, qemuImg, isDisk }: Bench,
  { from, to, compression }: Pair,
  source: string,
): Promise<{ ours: Taken; theirs: Taken }> {
  const output = `${folder}/output`;
  const compress = compression === undefined ? [] : [`--compress=${compression}`];
  const ours = ["convert", ...compress, `${from.type}:${source}`, `${to.type}:${output}`];
  const cOption = compression === undefined ? [] : ["-c", "-o", `compression_type=${compression}`];
  const durable = isDisk ? ["-t", "writeback"] : [];
  const formats = ["-f", from.format, "-O", to.format];
  const theirs = ["convert", ...durable, ...cOption, ...formats, source, output];
  const taken: { ours: Taken[]; theirs: Taken[] } = { ours: [], theirs: [] };
  for (let round = 0; round < rounds; round++) {
    taken.ours.push(await run(binaryPath("td-util"), ours, output));
    taken.theirs.push(await run(qemuImg, theirs, output));
  }
  await Deno.remove(output);
  return { ours: medians(taken.ours), theirs: medians(taken.theirs) };
}

function report(name: string, { ours, theirs }: { ours: Taken; theirs: Taken }): void {
  const seconds = ({ wall, processor }: Taken): string =>
    `${wall.toFixed(2)} s (${processor.toFixed(2)} s of processors)`;
  const ratio = (theirs.wall / ours.wall).toFixed(2);
  const processors = (theirs.processor / ours.processor).toFixed(2);
  console.log(
    `${name.padEnd(22)} ${seconds(ours)}, qemu-img ${seconds(theirs)}: ` +
      `${ratio} times as fast, ${processors} by processor time`,
  );
}

function nameOf({ from, to, compression }: Pair): string {
  const suffix = compression === undefined ? "" : `, ${compression}`;
  return `${from.type} to ${to.type}${suffix}`;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    options: {
      data: { type: "string", default: "2" },
      folder: { type: "string", default: "/dev/shm" },
      rounds: { type: "string", default: "5" },
    },
    allowPositionals: true,
  });
  const qemuImg = findTool("qemu-img");
  if (qemuImg === undefined) throw new Error("qemu-img is not installed");
  const dataBytes = Number(values.data) * 1024 * MIB;
  const folder = Deno.makeTempDirSync({ dir: values.folder, prefix: "blktap-bench-" });
  const bench = {
    folder,
    qemuImg,
    rounds: Number(values.rounds),
    isDisk: values.folder !== "/dev/shm",
  };
  try {
    makeRaw(`${folder}/small`, MIB / 2, fillRandom);
    report("start, raw to raw", await measure(bench, { from: RAW, to: RAW }, `${folder}/small`));
    const wanted = PAIRS.filter((pair) =>
      positionals.length === 0 || positionals.includes(nameOf(pair))
    );
    makeRaw(`${folder}/raw`, dataBytes, fillRandom);
    makeRaw(`${folder}/text`, dataBytes / COMPRESSED_SHARE, fillCompressible);
    for (const pair of wanted) {
      const { format } = pair.from;
      const source = `${folder}/${pair.compression === undefined ? format : "text"}`;
      if (format !== "raw") {
        await run(qemuImg, ["convert", "-O", format, `${folder}/raw`, source], source);
      }
      report(nameOf(pair), await measure(bench, pair, source));
      if (format !== "raw") Deno.removeSync(source);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

await main();
