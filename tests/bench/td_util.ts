/**
 * Measures how long td-util takes to convert a disk with 1 GiB of data on a tmpfs, next to qemu-img on the
 * same pair of types. The two take turns; the ratio is that of the medians. Times are those of whole
 * processes.
 *
 * @module
 */
import { binaryPath, findTool, runOk } from "../support/tools.ts";

const ROUNDS = 5;
const DATA_BYTES = 1024 ** 3;

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

const PAIRS: readonly (readonly [from: Type, to: Type])[] = [
  [RAW, RAW],
  [RAW, VHD],
  [RAW, QCOW2],
  [RAW, QCOW],
  [VHD, RAW],
  [VHD, QCOW2],
  [QCOW2, RAW],
  [QCOW2, VHD],
  [VHDX, RAW],
];

/** Runs of random bytes with holes of the same length between them. */
function makeRaw(path: string): void {
  const part = new Uint8Array(1 << 20);
  const file = Deno.openSync(path, { create: true, write: true });
  for (let at = 0; at < DATA_BYTES; at += part.length) {
    for (let i = 0; i < part.length; i += 65536) {
      crypto.getRandomValues(part.subarray(i, i + 65536));
    }
    file.seekSync(2 * at, Deno.SeekMode.Start);
    for (let done = 0; done < part.length;) done += file.writeSync(part.subarray(done));
  }
  file.close();
}

async function seconds(command: string, args: readonly string[], output: string): Promise<number> {
  await Deno.remove(output).catch(() => {});
  const startMs = performance.now();
  await runOk(command, args);
  return (performance.now() - startMs) / 1000;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}

async function main(): Promise<void> {
  const qemuImg = findTool("qemu-img");
  if (qemuImg === undefined) throw new Error("qemu-img is not installed");
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
  try {
    const output = `${folder}/output`;
    makeRaw(`${folder}/raw`);
    for (const { format } of [VHD, QCOW2, VHDX]) {
      await runOk(qemuImg, ["convert", "-O", format, `${folder}/raw`, `${folder}/${format}`]);
    }
    for (const [from, to] of PAIRS) {
      const source = `${folder}/${from.format}`;
      const ours = ["convert", `${from.type}:${source}`, `${to.type}:${output}`];
      const theirs = ["convert", "-f", from.format, "-O", to.format, source, output];
      const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
      for (let round = 0; round < ROUNDS; round++) {
        times.ours.push(await seconds(binaryPath("td-util"), ours, output));
        times.theirs.push(await seconds(qemuImg, theirs, output));
      }
      const [a, b] = [median(times.ours), median(times.theirs)];
      const pair = `${from.type} to ${to.type}`.padEnd(16);
      console.log(
        `${pair} ${a.toFixed(2)} s, qemu-img ${b.toFixed(2)} s: ${
          (b / a).toFixed(2)
        } times as fast`,
      );
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

await main();
