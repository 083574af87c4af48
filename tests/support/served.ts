/**
 * Disks that the built tapdisk serves, for tests. The built tap-ctl starts and stops them in a
 * folder of their own; leftovers are reported at the end.
 *
 * @module
 */
import assert from "node:assert/strict";
import { binaryPath, type Needs, needs, run, runOk, type RunResult } from "./tools.ts";

export interface Disk {
  readonly pid: number;
  readonly minor: number;
  /** `type:/path` */
  readonly image: string;
  readonly socket: string;
  /** The socket as a URI. */
  readonly uri: string;
}

/** The requirements of tests of served disks, plus `tools`. */
export function needsServed(...tools: string[]): Needs {
  return needs("dist/tapdisk", "dist/tap-ctl", "dist/vhd-util", ...tools);
}

/** The disk queue of tests that do not choose one; BLKTAP_TEST_QUEUE sets it. */
const TEST_QUEUE = Deno.env.get("BLKTAP_TEST_QUEUE") ?? "auto";

/** The tapdisks of one test. */
export class Tapdisks {
  /** BLKTAP_CONTROL_DIR of all tapdisks of the test. */
  readonly controlFolder: string;
  readonly #disks = new Set<Disk>();
  readonly #pids = new Set<number>();
  readonly #queue: string;
  readonly #more: Record<string, string>;

  /**
   * @param folder Where the control folder is created.
   * @param queue The disk queue, for `--queue`.
   * @param more More of the environment of tap-ctl and the tapdisks.
   */
  constructor(folder: string, queue: string = TEST_QUEUE, more: Record<string, string> = {}) {
    this.controlFolder = `${folder}/ctl`;
    this.#queue = queue;
    this.#more = more;
  }

  get #env(): Record<string, string> {
    return { BLKTAP_CONTROL_DIR: this.controlFolder, BLKTAP_DEVICE: "none", ...this.#more };
  }

  tapCtl(...args: string[]): Promise<RunResult> {
    return run(binaryPath("tap-ctl"), args, { env: this.#env });
  }

  /** Runs tap-ctl, which must succeed; returns its output. */
  async tapCtlOk(...args: string[]): Promise<string> {
    return (await runOk(binaryPath("tap-ctl"), args, { env: this.#env })).trimEnd();
  }

  /** Starts a tapdisk without a disk. */
  async spawn(): Promise<number> {
    const pid = Number(await this.tapCtlOk("spawn"));
    assert.ok(pid > 0);
    this.#pids.add(pid);
    return pid;
  }

  /** Serves an image, in tapdisk `pid` or in a new one. */
  async serve(image: string, { pid, options = [] }: {
    pid?: number;
    options?: readonly string[];
  } = {}): Promise<Disk> {
    const server = pid ?? await this.spawn();
    const minor = Number((await this.tapCtlOk("allocate")).replace(/^.*-/, ""));
    const address = ["-p", `${server}`, "-m", `${minor}`];
    await this.tapCtlOk("attach", ...address);
    const queue = this.#queue === "auto" ? [] : ["--queue", this.#queue];
    const opened = await this.tapCtl("open", ...address, "-a", image, ...queue, ...options);
    if (opened.code !== 0) {
      await this.tapCtlOk("detach", ...address);
      await this.tapCtlOk("free", "-m", `${minor}`);
      throw new Error(`Cannot serve ${image}: ${opened.stderr}`);
    }
    const socket = `${this.controlFolder}/nbd${server}.${minor}`;
    const disk = { pid: server, minor, image, socket, uri: `nbd+unix:///?socket=${socket}` };
    this.#disks.add(disk);
    return disk;
  }

  /** Stops serving a disk; its tapdisk ends with its last disk. */
  async stop(disk: Disk): Promise<void> {
    this.#disks.delete(disk);
    await this.tapCtlOk("destroy", "-p", `${disk.pid}`, "-m", `${disk.minor}`);
  }

  /** Another tapdisk has taken over all disks of `pid`, which has ended. */
  upgraded(pid: number, now: number): void {
    for (const disk of this.#disks) {
      if (disk.pid !== pid) continue;
      this.#disks.delete(disk);
      this.#disks.add({ ...disk, pid: now });
    }
    this.#pids.delete(pid);
    this.#pids.add(now);
  }

  /** A tapdisk has ended, by a signal of the test. */
  forget(pid: number): void {
    for (const disk of this.#disks) if (disk.pid === pid) this.#disks.delete(disk);
    this.#pids.delete(pid);
  }

  /** Kills a tapdisk with SIGKILL and waits until it is gone. */
  async kill(pid: number): Promise<void> {
    this.forget(pid);
    Deno.kill(pid, "SIGKILL");
    await waitUntil(() => !isRunning(pid), `process ${pid} ends`);
  }

  /** Stops all remaining disks and throws when a process or socket is left over. */
  async finish(): Promise<void> {
    for (const disk of [...this.#disks]) await this.stop(disk);
    for (const pid of this.#pids) {
      await waitUntil(() => !isRunning(pid), `tapdisk ${pid} ends with its last disk`);
      const left = Array.from(Deno.readDirSync(this.controlFolder), ({ name }) => name)
        .filter((name) => new RegExp(`^(ctl|nbd[a-z-]*)${pid}(\\.|$)`).test(name));
      assert.deepEqual(left, [], "sockets that an ended tapdisk left");
    }
  }

  /** What the disks of a failed test have under way. */
  async report(): Promise<string> {
    const lines = [...this.#disks].map(async ({ pid, minor, image }) => {
      const options = { env: this.#env, timeoutMs: 5000 };
      const args = ["stats", "-p", `${pid}`, "-m", `${minor}`];
      const stats = await run(binaryPath("tap-ctl"), args, options).catch((error) => `${error}`);
      return `${image}: ${typeof stats === "string" ? stats : stats.stdout + stats.stderr}`;
    });
    return (await Promise.all(lines)).join("\n");
  }

  /** Ends the leftovers of a failed test. */
  abandon(): void {
    for (const pid of this.#pids) if (isRunning(pid)) Deno.kill(pid, "SIGKILL");
  }
}

/** Calls `body` with a new folder and its tapdisks, and removes all of them afterwards. */
export async function withTapdisks(
  body: (tapdisks: Tapdisks, folder: string) => Promise<void>,
  { parent, queue, env }: { parent?: string; queue?: string; env?: Record<string, string> } = {},
): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-", dir: parent });
  const tapdisks = new Tapdisks(folder, queue, env);
  try {
    await body(tapdisks, folder);
    await tapdisks.finish();
  } catch (error) {
    console.log(await tapdisks.report());
    throw error;
  } finally {
    tapdisks.abandon();
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Waits for a condition. Throws after `timeoutMs`. */
export async function waitUntil(
  condition: () => boolean,
  what: string,
  timeoutMs = 60_000,
): Promise<void> {
  for (let leftMs = timeoutMs; !condition(); leftMs -= 10) {
    if (leftMs <= 0) throw new Error(`Waited ${timeoutMs} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Whether a process runs; false for a zombie. */
export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(Deno.readTextFileSync(`/proc/${pid}/status`));
  } catch {
    return false;
  }
}

/** The number of open descriptors of a process. */
export function openDescriptors(pid: number): number {
  return Array.from(Deno.readDirSync(`/proc/${pid}/fd`)).length;
}

/** The number of open descriptors of a process, once it has not changed for 300 ms. */
export async function settledDescriptors(pid: number): Promise<number> {
  let known = -1;
  for (let same = 0; same < 30; same++) {
    const now = openDescriptors(pid);
    if (now !== known) same = 0;
    known = now;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return known;
}

/** Private memory of a process in KiB. */
export function privateMemoryKib(pid: number): number {
  const rollup = Deno.readTextFileSync(`/proc/${pid}/smaps_rollup`);
  return ["Private_Dirty", "Private_Clean"]
    .map((field) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(rollup)?.[1]))
    .reduce((sum, kib) => sum + kib, 0);
}

/** Runs vhd-util, which must succeed; returns its output. */
export async function vhdUtilOk(...args: string[]): Promise<string> {
  return await runOk(binaryPath("vhd-util"), args);
}

export async function createVhd(path: string, sizeMib: number): Promise<string> {
  await vhdUtilOk("create", "-n", path, "-s", `${sizeMib}`);
  return path;
}

/** Creates a VHD with a parent. */
export async function snapshotVhd(path: string, parent: string): Promise<string> {
  await vhdUtilOk("snapshot", "-n", path, "-p", parent);
  return path;
}
