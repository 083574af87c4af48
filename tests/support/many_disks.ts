/**
 * Hundreds of disks, opened by several callers at once with the calls of XenServer's storage manager, in
 * its order: allocate, list by path, spawn, attach, open, list by minor.
 *
 * @module
 */
import { binaryPath, run, runOk } from "./tools.ts";
import { type Answer, TapCtl } from "./storage_manager.ts";

/** How many storage managers open disks at once. */
const CALLERS = 8;

/** A disk that a caller has opened. */
export interface OpenedDisk {
  readonly pid: number;
  readonly minor: number;
  readonly path: string;
}

/** What opening, listing and closing the disks took. */
export interface ManyFigures {
  readonly openSeconds: number;
  readonly listSeconds: number;
  readonly closeSeconds: number;
  /** Processor time of all programs that were started to open the disks, without the tapdisks. */
  readonly openProcessorSeconds: number;
  readonly processes: number;
  /** Anonymous memory of all tapdisks, KiB. */
  readonly anonymousKib: number;
}

/** Anonymous memory of a process, KiB, also what is in swap. */
function anonymousKib(pid: number): number {
  const rollup = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  return ["Anonymous", "Swap"]
    .map((field) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(rollup)?.[1] ?? 0))
    .reduce((sum, kib) => sum + kib, 0);
}

/** Processor time of the children of this process that have ended, seconds. */
function childrenSeconds(): number {
  const stat = Deno.readTextFileSync("/proc/self/stat");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  // cutime and cstime, in ticks of 10 ms.
  return (Number(fields[13]) + Number(fields[14])) / 100;
}

function stdoutOf({ code, stdout }: Answer): string {
  if (code !== 0) throw new Error(`tap-ctl ended with status ${code}`);
  return stdout.trimEnd();
}

/** Storage managers that share tapdisks. */
export class ManyDisks {
  readonly #env: Record<string, string>;
  readonly #folder: string;
  readonly #tapCtl: TapCtl;
  readonly disks: OpenedDisk[] = [];

  /**
   * @param folder Where images and the control folder are.
   * @param disksPerProcess 1 starts a process for each disk.
   */
  constructor(folder: string, disksPerProcess: number) {
    this.#folder = folder;
    this.#env = {
      BLKTAP_CONTROL_DIR: this.control,
      BLKTAP_DISKS_PER_PROCESS: `${disksPerProcess}`,
      BLKTAP_IDLE_SECONDS: "1",
    };
    this.#tapCtl = new TapCtl((program, args) =>
      run(binaryPath(program), [...args], { env: this.#env })
    );
  }

  get control(): string {
    return `${this.#folder}/control`;
  }

  get pids(): number[] {
    return [...new Set(this.disks.map(({ pid }) => pid))];
  }

  /** `Tapdisk.launch_on_tap` of blktap2.py. */
  async #open(path: string): Promise<void> {
    const minor = Number(stdoutOf(await this.#tapCtl.allocate()).split("-").pop());
    if (TapCtl.rows(stdoutOf(await this.#tapCtl.list({ path }))).length > 0) {
      throw new Error(`${path} is served already`);
    }
    const pid = Number(stdoutOf(await this.#tapCtl.spawn()));
    stdoutOf(await this.#tapCtl.attach(pid, minor));
    stdoutOf(await this.#tapCtl.open(pid, minor, `vhd:${path}`));
    const rows = TapCtl.rows(stdoutOf(await this.#tapCtl.list({ minor })));
    if (rows.length !== 1 || rows[0].pid !== pid) throw new Error(`minor ${minor} is not listed`);
    this.disks.push({ pid, minor, path });
  }

  /** `Tapdisk.shutdown` of blktap2.py. */
  async #close({ pid, minor }: OpenedDisk): Promise<void> {
    stdoutOf(await this.#tapCtl.close(pid, minor));
    stdoutOf(await this.#tapCtl.detach(pid, minor));
    stdoutOf(await this.#tapCtl.free(minor));
  }

  async #all<Item>(items: readonly Item[], work: (item: Item) => Promise<void>): Promise<number> {
    const left = [...items];
    const startMs = performance.now();
    await Promise.all(Array.from({ length: CALLERS }, async () => {
      for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item);
    }));
    return (performance.now() - startMs) / 1000;
  }

  /** Creates images; returns their paths. */
  async images(count: number): Promise<string[]> {
    const paths = Array.from({ length: count }, (_, i) => `${this.#folder}/${i}.vhd`);
    await runOk(binaryPath("vhd-util"), ["create", "-n", paths[0], "-s", "64"]);
    // The unique number of an image does not matter to a disk without children.
    for (const path of paths.slice(1)) Deno.copyFileSync(paths[0], path);
    return paths;
  }

  /** Opens disks on these images; returns seconds. */
  open(paths: readonly string[]): Promise<number> {
    return this.#all(paths, (path) => this.#open(path));
  }

  /** Lists all disks; returns seconds, the best of three, as other programs may run. */
  async list(): Promise<number> {
    let bestMs = Infinity;
    for (let time = 0; time < 3; time++) {
      const startMs = performance.now();
      const rows = TapCtl.rows(stdoutOf(await this.#tapCtl.list()));
      bestMs = Math.min(bestMs, performance.now() - startMs);
      const opened = rows.filter(({ args }) => args !== undefined).length;
      if (opened !== this.disks.length) throw new Error(`${opened} disks are listed`);
    }
    return bestMs / 1000;
  }

  anonymousKib(): number {
    return this.pids.map(anonymousKib).reduce((sum, kib) => sum + kib, 0);
  }

  /** Closes all disks; returns seconds. */
  async close(): Promise<number> {
    const seconds = await this.#all(this.disks.splice(0), (disk) => this.#close(disk));
    return seconds;
  }

  /** Ends what is left after an error. */
  killAll(): void {
    for (const pid of this.pids) {
      try {
        Deno.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
  }
}

/** Opens, lists and closes disks. */
export async function measureMany(
  folder: string,
  { disks, perProcess }: { disks: number; perProcess: number },
): Promise<ManyFigures> {
  const many = new ManyDisks(folder, perProcess);
  try {
    const paths = await many.images(disks);
    const beforeSeconds = childrenSeconds();
    const openSeconds = await many.open(paths);
    const openProcessorSeconds = childrenSeconds() - beforeSeconds;
    const listSeconds = await many.list();
    const { length: processes } = many.pids;
    const anonymousKib = many.anonymousKib();
    const closeSeconds = await many.close();
    const seconds = { openSeconds, openProcessorSeconds, listSeconds, closeSeconds };
    return { ...seconds, processes, anonymousKib };
  } finally {
    many.killAll();
  }
}
