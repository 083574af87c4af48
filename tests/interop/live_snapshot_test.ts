import assert from "node:assert/strict";
import { openDisk } from "../../mod.ts";
import { fio } from "../support/fio.ts";
import { NbdClient } from "../support/nbd_client.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  type Tapdisks,
  vhdUtilOk,
  withTapdisks,
} from "../support/served.ts";

const DISK_MIB = 32;
const MIB = 1 << 20;
const SNAPSHOTS = 100;
/** This test writes after the range that fio uses. */
const FIO_MIB = 16;
const STEADY_AT = 20 * MIB;
const STEADY_BYTES = 64 * 1024;
/** Two counters in different blocks: the second is written after the first. */
const FIRST_AT = 24 * MIB;
const SECOND_AT = 28 * MIB;

const { ignore, suffix } = needsServed("fio");

/** A sector that contains a number. */
function sectorOf(value: number): Uint8Array {
  return new Uint8Array(new Uint32Array(128).fill(value).buffer);
}

/** Increments a counter in two places, one write after the other, until it is stopped. */
async function count(socket: string, signal: { stop: boolean }): Promise<number> {
  const { client } = await NbdClient.open(socket);
  let value = 0;
  while (!signal.stop) {
    value++;
    await client.write(FIRST_AT, sectorOf(value));
    await client.write(SECOND_AT, sectorOf(value));
  }
  await client.disconnect();
  return value;
}

/** Makes snapshots one after the other; returns the layers below, the oldest first. */
async function takeSnapshots(
  tapdisks: Tapdisks,
  disk: Disk,
  folder: string,
): Promise<{ layers: string[]; longestMs: number }> {
  const { client } = await NbdClient.open(disk.socket);
  const layers: string[] = [];
  let longestMs = 0;
  for (let i = 1; i <= SNAPSHOTS; i++) {
    await client.write(STEADY_AT + (i % 16) * 4096, steadyPart(i));
    // Alternately a new name for the new image and a new name for the running one.
    const rename = i % 2 === 0 ? ["--rename"] : [];
    const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
    const path = `${folder}/${i}.vhd`;
    const text = await tapdisks.tapCtlOk("snapshot", ...address, "-n", path, ...rename, "--json");
    const { image, parent, stall_ms } = JSON.parse(text);
    assert.equal(image.startsWith(`vhd:${folder}/`), true);
    layers.push(parent);
    longestMs = Math.max(longestMs, stall_ms);
  }
  await client.disconnect();
  return { layers, longestMs };
}

function steadyPart(stamp: number): Uint8Array {
  return new Uint8Array(new Uint32Array(1024).fill(stamp).buffer);
}

/** Checks that each layer has the writes before its snapshot, and no later ones. */
function assertMoments(layers: readonly string[]): void {
  const steady = new Uint8Array(STEADY_BYTES);
  let before = 0;
  for (const [index, path] of layers.entries()) {
    const moment = index + 1;
    steady.set(steadyPart(moment), (moment % 16) * 4096);
    using disk = openDisk(path);
    const held = new Uint8Array(STEADY_BYTES);
    disk.read(held, STEADY_AT);
    assert.deepEqual(held, steady, `${path}, layer ${moment}`);
    const words = new Uint32Array(128);
    const sector = new Uint8Array(words.buffer);
    disk.read(sector, FIRST_AT);
    const [first] = words;
    assert.ok(words.every((word) => word === first), `${path}: a torn sector`);
    disk.read(sector, SECOND_AT);
    const [second] = words;
    const order = `${path}: ${first} and ${second}, after ${before}`;
    assert.ok(first === second || first === second + 1, order);
    assert.ok(first >= before, order);
    before = first;
  }
  assert.ok(before > SNAPSHOTS / 10, `it counted to ${before} only`);
}

Deno.test({
  name: `${SNAPSHOTS} snapshots of a disk that is being written keep each moment${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = await createVhd(`${folder}/disk.vhd`, DISK_MIB);
      const disk = await tapdisks.serve(`vhd:${path}`);
      const signal = { stop: false };
      const counter = count(disk.socket, signal);
      // fio writes for as long as snapshots are made, and verifies its writes as it runs.
      const verified = fio(disk.uri, [
        "rw=randwrite",
        "bs=4k",
        "iodepth=8",
        `size=${FIO_MIB}M`,
        "io_size=1G",
        "rate=4M",
        "verify=crc32c",
        "verify_backlog=256",
        "verify_fatal=1",
        "randrepeat=0",
        "time_based",
        "runtime=20",
      ], { timeoutMs: 180_000 });
      const { layers, longestMs } = await takeSnapshots(tapdisks, disk, folder);
      signal.stop = true;
      await counter;
      const [job] = await verified;
      assert.equal(job.error, 0);
      assert.ok(job.write.io_bytes > MIB && job.read.io_bytes > MIB, "fio wrote and verified");
      assert.ok(longestMs < 30_000, `requests waited up to ${longestMs} ms`);
      await tapdisks.stop(disk);
      assert.equal(new Set(layers).size, SNAPSHOTS);
      assertMoments(layers);
      await vhdUtilOk("check", "-n", `${folder}/disk.vhd`, "-p");
    }),
});

Deno.test({
  name: `a raw image goes on under a VHD that takes its name${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = `${folder}/disk.raw`;
      Deno.writeFileSync(path, new Uint8Array(4 * MIB).fill(1));
      const disk = await tapdisks.serve(`aio:${path}`);
      const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
      const { client } = await NbdClient.open(disk.socket);
      const aside = `${folder}/aside.raw`;
      const text = await tapdisks.tapCtlOk("snapshot", ...address, "-n", aside, "--rename");
      assert.match(
        text,
        /^vhd:\/.*\/disk\.raw is open, on .*\/aside\.raw\nrequests waited [\d.]+ ms$/,
      );
      await client.write(0, new Uint8Array(512).fill(2));
      assert.deepEqual(await client.read(0, 1024), new Uint8Array(1024).fill(2).fill(1, 512));
      await client.disconnect();
      const refused = await tapdisks.tapCtl("snapshot", ...address, "-n", aside);
      assert.equal(refused.code, 17, refused.stderr);
      assert.match(refused.stderr, /aside\.raw exists/);
      await tapdisks.stop(disk);
      assert.ok(Deno.readFileSync(aside).every((byte) => byte === 1));
    }),
});
