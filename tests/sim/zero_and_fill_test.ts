/**
 * The two ways to zero sectors: `zero`, which may leave or create holes, and `fill`, which
 * allocates room like a write. The call decides, not the location of the zeros in memory.
 *
 * @module
 */
import assert from "node:assert/strict";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../src/vhd/key.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import type { Storage } from "../../src/files/storage.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { assertHolds, type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const SECTORS = 16 * MIB / 512;
/** A range of more than one step of any driver, with unaligned ends. */
const START = 1001;
const COUNT = 9001;

function createKeyed(storage: Storage, path: string, key: Uint8Array): void {
  createDynamic(path, { storage, sizeBytes: 16 * MIB });
  const nonce = new Uint8Array(32).fill(9);
  storeKeyhash(path, { storage, nonce, hash: hashKey(key, nonce) });
}

function allocatedBlocks(storage: Storage, path: string): number {
  const image = openVhd(path, { storage });
  try {
    return image.bat.filter((entry) => entry !== 0xffffffff).length;
  } finally {
    image.close();
  }
}

/** Stamps the whole disk, zeroes a range and checks that the sectors around it are unchanged. */
function overwrite(device: SimulatedDevice, kind: "zero" | "fill"): void {
  for (let at = 0; at < SECTORS; at += 512) device.write(at, stampedSectors(at, 512, 7));
  device.settle();
  const outcome = device[kind](START, COUNT);
  device.settle();
  assert.equal(outcome.errno, 0);
  assertHolds(device, START - 5, 5, 7);
  for (let at = START; at < START + COUNT; at += 500) {
    assertHolds(device, at, Math.min(500, START + COUNT - at), 0);
  }
  assertHolds(device, START + COUNT, 5, 7);
}

const NAMES = [
  "vhd:/plain.vhd",
  "vhd:/keyed.vhd",
  "log:bc:4:vhd:/keyed.vhd",
  "vhd:/child.vhd",
  "aio:/disk.raw",
  "ram:16",
  "log:bc:4:vhd:/plain.vhd",
];
const key = new Uint8Array(64).map((_, i) => i * 5);

function prepare(simulation: Simulation): void {
  const storage = simulation.disk;
  createDynamic("/plain.vhd", { storage, sizeBytes: 16 * MIB });
  createDynamic("/parent.vhd", { storage, sizeBytes: 16 * MIB });
  snapshot("/child.vhd", { storage, parent: "/parent.vhd", keepEmptyParent: true });
  if (hasLibcrypto()) createKeyed(storage, "/keyed.vhd", key);
  const raw = storage.open("/disk.raw", "create-new");
  raw.truncate(16 * MIB);
  raw.close();
}

for (const name of NAMES) {
  const keyed = name.endsWith("keyed.vhd");
  const ignore = keyed && !hasLibcrypto();
  Deno.test(`zero and fill make any range of ${name} zero`, { ignore }, () => {
    for (const kind of ["zero", "fill"] as const) {
      const simulation = new Simulation({ seed: 3 });
      prepare(simulation);
      const device = simulation.open(name, keyed ? { key: new DiskKey(key.slice()) } : {});
      overwrite(device, kind);
      device.close();
      assert.deepEqual(simulation.log, []);
      simulation.close();
    }
  });
}

Deno.test("of an empty VHD, zero takes no room, and fill takes all", () => {
  const simulation = new Simulation({ seed: 4 });
  prepare(simulation);
  const storage = simulation.disk;
  const device = simulation.open("vhd:/plain.vhd");
  device.zero(0, SECTORS);
  device.settle();
  assert.equal(allocatedBlocks(storage, "/plain.vhd"), 0);
  device.fill(4096, 4096 + 1);
  device.settle();
  const status = device.status(0, SECTORS);
  device.settle();
  device.close();
  assert.equal(allocatedBlocks(storage, "/plain.vhd"), 2);
  assert.deepEqual(status.extents, [-4096, 4097, 4097 - (SECTORS - 4096)]);
  assert.deepEqual(checkImage("/plain.vhd", { storage }).findings, []);
  simulation.close();
});

Deno.test("a write of data that lies where the zeros are is a write like any other", () => {
  const simulation = new Simulation({ seed: 5 });
  prepare(simulation);
  const device = simulation.open("vhd:/plain.vhd");
  const { requests } = device.vbd;
  let errno = -1;
  const slot = requests.takeSlot();
  requests.putDataAt(slot, simulation.context.zeros.at);
  const owner = { requestDone: (_slot: number, result: number) => void (errno = result) };
  requests.start(slot, RequestKind.Write, 8, 8, false, owner);
  simulation.runUntil(() => errno >= 0, "The write");
  requests.releaseSlot(slot);
  const status = device.status(0, 64);
  device.settle();
  assert.equal(errno, 0);
  assert.deepEqual(status.extents, [-8, 8, -48]);
  device.close();
  simulation.close();
});
