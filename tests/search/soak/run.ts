/**
 * A soak from start to report.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { Tapdisks } from "../../support/served.ts";
import { hasTool, runOk } from "../../support/tools.ts";
import { misbehave } from "./bad_clients.ts";
import { type Group, Soak, type SoakOptions } from "./context.ts";
import { SoakDisk } from "./disk.ts";
import { DISK_EVENTS } from "./events.ts";
import { type Baseline, baselineOf, closeAll, inParallel, requireNothingLeft } from "./final.ts";
import { inviteGuests } from "./guests.ts";
import { Journal } from "./journal.ts";
import { processorSeconds } from "./measure.ts";
import { makeImages, serve, useBothQueues } from "./place.ts";
import { ENCRYPTED, planOf, QUIET_KIND } from "./plan.ts";
import { WIDE_EVENTS, type World } from "./process_events.ts";
import { describeFinding, figuresOf, type Report, requireFlat } from "./report.ts";
import type { RemoteServer } from "./servers.ts";
import { Watch } from "./watch.ts";
import { Writer } from "./writer.ts";

const LANES = 3;
const SMALL_MIB = 512;
/** The part of events that happen to more than a disk. */
const WIDE = 0.3;
const TMPFS = "/dev/shm";

/** Where the files of a soak are. */
interface Folders {
  readonly disk: string;
  readonly tmpfs: string;
  /** A filesystem of its own, which can be filled; null where none can be mounted. */
  readonly small: string | null;
}

/** Options and what a program that runs a soak hears of it. */
export interface SoakRun extends SoakOptions {
  /** Is called before the soak is set up; `end` ends it before its time. */
  readonly started: (soak: Soak) => void;
}

/** Runs a soak. It leaves no files when nothing was found. */
export async function runSoak(options: SoakRun): Promise<Report> {
  const disk = Deno.makeTempDirSync({ prefix: "blktap-soak-", dir: options.where });
  const tmpfs = Deno.makeTempDirSync({ prefix: "blktap-soak-", dir: tmpfsFolder() });
  const tapdisks = new Tapdisks(disk);
  const journal = new Journal(`${disk}/journal`);
  const soak = new Soak(options, disk, tapdisks, journal);
  const folders = { disk, tmpfs, small: await mountSmall(`${disk}/small`) };
  const course = new Course(soak, folders);
  options.started(soak);
  try {
    return await course.run();
  } finally {
    journal.close();
    course.abandon();
    if (folders.small !== null) await runOk("umount", ["-l", folders.small]);
    if (soak.finding === null) {
      for (const one of [disk, tmpfs]) Deno.removeSync(one, { recursive: true });
    }
  }
}

function tmpfsFolder(): string | undefined {
  try {
    return Deno.statSync(TMPFS).isDirectory ? TMPFS : undefined;
  } catch {
    return undefined;
  }
}

async function mountSmall(folder: string): Promise<string | null> {
  if (Deno.uid() !== 0 || !hasTool("mount")) return null;
  Deno.mkdirSync(folder);
  try {
    await runOk("mount", ["-t", "tmpfs", "-o", `size=${SMALL_MIB}m`, "none", folder]);
    return folder;
  } catch {
    // In a container, root may not mount.
    Deno.removeSync(folder);
    return null;
  }
}

/** The parts of a soak in their order. */
class Course {
  readonly #servers = new Map<SoakDisk, RemoteServer>();
  readonly #baselines = new Map<Group, Baseline>();
  readonly #skipped: string[] = [];
  readonly #watch: Watch;

  constructor(readonly soak: Soak, readonly folders: Folders) {
    this.#watch = new Watch(soak, Object.values(folders).filter((folder) => folder !== null));
  }

  async run(): Promise<Report> {
    const startMs = performance.now();
    const { soak } = this;
    let [loadMs, endMs] = [startMs, startMs];
    try {
      this.#plan();
      await this.#setUp();
      loadMs = performance.now();
      // The end takes about twice as long as the beginning; both are part of the time.
      const setUpMs = loadMs - startMs;
      const allMs = soak.options.minutes * 60_000;
      await this.#load(Math.max(allMs / 2, allMs - 3 * setUpMs));
      endMs = performance.now();
      if (soak.finding === null) await closeAll(soak, this.#servers, this.#baselines);
      if (soak.finding === null) await requireNothingLeft(soak, []);
      this.#watch.readLogs();
      // A short soak has not enough samples to judge what rises.
      if (soak.finding === null && soak.options.minutes >= 2) requireFlat(this.#watch);
    } catch (error) {
      soak.fail("soak", error);
    }
    const seconds = (performance.now() - startMs) / 1000;
    const processor = processorSeconds(Deno.pid) + this.#watch.tapdiskSeconds;
    const found = describeFinding(soak);
    return {
      seed: soak.options.seed,
      seconds,
      setUpSeconds: (loadMs - startMs) / 1000,
      loadSeconds: (endMs - loadMs) / 1000,
      disks: soak.disks.length,
      tapdisks: soak.groups.length,
      processors: processor / seconds,
      counts: soak.journal.counts,
      figures: figuresOf(this.#watch),
      skipped: this.#skipped,
      ...found,
      folders: found.finding === null ? [] : [this.folders.disk, this.folders.tmpfs],
    };
  }

  #plan(): void {
    const { soak, folders } = this;
    const missing = new Set<string>();
    const skip = (what: string, why: string): void => {
      missing.add(what);
      this.#skipped.push(why);
    };
    if (!hasTool("nbdkit")) skip("nbdkit", "disks of nbdkit: it is not installed");
    if (!hasTool("qemu-nbd")) skip("qemu-nbd", "disks of qemu-nbd: it is not installed");
    if (!soak.mayMeasure) {
      this.#skipped.push("memory and descriptors: only root may see them");
      skip(ENCRYPTED, "encrypted disks: only root may change images beside a tapdisk with a key");
    }
    if (folders.small === null) skip("small", "full filesystems: no tmpfs can be mounted");
    let number = 0;
    for (const { disks, ...plan } of planOf(soak.random("plan"), missing)) {
      const made = disks.map((disk) => {
        const folder = { ...folders, small: folders.small ?? folders.disk }[disk.medium];
        return new SoakDisk(disk, ++number, `${folder}/${disk.name}`);
      });
      soak.groups.push({ ...plan, disks: made, pid: 0 });
    }
  }

  async #setUp(): Promise<void> {
    const { soak } = this;
    await inParallel(soak.disks, async (disk) => {
      const server = await makeImages(soak, disk);
      if (server !== null) this.#servers.set(disk, server);
    });
    await inParallel(soak.groups, async (group) => {
      for (const [index, disk] of group.disks.entries()) {
        await serve(soak, group, disk);
        if (index > 0 || group.isKilled || !soak.mayMeasure) continue;
        await useBothQueues(soak, disk);
        this.#baselines.set(group, baselineOf(group.pid));
      }
    });
  }

  /** Runs clients and events until the time is over or something is found. */
  async #load(milliseconds: number): Promise<void> {
    const { soak } = this;
    const timer = setTimeout(() => soak.end(), milliseconds);
    const quiet = soak.disks.find(({ plan }) => plan.kind === QUIET_KIND);
    const socket = quiet?.place?.socket ?? "";
    const endProbe = this.#watch.startProbe({ socket, intervalMs: 40 });
    const work: Promise<void>[] = [this.#guard("soak", this.#watch.run())];
    for (const disk of soak.disks) {
      for (let lane = 0; lane < disk.plan.writers; lane++) {
        work.push(this.#guard(disk.name, new Writer(soak, disk, lane).run()));
      }
    }
    const pauseMs = 120_000 / soak.options.events;
    work.push(this.#guard("bad clients", misbehave(soak, pauseMs)));
    for (const guest of ["fio", "qemu-io"] as const) {
      if (hasTool(guest)) {
        work.push(this.#guard(guest, inviteGuests(soak, guest, { lane: 0, pauseMs })));
      } else this.#skipped.push(`clients of ${guest}: it is not installed`);
    }
    const events = Promise.all(Array.from({ length: LANES }, (_, lane) => this.#events(lane)));
    await soak.whenEnding;
    clearTimeout(timer);
    endProbe();
    for (const disk of soak.disks) disk.end();
    await events;
    // After a finding the rest is killed, so it may never end.
    if (soak.finding === null) await Promise.race([Promise.all(work), soak.whenFound]);
  }

  async #guard(subject: string, work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      this.soak.fail(subject, error);
    }
  }

  /** Makes one event after the other happen. */
  async #events(lane: number): Promise<void> {
    const { soak } = this;
    const random = soak.random(`events ${lane}`);
    const everyMs = LANES * 60_000 / soak.options.events;
    const world = { soak, servers: this.#servers, smallFolder: this.folders.small };
    while (!soak.isEnding) {
      await soak.sleep(everyMs / 2 + random.below(everyMs));
      if (soak.isEnding) return;
      if (random.chance(WIDE)) await this.#wideEvent(world, random);
      else await this.#diskEvent(random);
    }
  }

  async #wideEvent(world: World, random: Random): Promise<void> {
    const event = weighted(random, WIDE_EVENTS);
    try {
      if (await event.run(world, random)) this.soak.journal.count(`events: ${event.name}`);
    } catch (error) {
      this.soak.fail(event.name, error);
    }
  }

  async #diskEvent(random: Random): Promise<void> {
    const { soak } = this;
    const event = weighted(random, DISK_EVENTS);
    const able = soak.busyDisks.filter((disk) => !disk.lock.isHeld && event.suits(disk));
    if (able.length === 0) return;
    const disk = able[random.below(able.length)];
    const release = await disk.lock.take();
    try {
      if (disk.place === null) return;
      soak.journal.note(disk.name, `event: ${event.name}`);
      await event.run(soak, disk, random);
      soak.journal.count(`events: ${event.name}`);
    } catch (error) {
      soak.fail(disk.name, error);
    } finally {
      release();
    }
  }

  /** Ends the processes that are left of a soak that failed. */
  abandon(): void {
    for (const pid of this.soak.processes.keys()) {
      try {
        Deno.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
  }
}

function weighted<T extends { readonly weight: number }>(
  random: Random,
  choices: readonly T[],
): T {
  let dice = random.below(choices.reduce((sum, { weight }) => sum + weight, 0));
  for (const choice of choices) {
    if (dice < choice.weight) return choice;
    dice -= choice.weight;
  }
  return choices[0];
}
