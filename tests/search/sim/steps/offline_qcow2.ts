/**
 * Offline work on QCOW2 images that no device uses, or that a device has paused.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import { compactQcow2 } from "../../../../src/qcow2/compact.ts";
import { resizeQcow2 } from "../../../../src/qcow2/resize.ts";
import { formatNamed } from "../formats/registry.ts";
import type { ImageModel } from "../model.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { Device, World } from "../world.ts";
import { attempt, isClosed, isOpen, someDevice, type Step } from "./step.ts";

const MIB = 2048;
const GIB = 1024 * MIB;
/** Larger images take long: all of their tables are read. */
const MOST_SECTORS = 64 * GIB;

function isQcow2({ client: { leaf } }: Device): boolean {
  return formatNamed(leaf.format).parentAs === "qcow2" && leaf.sectors <= MOST_SECTORS;
}

async function resize(world: World, image: ImageModel, random: Random): Promise<void> {
  const growth = random.chance(0.3) ? GIB : 1 + random.below(8 * MIB);
  const sectors = image.sectors + growth;
  const storage = world.disk;
  const sizes = new Map([[image.path, sectors]]);
  const done = await attempt(
    world,
    { what: "resize", mayBe: [], sizes },
    () => resizeQcow2(image.path, { storage, sizeBytes: sectors * SECTOR_BYTES }),
  );
  if (done) image.sectors = sectors;
  else {
    // The header may have the new size although its write failed.
    world.heal();
    image.sectors = formatNamed(image.format).layers(storage, image.path)[0].sectors;
  }
}

/** Steps of offline work on QCOW2 images. */
export const qcow2Steps: readonly Step[] = [
  {
    name: "compact a QCOW2",
    weight: 4,
    can: ({ devices }) => devices.some((each) => !isOpen(each) && isQcow2(each)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => !isOpen(each) && isQcow2(each));
      if (device === null) return;
      const { path } = device.client.leaf;
      await attempt(
        world,
        { what: "compact", mayBe: [] },
        () => compactQcow2(path, { storage: world.disk }),
      );
    },
  },
  {
    name: "resize a QCOW2",
    weight: 3,
    can: ({ devices }) => devices.some((each) => isClosed(each) && isQcow2(each)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isClosed(each) && isQcow2(each));
      // A block device has the room for its first size.
      if (device === null || formatNamed(device.client.leaf.format).onDevice) return;
      await resize(world, device.client.leaf, random);
    },
  },
];
