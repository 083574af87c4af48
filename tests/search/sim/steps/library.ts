/**
 * Work through the library (`mod.ts`) on images that no device uses.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import { Disk } from "../../../../src/bulk/disk.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { openChain } from "../../../../src/vhd/image/chain.ts";
import { encrypt } from "../formats/keys.ts";
import { formatNamed } from "../formats/registry.ts";
import { Change, type ImageModel, NOW } from "../model.ts";
import { within } from "../regions.ts";
import { SECTOR_BYTES, stamped } from "../stamps.ts";
import type { World } from "../world.ts";
import { hasIdleLeaf, idleLeaf, isFixed, isVhd } from "./offline.ts";
import { attempt, isClosed, someDevice, type Step } from "./step.ts";

/** The extents of disks up to this size are walked. */
const MOST_SECTORS = 4096 * 4096;

/** Writes through the library's `Disk`. */
async function writeByLibrary(world: World, image: ImageModel, random: Random): Promise<void> {
  const changes: Change[] = [];
  await attempt(world, { what: "library", mayBe: [] }, () => {
    const disk = new Disk(openChain(image.path, { storage: world.disk, readOnly: false }), true);
    try {
      for (let i = 1 + random.below(12); i > 0; i--) {
        const regions = [...within(world.parts.regions, { sector: 0, count: image.sectors })];
        const { sector, count } = regions[random.below(regions.length)];
        const part = 1 + random.below(count);
        const stamp = world.nextStamp();
        const what = `write by the library of ${sector}+${part} with stamp ${stamp}`;
        world.trace(() => `  ${what}`);
        const change = new Change(what, world.ticks.next());
        changes.push(change);
        for (let j = 0; j < part; j++) {
          image.mark(sector + j, { change, values: [stamp], keeps: false });
        }
        const data = stamped(sector, part, stamp);
        const { encrypted } = formatNamed(image.format);
        disk.write(encrypted ? encrypt(data, sector) : data, sector * SECTOR_BYTES);
      }
    } finally {
      disk.close();
    }
    // The block table gets new blocks in the end. Until then all writes are under way.
    for (const change of changes) {
      change.answered = true;
      change.end = change.start + 0.5;
    }
    image.flushed(world.ticks.next());
  });
  for (const change of changes) if (change.end === Infinity) change.end = world.ticks.next();
}

/** Reads through the library's `Disk`, any bytes, and compares its extents with the model. */
async function readByLibrary(world: World, image: ImageModel, random: Random): Promise<void> {
  await attempt(world, { what: "library reads", mayBe: [] }, () => {
    using disk = new Disk(openChain(image.path, { storage: world.disk }), false);
    assert.equal(disk.sizeBytes, image.sectors * SECTOR_BYTES, image.path);
    assert.deepEqual(disk.layers, layersOf(image));
    const regions = [...within(world.parts.regions, { sector: 0, count: image.sectors })];
    const whole = regions.map(({ sector, count }) => {
      const bytes = new Uint8Array(count * SECTOR_BYTES);
      disk.read(bytes, sector * SECTOR_BYTES);
      return bytes;
    });
    for (let i = 0; i < 8; i++) {
      const index = random.below(regions.length);
      const start = random.below(whole[index].length);
      const part = new Uint8Array(1 + random.below(whole[index].length - start));
      disk.read(part, regions[index].sector * SECTOR_BYTES + start);
      const same = Buffer.compare(part, whole[index].subarray(start, start + part.length)) === 0;
      assert.ok(same, "The library reads parts of sectors otherwise than whole ones");
    }
    assertExtents(world, image, disk);
    if (chainOf(image).some(({ format }) => formatNamed(format).encrypted)) return;
    for (const [i, { sector }] of regions.entries()) {
      image.compare(whole[i], sector, NOW, "A read by the library");
    }
  });
}

function chainOf(image: ImageModel): ImageModel[] {
  return image.parent === null ? [image] : [image, ...chainOf(image.parent)];
}

function layersOf(image: ImageModel): string[] {
  return chainOf(image).map(({ path }) => path);
}

/** Extents cover the disk in order, and where there is none nothing but zeros shows. */
function assertExtents(world: World, image: ImageModel, disk: Disk): void {
  let end = 0;
  for (const { offsetBytes, lengthBytes, path } of disk.extents()) {
    assert.equal(offsetBytes, end, `${image.path}: extents do not follow each other`);
    end += lengthBytes;
    if (path !== null) continue;
    for (const sector of world.hotSectors(offsetBytes / SECTOR_BYTES, lengthBytes / SECTOR_BYTES)) {
      const values = image.values(sector, NOW);
      assert.ok(values.has(0), `${image.path}: no extent holds sector ${sector}, which has data`);
    }
  }
  assert.equal(end, disk.sizeBytes, `${image.path}: extents do not cover the disk`);
}

/** Steps of the library. */
export const librarySteps: readonly Step[] = [
  {
    name: "library",
    weight: 4,
    can: ({ devices }) => devices.some((each) => isClosed(each) && isVhd(each.client.leaf)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isClosed(each) && isVhd(each.client.leaf));
      if (device === null || isFixed(device.client.leaf)) return;
      await writeByLibrary(world, device.client.leaf, random);
    },
  },
  {
    name: "library reads",
    weight: 3,
    can: hasIdleLeaf,
    async run(world, random) {
      const image = idleLeaf(world, random);
      if (image !== null && image.sectors <= MOST_SECTORS) {
        await readByLibrary(world, image, random);
      }
    },
  },
];
