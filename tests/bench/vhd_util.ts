/**
 * Measures how long vhd-util takes to copy 1 GiB of data, to check it and to scan a folder of 1,000
 * images on a tmpfs, compared with qemu-img where it has the same operation. Each time is that of a
 * whole process. The result is the best of several rounds, because noise only adds time.
 *
 * @module
 */

import { createDynamic } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { VHD_BLOCK_SIZE } from "../../src/vhd/format/units.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { binaryPath, findTool } from "../support/tools.ts";

const ROUNDS = 5;
const DISK_BYTES = 2 * 1024 ** 3;
const DATA_BYTES = 1024 ** 3;
const IMAGES = 1000;
const CHAIN_LENGTH = 10;

interface Case {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** Time limit without the start of a process; Infinity for a comparison without a limit. */
  readonly limitS: number;
  /** Prepares the files before each round. */
  prepare?(): void;
}

/** A folder in memory, so that the disk is not measured. */
function benchFolder(): string {
  const shared = "/dev/shm";
  const there = Deno.statSync(shared).isDirectory;
  return Deno.makeTempDirSync({ dir: there ? shared : undefined, prefix: "blktap-bench-" });
}

/** An image whose first half holds data; no two blocks are equal. */
function fillImage(path: string): void {
  const image = openVhd(path, { readOnly: false });
  const data = new Uint8Array(VHD_BLOCK_SIZE);
  const words = new Uint32Array(data.buffer);
  for (let at = 0; at < DATA_BYTES; at += data.length) {
    for (let i = 0; i < words.length; i += 16) words[i] = at + i;
    writeRange(image, data, at);
  }
  finishWriting(image);
  image.close();
}

function makeScanFolder(folder: string): void {
  Deno.mkdirSync(folder);
  for (let i = 0; i < IMAGES; i++) {
    const path = `${folder}/${String(i).padStart(4, "0")}.vhd`;
    if (i % CHAIN_LENGTH === 0) createDynamic(path, { sizeBytes: 1024 ** 3 });
    else {
      const parent = `${folder}/${String(i - 1).padStart(4, "0")}.vhd`;
      snapshot(path, { parent, keepEmptyParent: true });
    }
  }
}

function casesIn(folder: string): Case[] {
  const vhdUtil = binaryPath("vhd-util");
  const [base, child, empty] = ["base", "child", "empty"].map((name) => `${folder}/${name}.vhd`);
  const output = `${folder}/output.vhd`;
  createDynamic(empty, { sizeBytes: DISK_BYTES });
  Deno.copyFileSync(empty, base);
  snapshot(child, { parent: base, keepEmptyParent: true });
  fillImage(child);
  makeScanFolder(`${folder}/scan`);
  const removeOutput = (): void => {
    try {
      Deno.removeSync(output);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  };
  const cases: Case[] = [
    {
      name: "vhd-util coalesce of 1 GiB",
      command: vhdUtil,
      args: ["coalesce", "-n", child],
      limitS: 1.0,
      prepare(): void {
        removeOutput();
        Deno.copyFileSync(empty, base);
      },
    },
    {
      name: "vhd-util copy of 1 GiB",
      command: vhdUtil,
      args: ["copy", "-n", child, "-N", output],
      limitS: 1.5,
      prepare: removeOutput,
    },
    {
      name: "vhd-util check -b",
      command: vhdUtil,
      args: ["check", "-b", "-n", child],
      limitS: 0.4,
    },
    { name: "vhd-util map", command: vhdUtil, args: ["map", "-n", child], limitS: Infinity },
    {
      name: "vhd-util scan of 1,000",
      command: vhdUtil,
      args: ["scan", "-f", "-m", `${folder}/scan/*.vhd`],
      limitS: 0.12,
    },
  ];
  const qemuImg = findTool("qemu-img");
  if (qemuImg === undefined) return cases;
  // qemu-img does not follow chains of VHDs, so it gets the contents of the coalesced parent.
  return [
    ...cases,
    {
      name: "qemu-img convert of 1 GiB",
      command: qemuImg,
      args: ["convert", "-f", "vpc", "-O", "vpc", base, output],
      limitS: Infinity,
      prepare: removeOutput,
    },
    { name: "qemu-img map", command: qemuImg, args: ["map", "-f", "vpc", base], limitS: Infinity },
  ];
}

interface Timing {
  readonly seconds: number;
  /** Peak memory of the process as reported by /usr/bin/time; NaN without it. */
  readonly peakMiB: number;
}

async function timeOnce({ command, args, prepare }: Case): Promise<Timing> {
  prepare?.();
  const time = findTool("/usr/bin/time");
  const report = time === undefined ? [] : ["-f", "%M", command];
  const startMs = performance.now();
  const { success, stderr } = await new Deno.Command(time ?? command, {
    args: [...report, ...args],
    stdout: "null",
    stderr: "piped",
  }).output();
  const seconds = (performance.now() - startMs) / 1000;
  const errors = new TextDecoder().decode(stderr);
  if (!success) throw new Error(`${command} ${args.join(" ")} failed: ${errors}`);
  return { seconds, peakMiB: time === undefined ? NaN : Number(errors) / 1024 };
}

async function measure(each: Case): Promise<Timing> {
  const timings: Timing[] = [];
  for (let round = 0; round < ROUNDS; round++) timings.push(await timeOnce(each));
  return {
    seconds: Math.min(...timings.map(({ seconds }) => seconds)),
    peakMiB: Math.max(...timings.map(({ peakMiB }) => peakMiB)),
  };
}

async function main(): Promise<number> {
  const folder = benchFolder();
  let status = 0;
  try {
    const start = await measure({
      name: "start",
      command: binaryPath("vhd-util"),
      args: ["--help"],
      limitS: Infinity,
    });
    console.log(`vhd-util --help: ${start.seconds.toFixed(3)} s, which the limits leave out`);
    for (const each of casesIn(folder)) {
      const { seconds, peakMiB } = await measure(each);
      const late = seconds - start.seconds > each.limitS;
      if (late) status = 1;
      const limit = each.limitS === Infinity ? "" : `, at most ${each.limitS} s${late ? "!" : ""}`;
      const memory = Number.isNaN(peakMiB) ? "" : `, ${peakMiB.toFixed(0)} MiB`;
      console.log(`${each.name.padEnd(28)} ${seconds.toFixed(3)} s${memory}${limit}`);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
  return status;
}

Deno.exit(await main());
