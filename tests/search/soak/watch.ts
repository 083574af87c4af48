/**
 * Watches processes, logs and figures while a soak runs.
 *
 * @module
 */
import { isRunning } from "../../support/served.ts";
import type { Group, Soak } from "./context.ts";
import { Finding } from "./finding.ts";
import type { Sample } from "./flat.ts";
import { footprint, mostIoMemoryKib, processorSeconds } from "./measure.ts";
import type { ProbeReport, ProbeTask } from "./probe.ts";

const LOOK_MS = 1000;
const A_FAULT = / a fault: /;

/** Figures of a tapdisk over time, by name. */
export type Series = Map<string, Sample[]>;

/** Files that were open at a moment, and the images that were then to be open. */
export interface OpenFiles {
  readonly files: readonly string[];
  readonly images: readonly string[];
}

/** An image has one descriptor or two. */
const MOST_OF_IMAGE = 2;

/** How many descriptors are of files that are no images, or are too many of an image. */
function beside(files: readonly string[], images: readonly string[]): number {
  const left = new Map(images.map((path) => [path, MOST_OF_IMAGE]));
  return files.filter((path) => {
    const more = left.get(path) ?? 0;
    left.set(path, more - 1);
    return more <= 0;
  }).length;
}

export class Watch {
  /** Figures of the tapdisks that run from start to end, by the name of the group. */
  readonly figures = new Map<string, Series>();
  /** The files that each of those tapdisks has open, one for each descriptor, and what disks have. */
  readonly openFiles = new Map<string, OpenFiles>();
  /** Milliseconds of the probe's requests. */
  readonly latencies: Sample[] = [];
  readonly #logOffsets = new Map<number, number>();
  readonly #processor = new Map<number, number>();

  constructor(readonly soak: Soak, readonly folders: readonly string[]) {}

  /** Seconds of processor time that all tapdisks have taken. */
  get tapdiskSeconds(): number {
    return [...this.#processor.values()].reduce((sum, seconds) => sum + seconds, 0);
  }

  async run(): Promise<void> {
    const sampleMs = this.soak.options.minutes > 10 ? 10_000 : 2000;
    let sampledMs = performance.now();
    while (!this.soak.isEnding) {
      await this.soak.sleep(LOOK_MS);
      this.#lookAtProcesses();
      this.readLogs();
      if (performance.now() - sampledMs < sampleMs || this.soak.isEnding) continue;
      sampledMs = performance.now();
      if (!this.soak.mayMeasure) continue;
      for (const group of this.soak.groups) if (!group.isKilled) this.#sample(group);
    }
  }

  #lookAtProcesses(): void {
    for (const [pid, what] of this.soak.processes) {
      if (!isRunning(pid)) {
        if (this.soak.processes.has(pid)) throw new Finding(`${what} (process ${pid}) has ended`);
      } else if (what.startsWith("tapdisk")) this.#processor.set(pid, processorSeconds(pid));
    }
  }

  /** Reads what the logs have in addition, also those that were moved aside. */
  readLogs(): void {
    const folder = `${this.soak.tapdisks.controlFolder}/log`;
    for (const { name } of Deno.readDirSync(folder)) {
      using file = Deno.openSync(`${folder}/${name}`);
      const { ino, size } = file.statSync();
      const offset = this.#logOffsets.get(ino ?? 0) ?? 0;
      if (size <= offset) continue;
      file.seekSync(offset, Deno.SeekMode.Start);
      const bytes = new Uint8Array(size - offset);
      const got = file.readSync(bytes) ?? 0;
      // A line that is not complete is read next time.
      const whole = bytes.subarray(0, got).lastIndexOf(0x0a) + 1;
      this.#logOffsets.set(ino ?? 0, offset + whole);
      this.#readLog(new TextDecoder().decode(bytes.subarray(0, whole)));
    }
  }

  #readLog(text: string): void {
    for (const line of text.split("\n")) {
      const level = /^\S+ \S+ (warning|error):/.exec(line)?.[1];
      if (level !== undefined) this.soak.journal.count(`log lines: ${level}`);
      if (level !== undefined) this.soak.journal.note("log", line);
      if (A_FAULT.test(line)) throw new Finding(`A log tells of a fault: ${line}`);
    }
  }

  #sample(group: Group): void {
    // A disk that is closed for a moment takes no memory.
    if (group.disks.some(({ place }) => place === null)) return;
    const series: Series = this.figures.get(group.name) ?? new Map();
    this.figures.set(group.name, series);
    const paths = group.disks.flatMap(({ path, layers }) => [path, ...layers.map((l) => l.path)]);
    const images = paths.length;
    const { files, ...others } = footprint(group.pid, this.folders);
    const { privateKib, ioKib, sockets } = others;
    const mostIoKib = mostIoMemoryKib({ disks: group.disks.length, images, sockets });
    const figures = {
      images,
      ...others,
      heapKib: privateKib - ioKib,
      ioBeyondKib: Math.max(0, ioKib - mostIoKib),
      filesBesideImages: beside(files, paths),
    };
    this.openFiles.set(group.name, { files, images: paths });
    for (const [name, value] of Object.entries(figures)) {
      const samples = series.get(name) ?? [];
      samples.push({ atMs: performance.now(), value });
      series.set(name, samples);
    }
  }

  /** Starts the client that measures latency; returns what ends it. */
  startProbe(task: ProbeTask): () => void {
    const worker = new Worker(new URL("probe.ts", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }: MessageEvent<ProbeReport>): void => {
      const atMs = performance.now();
      for (const value of data) this.latencies.push({ atMs, value });
    };
    worker.onerror = (event): void => {
      event.preventDefault();
      this.soak.fail("probe", new Finding(`The quiet disk's client failed: ${event.message}`));
    };
    worker.postMessage(task);
    return () => worker.terminate();
  }
}
