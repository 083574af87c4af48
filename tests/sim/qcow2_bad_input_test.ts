/**
 * Damaged QCOW2 images: each field of the header, entries of each table, and cut files. Opening fails
 * with an error that says what is wrong, or requests end. Nothing hangs, throws, or takes much memory.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SystemError } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import type { Storage } from "../../src/files/storage.ts";
import { Random } from "../../src/testing/random.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

const PATH = "/a.qcow2";
const SIZE = 4 << 20;
const SECTORS = SIZE / 512;

/** Bytes of an image with data, zeros and holes. */
function makeImage(options: Omit<CreateQcow2Options, "sizeBytes">): Uint8Array<ArrayBuffer> {
  const simulation = new Simulation({ seed: 1 });
  createQcow2(PATH, { storage: simulation.disk, sizeBytes: SIZE, ...options });
  const device = simulation.open(`qcow2:${PATH}`);
  for (let i = 0; i < 40; i++) device.write(i * 190, stampedSectors(i * 190, 30, i + 1));
  device.settle();
  device.zero(1000, 500);
  device.settle();
  device.close();
  const file = simulation.disk.open(PATH, "read");
  const bytes = new Uint8Array(file.sizeBytes());
  file.readAt(bytes, 0);
  file.close();
  simulation.close();
  return bytes;
}

function put(storage: Storage, bytes: Uint8Array<ArrayBuffer>): void {
  const file = storage.open(PATH, "create-new");
  file.writeAt(bytes, 0);
  file.close();
}

/** Uses a disk a little; requests may fail, and must end. */
function use(device: SimulatedDevice, random: Random, readOnly: boolean): void {
  const sectors = Math.min(device.vbd.sectors, 2 ** 31);
  for (let i = 0; i < 6 && sectors > 64; i++) {
    const sector = random.below(Math.min(sectors, SECTORS) - 60);
    device.read(sector, 60);
    device.status(sector, 60);
    if (readOnly) continue;
    device.settle();
    device.write(sector, stampedSectors(sector, 1 + random.below(20), 99));
    device.zero(Math.max(0, sector - 100), 1 + random.below(90));
    if (random.chance(0.3)) device.discard(sector, 60);
    device.settle();
  }
  device.read(Math.max(0, sectors - 8), Math.min(8, sectors));
  device.settle();
}

/** Opens damaged bytes for reading and for writing. Returns whether they could be opened at all. */
function tryImage(bytes: Uint8Array<ArrayBuffer>, seed: number): boolean {
  let isOpen = false;
  for (const readOnly of [true, false]) {
    const simulation = new Simulation({ seed });
    put(simulation.disk, bytes);
    try {
      const image = openQcow2(PATH, { storage: simulation.disk });
      try {
        checkQcow2(image);
      } finally {
        image.close();
      }
      const device = simulation.open(`qcow2:${PATH}`, { readOnly, retry: { timeoutMs: 0 } });
      isOpen = true;
      use(device, new Random(seed), readOnly);
      device.close();
    } catch (error) {
      assert.ok(error instanceof SystemError || isCloseError(error), String(error));
    } finally {
      simulation.close();
    }
  }
  return isOpen;
}

/** A close may fail, as of references that cannot be written. */
function isCloseError(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith("Closing ended with error");
}

const VALUES = [0n, 1n, 511n, 512n, 65535n, 0x7fffffffn, 0xffffffffn, 2n ** 55n, 2n ** 63n - 1n];
const FIELDS: readonly [number, number][] = [
  [0, 4],
  [4, 4],
  [8, 8],
  [16, 4],
  [20, 4],
  [24, 8],
  [32, 4],
  [36, 4],
  [40, 8],
  [48, 8],
  [56, 4],
  [60, 4],
  [64, 8],
  [72, 8],
  [80, 8],
  [88, 8],
  [96, 4],
  [100, 4],
  [104, 1],
];

Deno.test("each field of the header at its limits", () => {
  const image = makeImage({});
  let opened = 0;
  for (const [offset, length] of FIELDS) {
    for (const value of VALUES) {
      const bytes = image.slice();
      const view = new DataView(bytes.buffer);
      if (length === 8) view.setBigUint64(offset, value);
      else if (length === 4) view.setUint32(offset, Number(value & 0xffffffffn));
      else view.setUint8(offset, Number(value & 0xffn));
      if (tryImage(bytes, offset + 1)) opened++;
    }
  }
  assert.ok(opened > 20, `${opened}`);
});

Deno.test("files that end anywhere", () => {
  const image = makeImage({ clusterBytes: 4096 });
  for (let length = 0; length < image.length; length += 3777) {
    tryImage(image.slice(0, length), length + 1);
  }
});

for (const options of [{ clusterBytes: 512 }, { clusterBytes: 16384, extendedL2: true }, {}]) {
  Deno.test(`entries of tables that lead anywhere, ${JSON.stringify(options)}`, () => {
    const image = makeImage(options);
    const clusters = image.length / (options.clusterBytes ?? 65536);
    const random = new Random(7);
    for (let round = 0; round < 150; round++) {
      const bytes = image.slice();
      const view = new DataView(bytes.buffer);
      // Most of what is not zero in the first clusters is metadata.
      const places: number[] = [];
      for (let at = 112; at + 8 <= Math.min(bytes.length, 600_000); at += 8) {
        if (view.getUint32(at) !== 0 && view.getUint32(at + 4) % 512 === 0) places.push(at);
      }
      for (let change = 0; change < 1 + random.below(4); change++) {
        const at = places[random.below(places.length)];
        const cluster = BigInt(random.below(Math.ceil(clusters) + 3));
        const high = BigInt(random.below(256)) << 56n;
        const value = random.chance(0.5)
          ? cluster * BigInt(options.clusterBytes ?? 65536) | high
          : VALUES[random.below(VALUES.length)] | high;
        view.setBigUint64(at, value);
      }
      tryImage(bytes, round + 1);
    }
  });
}
