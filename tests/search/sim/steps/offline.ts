/**
 * Offline work on images that no device uses, or that a device has paused.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import { Errno } from "../../../../ffi/errno.ts";
import { copyImage } from "../../../../src/bulk/copy.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { VHD_CREATOR_TAP } from "../../../../src/vhd/format/footer.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { fillImage, preallocate } from "../../../../src/vhd/fill.ts";
import { revertJournal } from "../../../../src/vhd/resize/journal_revert.ts";
import { growWithinMetadata, resizeVhd } from "../../../../src/vhd/resize/resize.ts";
import { formatNamed, newFormat } from "../formats/registry.ts";
import { Change, ImageModel, NOW } from "../model.ts";
import { within } from "../regions.ts";
import { SECTOR_BYTES } from "../stamps.ts";
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

/** Whether an image is a fixed one. */
export function isFixed({ format }: ImageModel): boolean {
  return formatNamed(format).fixed;
}

/** A leaf that no device has open. */
export function idleLeaf(world: World, random: Random): ImageModel | null {
  const device = someDevice(world, random, (each) => !isOpen(each) && isVhd(each.client.leaf));
  return device?.client.leaf ?? null;
}

/** Whether there is such a leaf. */
export function hasIdleLeaf({ devices }: World): boolean {
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

/** What check says of an image whose close failed before its last write. */
const MISSING_FOOTER = /^primary footer invalid/;
/** What check says of a parent that an error of the disk keeps it from reading. */
const UNREADABLE_PARENT = /^invalid parent .*: error opening parent \(E\w+\)$/;

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

/** Whether a copy would need the key: zeros, or data of images that are not encrypted, show. */
function isRecoded(image: ImageModel): boolean {
  const { encrypted } = formatNamed(image.format);
  for (let each = image.parent; each !== null; each = each.parent) {
    const differs = formatNamed(each.format).encrypted !== encrypted;
    if (differs || (encrypted && each.sectors < image.sectors)) return true;
  }
  return false;
}

async function copy(world: World, image: ImageModel): Promise<void> {
  const output = world.newPath();
  const made = await attempt(
    world,
    { what: "copy", mayBe: [output], refusals: isRecoded(image) ? [Errno.EINVAL] : [] },
    () =>
      copyImage(image.path, output, {
        makeContext: world.disk.bulkContext({
          scheduler: world.scheduler,
          latencyMs: world.parts.latencyMs,
        }),
      }),
  );
  if (!made) return;
  const { fixed, encrypted } = formatNamed(image.format);
  const format = fixed ? "fixed" : newFormat({ encrypted, onDevice: false }).name;
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
  if (formatNamed(image.format).onDevice) {
    // Another image may be put on the device.
    world.images.delete(path);
    world.leftovers.add(path);
    return;
  }
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

async function resize(world: World, image: ImageModel, random: Random): Promise<void> {
  const mib = 2048;
  const growth = random.chance(0.2) ? 300 * 4096 : mib * (1 + random.below(8));
  const sectors = Math.ceil((image.sectors + growth) / 4096) * 4096;
  if (sectors > MOST_SECTORS || (isFixed(image) && growth > 8 * mib)) return;
  const journal = world.newPath(".journal");
  let hasReserve = false;
  let isOurs = false;
  let lacksFooter = false;
  const opened = await attempt(world, { what: "open", mayBe: [] }, () => {
    const found = openVhd(image.path, { storage: world.disk });
    found.close();
    const { header, sectorsPerBlock, footer } = found;
    hasReserve = (header?.maxBatEntries ?? 0) * sectorsPerBlock >= sectors;
    isOurs = footer.creatorApplication === VHD_CREATOR_TAP;
    lacksFooter = world.mayHaveData &&
      world.faultsOf(world.disk, image, { data: false, mayHaveData: true })
        .some((fault) => MISSING_FOOTER.test(fault));
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
      // The metadata of an image of another program may lie where it cannot grow. Errors of earlier
      // work may have left an image without its footer, which has to be repaired first.
      refusals: image.format === "made" || lacksFooter ? [Errno.EINVAL] : [],
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
      if (image === null || (isFixed(image) && image.sectors > FIXED_SECTORS)) return;
      await copy(world, image);
    },
  },
  {
    name: "resize",
    weight: 3,
    can: ({ devices }) => devices.some((each) => isClosed(each) && isVhd(each.client.leaf)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isClosed(each) && isVhd(each.client.leaf));
      if (device === null || formatNamed(device.client.leaf.format).onDevice) return;
      await resize(world, device.client.leaf, random);
    },
  },
  {
    name: "fill",
    weight: 4,
    can: hasIdleLeaf,
    async run(world, random) {
      const image = idleLeaf(world, random);
      if (image === null || isFixed(image) || image.sectors > FILL_SECTORS) return;
      const options = { storage: world.disk };
      const { encrypted, onDevice } = formatNamed(image.format);
      // Blocks without a parent would show what the block device held (`preallocate`).
      const blocksOnly = random.chance(0.4) && !(onDevice && image.parent === null);
      // Only a device has the key. Blocks in which no bit is set, as with a parent, need none.
      const needsKey = encrypted && (!blocksOnly || image.parent === null);
      const refusals = needsKey ? [Errno.EINVAL] : [];
      const filled = await attempt(
        world,
        { what: blocksOnly ? "preallocate" : "fill", mayBe: [], refusals },
        () => blocksOnly ? preallocate(image.path, options) : fillImage(image.path, options),
      );
      assert.ok(!filled || refusals.length === 0, `${image.path} is encrypted and was filled`);
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
        const hitsBefore = world.faults.hits;
        const found = world.faultsOf(world.disk, image, { data: true, mayHaveData });
        const wasHit = world.faults.hits > hitsBefore;
        // A close that failed may have left the image without the footer at its end. A parent that
        // cannot be read just now is a finding.
        const faults = found.filter((fault) =>
          !(mayHaveData && MISSING_FOOTER.test(fault)) && !(wasHit && UNREADABLE_PARENT.test(fault))
        );
        assert.deepEqual(faults, [], image.path);
      });
    },
  },
];
