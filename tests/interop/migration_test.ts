/**
 * Whole storage migrations as xapi performs them, while a guest writes and verifies: to the end, with a
 * destination that dies halfway, and with either side full.
 *
 * @module
 */
import assert from "node:assert/strict";
import { readAll } from "../support/copy_blocks.ts";
import { Host, Migration } from "../support/migration.ts";
import { mayMount } from "../support/mounts.ts";
import { type Disk, needsServed } from "../support/served.ts";
import { runOk, withTempDir } from "../support/tools.ts";
import { type GuestReport, VerifyingGuest } from "../support/verifying_guest.ts";

const DISK_MIB = 32;
/** Room of a small host at first, and beyond what it uses when it is to become full. */
const SMALL_MIB = 256;
const MORE_MIB = 1;
/**
 * A guest waits at most 11 s for a mirror that hangs (`src/vbd/mirror.ts`); the rest is for machines
 * with more to do.
 */
const LONGEST_STALL_MS = 28_000;
/** How often xapi looks at the statistics, less than its 5 s. */
const LOOK_MS = 500;

const needed = needsServed("fio");

/** Two hosts, and a disk on the first one that a guest uses. */
interface Scene {
  readonly migration: Migration;
  readonly guest: VerifyingGuest;
  /** Takes nearly all room from the small host. */
  readonly shrink: () => Promise<void>;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Calls `body` with a new scene; `small` names the host whose images have little room. */
async function withScene(
  { small, options }: { small?: "source" | "destination"; options: readonly string[] },
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  await withTempDir(async (folder) => {
    const images = `${folder}/small`;
    const host = (name: string): Host => {
      return new Host(`${folder}/${name}`, name === small ? images : undefined);
    };
    Deno.mkdirSync(images);
    if (small !== undefined) {
      await runOk("mount", ["-t", "tmpfs", "-o", `size=${SMALL_MIB}m`, "none", images]);
    }
    const [source, destination] = [host("source"), host("destination")];
    let guest: VerifyingGuest | undefined;
    try {
      await source.create("leaf", DISK_MIB);
      const disk = await source.serve("leaf");
      guest = new VerifyingGuest(disk.uri, [`size=${DISK_MIB}M`, ...options]);
      await sleep(1500);
      const migration = new Migration(source, disk, destination, DISK_MIB);
      await body({ migration, guest, shrink: () => shrink(images) });
      await source.tapdisks.finish();
      await destination.tapdisks.finish();
    } finally {
      guest?.kill();
      for (const { tapdisks } of [source, destination]) tapdisks.abandon();
      if (small !== undefined) await runOk("umount", ["-l", images]);
    }
  });
}

async function shrink(folder: string): Promise<void> {
  const text = await runOk("df", ["--output=used", "-k", folder]);
  const usedKib = Number(text.trim().split(/\s+/)[1]);
  await runOk("mount", ["-o", `remount,size=${usedKib + MORE_MIB * 1024}k`, folder]);
}

/** Waits until the mirror has failed. */
async function untilFailed({ source, disk }: Migration): Promise<void> {
  for (let left = 240; left > 0; left--) {
    if ((await source.statistics(disk)).nbd_mirror_failed === 1) return;
    await sleep(LOOK_MS);
  }
  throw new Error("The mirror never failed");
}

async function requireSame(disk: Disk, content: Uint8Array<ArrayBuffer>): Promise<void> {
  const found = await readAll(disk.socket);
  assert.equal(found.length, content.length);
  const [words, expected] = [new Uint32Array(found.buffer), new Uint32Array(content.buffer)];
  for (let i = 0; i < words.length; i++) {
    if (words[i] !== expected[i]) assert.fail(`${disk.image} has other data at ${4 * i}`);
  }
}

function requireWork({ writes, reads, longestMs }: GuestReport, stallMs: number): void {
  assert.ok(writes > 200 && reads > 100, `${writes} writes and ${reads} reads`);
  assert.ok(longestMs < stallMs, `a request took ${longestMs} ms`);
}

/** Ends the mirror, as a migration that failed does, and requires that the disk has all. */
async function giveUp({ source, disk, dp }: Migration): Promise<void> {
  const content = await readAll(disk.socket);
  await source.pause(disk);
  await source.unpause(disk, "null");
  assert.equal((await source.statistics(disk)).nbd_mirror_failed, 0, `of ${dp}`);
  await requireSame(disk, content);
  await source.tapdisks.stop(disk);
  const again = await source.serve("leaf");
  await requireSame(again, content);
  await source.tapdisks.stop(again);
}

Deno.test({
  name: `migration: a disk moves to another host under its guest${needed.suffix}`,
  ignore: needed.ignore,
  fn: () =>
    withScene({ options: ["bssplit=4k/60:20k/30:128k/10", "rate_iops=1500"] }, async (scene) => {
      const { migration, guest } = scene;
      const { source, disk, destination } = migration;
      await migration.receiveStart();
      migration.passDescriptors();
      await migration.snapshot();
      assert.equal((await source.statistics(disk)).nbd_mirror_failed, 0);
      const copied = await migration.copySnapshot();
      assert.ok(copied > 1 << 20, `${copied} bytes of the snapshot`);
      // What the garbage collector of the storage manager does meanwhile: the mirror goes on.
      for (let i = 0; i < 3; i++) {
        await source.pause(disk);
        await source.unpause(disk);
      }
      await sleep(1000);
      assert.ok(!guest.hasEnded, "the guest ran all the time");
      const report = await guest.stop();
      assert.equal((await migration.settle()).nbd_mirror_failed, 0);
      requireWork(report, LONGEST_STALL_MS);
      const { disk: moved, content } = await migration.cutOver();
      await requireSame(moved, content);
      await destination.tapdisks.stop(moved);
    }),
});

Deno.test({
  name: `migration: the destination dies halfway, and the guest goes on${needed.suffix}`,
  ignore: needed.ignore,
  fn: () =>
    withScene({ options: ["bs=4k", "rate_iops=1500"] }, async ({ migration, guest }) => {
      const { destination } = migration;
      await migration.receiveStart();
      migration.passDescriptors();
      await migration.snapshot();
      await sleep(1000);
      await destination.tapdisks.kill(migration.mirror.pid);
      await untilFailed(migration);
      await sleep(1000);
      assert.ok(!guest.hasEnded, "the guest noticed");
      requireWork(await guest.stop(), LONGEST_STALL_MS);
      assert.equal((await migration.settle()).nbd_mirror_failed, 1);
      await giveUp(migration);
    }),
});

const full = needsServed("fio", "root", "mount", "umount");
const refused = !full.ignore && !mayMount();
const because = `${full.suffix}${refused ? " (skipped: may not mount a tmpfs)" : ""}`;

Deno.test({
  name: `migration: the source becomes full, and the destination has the rest${because}`,
  ignore: full.ignore || refused,
  fn: () =>
    withScene({ small: "source", options: ["bs=4k", "rate_iops=500"] }, async (scene) => {
      const { migration, guest, shrink } = scene;
      const { source, disk, destination } = migration;
      await migration.receiveStart();
      migration.passDescriptors();
      await migration.snapshot();
      await migration.copySnapshot();
      await shrink();
      const flag = `${source.tapdisks.controlFolder}/tapdisk-enospc${disk.minor}`;
      for (let left = 400; left > 0 && !exists(flag); left--) await sleep(300);
      assert.ok(exists(flag), "the source became full");
      await sleep(1000);
      await source.pause(disk);
      await source.unpause(disk);
      await sleep(500);
      assert.ok(!guest.hasEnded, "the guest noticed");
      requireWork(await guest.stop(), LONGEST_STALL_MS);
      assert.equal((await migration.settle()).nbd_mirror_failed, 0);
      const { disk: moved, content } = await migration.cutOver();
      await requireSame(moved, content);
      await destination.tapdisks.stop(moved);
    }),
});

Deno.test({
  name: `migration: the destination becomes full, and the guest goes on${because}`,
  ignore: full.ignore || refused,
  fn: () =>
    withScene({ small: "destination", options: ["bs=4k", "rate_iops=500"] }, async (scene) => {
      const { migration, guest, shrink } = scene;
      await migration.receiveStart();
      migration.passDescriptors();
      await migration.snapshot();
      await shrink();
      await untilFailed(migration);
      await sleep(1000);
      assert.ok(!guest.hasEnded, "the guest noticed");
      requireWork(await guest.stop(), LONGEST_STALL_MS);
      await giveUp(migration);
      const { tapdisks } = migration.destination;
      await tapdisks.kill(migration.mirror.pid);
    }),
});

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
