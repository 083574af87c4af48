/**
 * Offline work on images that no device uses, or that a device has paused.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import { Errno } from "../../../../ffi/errno.ts";
import { copyImage } from "../../../../src/bulk/copy.ts";
import { Disk } from "../../../../src/bulk/disk.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { openChain } from "../../../../src/vhd/image/chain.ts";
import { VHD_CREATOR_TAP } from "../../../../src/vhd/format/footer.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { fillImage, preallocate } from "../../../../src/vhd/fill.ts";
import { revertJournal } from "../../../../src/vhd/resize/journal_revert.ts";
import { growWithinMetadata, resizeVhd } from "../../../../src/vhd/resize/resize.ts";
import { formatNamed } from "../formats/registry.ts";
import { Change, ImageModel, NOW } from "../model.ts";
import { within } from "../regions.ts";
import { SECTOR_BYTES, stamped } from "../stamps.ts";
import type { World } from "../world.ts";
import { attempt, isClosed, isOpen, someDevice, type Step } from "./step.ts";

/** Disks up to this size are filled. */
const FILL_SECTORS = 4 * 4096;
/** Disks up to this size are copied as fixed images are: sector by sector. */
const FIXED_SECTORS = 8 * 4096;
const MOST_SECTORS = 1_044_480 * 4096;

/** Whether an image is a VHD. */
export function isVhd({ format }: ImageModel): boolean {
  return formatNamed(format).parentAs === "vhd";
}

/** A leaf that no device has open. */
function idleLeaf(world: World, random: Random): ImageModel | null {
  const device = someDevice(world, random, (each) => !isOpen(each) && isVhd(each.client.leaf));
  return device?.client.leaf ?? null;
}

function hasIdleLeaf({ devices }: World): boolean {
  return devices.some((each) => !isOpen(each) && isVhd(each.client.leaf));
}

/** Reads all regions of an image offline. */
export function readOffline(world: World, image: ImageModel): Uint8Array<ArrayBuffer>[] {
  const reader = formatNamed(image.format).reader(world.disk, image.path);
  try {
    const whole = { sector: 0, count: image.sectors };
    return [...within(world.parts.regions, whole)].map(({ sector, count }) => {
      const bytes = new Uint8Array(count * SECTOR_BYTES);
      reader.read(bytes, sector);
      image.compare(bytes, sector, NOW, "A read offline");
      return bytes;
    });
  } finally {
    reader.close();
  }
}

/** Notes that an image has the values of another. */
function takeValues(world: World, to: ImageModel, from: ImageModel): void {
  const change = new Change(`copied from ${from.path}`, world.ticks.next());
  Object.assign(change, { end: world.ticks.next(), answered: true, durable: true });
  for (const sector of world.hotSectors(0, from.sectors)) {
    const values = [...from.values(sector, NOW)];
    if (values.length === 1) to.settle(sector, values[0]);
    else to.mark(sector, { change, values, keeps: false });
  }
}

async function copy(world: World, image: ImageModel): Promise<void> {
  const output = world.newPath();
  const made = await attempt(
    world,
    { what: "copy", mayBe: [output] },
    () =>
      copyImage(image.path, output, {
        makeContext: world.disk.bulkContext({
          scheduler: world.scheduler,
          latencyMs: world.parts.latencyMs,
        }),
      }),
  );
  if (!made) return;
  const format = image.format === "fixed" ? "fixed" : "dynamic";
  const copied = new ImageModel(output, image.sectors, null, format);
  takeValues(world, copied, image);
  world.images.set(output, copied);
  await attempt(world, { what: "compare a copy", mayBe: [] }, () => {
    const [a, b] = [readOffline(world, image), readOffline(world, copied)];
    a.forEach((bytes, i) => assert.ok(Buffer.compare(bytes, b[i]) === 0, "A copy differs"));
  });
  await remove(world, copied);
}

/** Removes the file of an image that nothing uses. */
export async function remove(world: World, image: ImageModel): Promise<void> {
  const { path } = image;
  const removed = await attempt(
    world,
    { what: "remove", mayBe: [], vanishing: [path] },
    () => world.disk.remove(path),
  );
  // A removal whose sync failed took place, and a power cut may undo it.
  if (removed || !world.disk.exists(path)) {
    world.images.delete(path);
    if (!removed) world.leftovers.add(path);
  }
}

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
        disk.write(stamped(sector, part, stamp), sector * SECTOR_BYTES);
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

async function resize(world: World, image: ImageModel, random: Random): Promise<void> {
  const mib = 2048;
  const growth = random.chance(0.2) ? 300 * 4096 : mib * (1 + random.below(8));
  const sectors = Math.ceil((image.sectors + growth) / 4096) * 4096;
  if (sectors > MOST_SECTORS || (image.format === "fixed" && growth > 8 * mib)) return;
  const journal = world.newPath(".journal");
  let hasReserve = false;
  let isOurs = false;
  const opened = await attempt(world, { what: "open", mayBe: [] }, () => {
    const found = openVhd(image.path, { storage: world.disk });
    found.close();
    const { header, sectorsPerBlock, footer } = found;
    hasReserve = (header?.maxBatEntries ?? 0) * sectorsPerBlock >= sectors;
    isOurs = footer.creatorApplication === VHD_CREATOR_TAP;
  });
  if (!opened || !isOurs) return;
  const options = { storage: world.disk, sizeBytes: sectors * SECTOR_BYTES };
  const done = await attempt(
    world,
    {
      what: hasReserve ? "resize within the metadata" : "resize",
      mayBe: [journal],
      journal: { path: journal, image: image.path },
      sizes: new Map([[image.path, sectors]]),
      // The metadata of an image of another program may lie where it cannot grow.
      refusals: image.format === "made" ? [Errno.EINVAL] : [],
    },
    () =>
      hasReserve
        ? growWithinMetadata(image.path, options)
        : resizeVhd(image.path, { ...options, journal }),
  );
  if (!done) await recoverResize(world, image, journal);
  else image.sectors = sectors;
}

/** After a resize that failed, and may not have been able to take its steps back. */
async function recoverResize(world: World, image: ImageModel, journal: string): Promise<void> {
  world.heal();
  if (world.disk.exists(journal)) {
    const operation = {
      what: "revert",
      mayBe: [journal],
      journal: { path: journal, image: image.path },
    };
    await attempt(
      world,
      operation,
      () => revertJournal(image.path, { storage: world.disk, journal }),
    );
  }
  world.leftovers.delete(journal);
  const opened = openVhd(image.path, { storage: world.disk });
  opened.close();
  image.sectors = opened.sizeBytes / SECTOR_BYTES;
}

/** Steps of offline work. */
export const offlineSteps: readonly Step[] = [
  {
    name: "copy",
    weight: 4,
    can: hasIdleLeaf,
    async run(world, random) {
      const image = idleLeaf(world, random);
      if (image === null || (image.format === "fixed" && image.sectors > FIXED_SECTORS)) return;
      await copy(world, image);
    },
  },
  {
    name: "library",
    weight: 4,
    can: ({ devices }) => devices.some((each) => isClosed(each) && isVhd(each.client.leaf)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isClosed(each) && isVhd(each.client.leaf));
      if (device === null || device.client.leaf.format === "fixed") return;
      await writeByLibrary(world, device.client.leaf, random);
    },
  },
  {
    name: "resize",
    weight: 3,
    can: ({ devices }) => devices.some((each) => isClosed(each) && isVhd(each.client.leaf)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isClosed(each) && isVhd(each.client.leaf));
      if (device !== null) await resize(world, device.client.leaf, random);
    },
  },
  {
    name: "fill",
    weight: 4,
    can: hasIdleLeaf,
    async run(world, random) {
      const image = idleLeaf(world, random);
      if (image === null || image.format === "fixed" || image.sectors > FILL_SECTORS) return;
      const options = { storage: world.disk };
      const blocksOnly = random.chance(0.4);
      await attempt(
        world,
        { what: blocksOnly ? "preallocate" : "fill", mayBe: [] },
        () => blocksOnly ? preallocate(image.path, options) : fillImage(image.path, options),
      );
    },
  },
  {
    name: "check at rest",
    weight: 2,
    can: hasIdleLeaf,
    async run(world, random) {
      const image = idleLeaf(world, random);
      if (image === null) return;
      await attempt(world, { what: "check at rest", mayBe: [] }, () => {
        readOffline(world, image);
        const mayHaveData = world.mayHaveData;
        const found = world.faultsOf(world.disk, image, { data: true, mayHaveData });
        assert.deepEqual(found, [], image.path);
      });
    },
  },
];
