/**
 * What happens to tapdisks, servers and filesystems while clients work.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { isRunning, waitUntil } from "../../support/served.ts";
import { run } from "../../support/tools.ts";
import type { Group, Soak } from "./context.ts";
import type { SoakDisk } from "./disk.ts";
import { Finding } from "./finding.ts";
import type { Moment } from "./model.ts";
import { serve } from "./place.ts";
import type { RemoteServer } from "./servers.ts";

/** Something that happens to more than a disk. */
export interface WideEvent {
  readonly name: string;
  readonly weight: number;
  /** @returns False when it could not happen now. */
  run(world: World, random: Random): Promise<boolean>;
}

/** What wide events happen to. */
export interface World {
  readonly soak: Soak;
  readonly servers: ReadonlyMap<SoakDisk, RemoteServer>;
  /** The filesystem that becomes full; null where none can be mounted. */
  readonly smallFolder: string | null;
}

/** Holds the locks of several disks, taken in the order of their names. */
async function withLocks(disks: readonly SoakDisk[], work: () => Promise<void>): Promise<void> {
  const releases: (() => void)[] = [];
  for (const disk of [...disks].sort((a, b) => a.name < b.name ? -1 : 1)) {
    releases.push(await disk.lock.take());
  }
  try {
    await work();
  } finally {
    for (const release of releases) release();
  }
}

function pick<T>(random: Random, from: readonly T[]): T | undefined {
  return from[random.below(Math.max(1, from.length))];
}

/** Ends a tapdisk, and serves its disks again. */
async function endTapdisk(
  { soak }: World,
  { random, signal }: { random: Random; signal: "SIGKILL" | "SIGTERM" },
): Promise<boolean> {
  const group = pick(random, soak.groups.filter(({ isKilled }) => isKilled));
  if (group === undefined) return false;
  await withLocks(group.disks, async () => {
    await end(soak, group, signal);
    if (random.chance(0.3)) await soak.tapCtl(group.name, "recover");
    const looked = pick(random, group.disks.filter(({ isVhd }) => isVhd));
    if (looked !== undefined) {
      // A process that is killed may leave an image without a footer.
      const kind = signal === "SIGKILL" ? ["-i"] : [];
      await soak.vhdUtil(looked.name, "check", "-n", looked.path, "-p", "-b", ...kind);
    }
    await serveAgain(soak, group);
  });
  return true;
}

async function serveAgain(soak: Soak, group: Group): Promise<void> {
  for (const disk of group.disks) {
    if (disk.isVolatile) disk.model.reset();
    await serve(soak, group, disk);
  }
}

/** Ends the tapdisk of a group, and frees its minors. */
async function end(soak: Soak, group: Group, signal: "SIGKILL" | "SIGTERM"): Promise<void> {
  const { pid } = group;
  const minors = group.disks.map(({ place }) => place?.minor);
  for (const { name } of [group, ...group.disks]) {
    soak.journal.note(name, `${signal} to tapdisk ${pid}`);
  }
  for (const disk of group.disks) disk.interrupt();
  soak.processes.delete(pid);
  group.pid = 0;
  Deno.kill(pid, signal);
  await waitUntil(() => !isRunning(pid), `tapdisk ${pid} ends after ${signal}`, 60_000);
  if (group.isRestored) return;
  for (const minor of minors) await soak.tapCtl(group.name, "free", "-m", `${minor}`);
}

/**
 * Kills a tapdisk while it makes a snapshot that takes the name of the running image. That name
 * leads to a whole image at each moment.
 */
async function killInSnapshot({ soak }: World, random: Random): Promise<boolean> {
  const able = soak.groups.filter(({ isKilled }) => isKilled).flatMap(({ disks }) => disks)
    .filter(({ isVhd, layers, plan }) =>
      isVhd && layers.length < (plan.medium === "small" ? 2 : 5)
    );
  const disk = pick(random, able);
  if (disk === undefined) return false;
  const group = soak.groupOf(disk);
  await withLocks(group.disks, async () => {
    const aside = disk.newPath();
    const before = disk.model.moment();
    const args = ["snapshot", ...disk.address, "-n", aside, "--rename"];
    const snapshot = soak.tapdisks.tapCtl(...args);
    await soak.sleep(60 + random.below(200));
    await end(soak, group, "SIGKILL");
    const { code } = await snapshot;
    soak.journal.note(disk.name, `tap-ctl ${args.join(" ")} -> ${code}`);
    takeStock(disk, { aside, before, succeeded: code === 0 });
    await serveAgain(soak, group);
  });
  return true;
}

/** Finds out how far a snapshot came. */
function takeStock(
  disk: SoakDisk,
  { aside, before, succeeded }: { aside: string; before: Moment; succeeded: boolean },
): void {
  removeIfThere(`${disk.path}.snapshot`);
  const moved = inodeOf(aside);
  if (moved === null) {
    if (succeeded) throw new Finding(`${aside} is not there after the snapshot`);
  } else if (moved === inodeOf(disk.path)) Deno.removeSync(aside);
  else disk.pushLayer({ path: aside, before, after: disk.model.moment() });
}

function inodeOf(path: string): number | null {
  try {
    return Deno.statSync(path).ino;
  } catch {
    return null;
  }
}

function removeIfThere(path: string): void {
  if (inodeOf(path) !== null) Deno.removeSync(path);
}

/** Stops a tapdisk for seconds. */
async function stopTapdisk({ soak }: World, random: Random): Promise<boolean> {
  const group = pick(random, soak.groups.slice(1));
  if (group === undefined) return false;
  await withLocks(group.disks, async () => {
    soak.journal.note(group.name, `SIGSTOP to tapdisk ${group.pid}`);
    Deno.kill(group.pid, "SIGSTOP");
    await soak.sleep(500 + random.below(3000));
    Deno.kill(group.pid, "SIGCONT");
    soak.journal.note(group.name, `SIGCONT to tapdisk ${group.pid}`);
  });
  return true;
}

/** As logrotate does. */
async function rotateLog({ soak }: World): Promise<boolean> {
  const log = `${soak.tapdisks.controlFolder}/log/tapdisk.log`;
  // Tapdisks that start now open the new file, or are told with the others.
  Deno.renameSync(log, `${log}.${Math.round(performance.now())}`);
  for (const { pid } of soak.groups) if (pid !== 0) Deno.kill(pid, "SIGHUP");
  soak.journal.note("log", "rotated, SIGHUP to all tapdisks");
  await soak.sleep(1000);
  if (!soak.isEnding) Deno.statSync(log);
  return true;
}

async function disturbServer({ soak, servers }: World, random: Random): Promise<boolean> {
  const [disk, server] = pick(random, [...servers]) ?? [];
  if (disk === undefined || server === undefined) return false;
  await withLocks([disk], async () => {
    if (random.chance(0.4)) {
      server.signal("SIGSTOP");
      await soak.sleep(500 + random.below(3000));
      server.signal("SIGCONT");
    } else {
      await server.kill(random.chance(0.7) ? "SIGKILL" : "SIGTERM");
      await soak.sleep(random.below(3000));
      await server.start();
      soak.journal.note(disk.name, "its server is back");
    }
  });
  return true;
}

interface Statistics {
  readonly retries: number;
  readonly retrying: number;
  readonly reqs_outstanding: number;
}

async function statisticsOf(soak: Soak, disk: SoakDisk): Promise<Statistics> {
  return JSON.parse(await soak.tapCtl(disk.name, "stats", ...disk.address));
}

/** Fills a filesystem, waits until a disk on it retries, and gives room again. */
async function fillSmallDisk(world: World, random: Random): Promise<boolean> {
  const { soak, smallFolder } = world;
  if (smallFolder === null) return false;
  const disks = soak.disks.filter(({ plan }) => plan.medium === "small");
  await withLocks(disks, async () => {
    const filler = `${smallFolder}/filler`;
    // A new image on top has no block yet, so that each write needs room.
    for (const disk of disks.filter(({ isVhd, layers }) => isVhd && layers.length < 3)) {
      const path = disk.newPath();
      const before = disk.model.moment();
      const old = disk.path;
      await soak.tapCtl(disk.name, "snapshot", ...disk.address, "-n", path);
      disk.pushLayer({ path: old, before, after: disk.model.moment() });
      disk.image = disk.imageOf(path);
    }
    try {
      await fillWith(filler);
      soak.journal.note("small disk", "full");
      const startMs = performance.now();
      let retrying = 0;
      while (retrying === 0 && performance.now() - startMs < 5000 && !soak.isEnding) {
        await soak.sleep(500);
        for (const disk of disks) retrying += (await statisticsOf(soak, disk)).retrying;
      }
      if (retrying > 0) soak.journal.count("disks that waited for room");
      await soak.sleep(random.below(2000));
    } finally {
      Deno.removeSync(filler);
      soak.journal.note("small disk", "has room again");
    }
    for (const disk of disks) await untilGoingOn(soak, disk);
  });
  return true;
}

/** Takes all room that a filesystem has; dd ends with an error then. */
async function fillWith(path: string): Promise<void> {
  const { code } = await run("dd", ["if=/dev/zero", `of=${path}`, "bs=1M"]);
  if (code === 0) throw new Error(`${path} takes all that is written`);
}

async function untilGoingOn(soak: Soak, disk: SoakDisk): Promise<void> {
  for (let attempt = 0; attempt < 20; attempt++) {
    if ((await statisticsOf(soak, disk)).retrying === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Finding(`${disk.name} still retries requests, and its filesystem has room`);
}

/** Looks at all disks as a monitor does. */
async function look({ soak }: World, random: Random): Promise<boolean> {
  const list = await soak.tapCtl("monitor", "list", "--json");
  if (!Array.isArray(JSON.parse(list))) throw new Finding(`tap-ctl list printed ${list}`);
  const disk = pick(random, soak.disks);
  if (disk === undefined) return false;
  await withLocks([disk], async () => {
    if (disk.place === null) return;
    const { reqs_outstanding: outstanding } = await statisticsOf(soak, disk);
    if (!(outstanding >= 0 && outstanding < 1000)) {
      throw new Finding(`${disk.name} has ${outstanding} requests outstanding`);
    }
  });
  return true;
}

/** All events of more than one disk. */
export const WIDE_EVENTS: readonly WideEvent[] = [
  {
    name: "SIGKILL of a tapdisk",
    weight: 8,
    run: (world, random) => endTapdisk(world, { random, signal: "SIGKILL" }),
  },
  {
    name: "SIGTERM of a tapdisk",
    weight: 3,
    run: (world, random) => endTapdisk(world, { random, signal: "SIGTERM" }),
  },
  { name: "SIGKILL of a tapdisk within a snapshot", weight: 5, run: killInSnapshot },
  { name: "SIGSTOP of a tapdisk", weight: 5, run: stopTapdisk },
  { name: "log rotation", weight: 2, run: rotateLog },
  { name: "a server dies or stops", weight: 8, run: disturbServer },
  { name: "a full filesystem", weight: 4, run: fillSmallDisk },
  { name: "tap-ctl list and stats", weight: 10, run: look },
];
