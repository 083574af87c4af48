/**
 * Shorter chains, as XenServer's storage manager makes them: a lower layer is merged into the one
 * below it, the image above is given its new parent, and the layer is removed; also below a disk
 * that runs.
 *
 * @module
 */
import { coalesce } from "../../../../src/bulk/coalesce.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { changeParent } from "../../../../src/vhd/modify.ts";
import { formatNamed } from "../formats/registry.ts";
import { Change, FALL, type ImageModel, NOW } from "../model.ts";
import type { Device, World } from "../world.ts";
import { isVhd, remove } from "./offline.ts";
import { pause, resume } from "./states.ts";
import { attempt, isOpen, someDevice, type Step } from "./step.ts";

/** A leaf, the layer that goes away, and the one that takes its data. */
interface Triple {
  readonly leaf: ImageModel;
  readonly middle: ImageModel;
  readonly base: ImageModel;
}

function tripleOf(world: World, { client: { leaf } }: Device): Triple | null {
  const middle = leaf.parent;
  const base = middle?.parent ?? null;
  if (middle === null || base === null || base.sectors !== middle.sectors) return null;
  // Data is moved as it is in the files.
  if (formatNamed(base.format).encrypted !== formatNamed(middle.format).encrypted) return null;
  // Nothing merges these below a disk that runs.
  if (!isVhd(leaf) || !isVhd(middle) || formatNamed(base.format).parentAs === "qcow2") return null;
  const children = [...world.images.values()].filter(({ parent }) =>
    parent === middle || parent === base
  );
  // What other images have below them must stay as it is.
  if (children.length > 2) return null;
  return { leaf, middle, base };
}

/** Notes that the data of a layer goes into the one below it. */
function markMerge(world: World, { middle, base }: Triple): Change {
  const change = new Change(`coalesce of ${middle.path}`, world.ticks.next());
  for (const sector of middle.touched) {
    const marks = middle.own(sector, NOW);
    const values = [...new Set(marks.flatMap(({ values }) => values))].filter((v) => v !== FALL);
    const keeps = marks.some((mark) => mark.values.includes(FALL));
    if (values.length > 0) base.mark(sector, { change, values, keeps });
  }
  return change;
}

async function merge(world: World, triple: Triple): Promise<boolean> {
  const { middle } = triple;
  const change = markMerge(world, triple);
  const merged = await attempt(
    world,
    { what: "coalesce", mayBe: [] },
    () =>
      coalesce(middle.path, {
        makeContext: world.disk.bulkContext({
          scheduler: world.scheduler,
          latencyMs: world.parts.latencyMs,
        }),
      }),
  );
  change.end = world.ticks.next();
  change.answered = merged;
  change.durable = merged;
  return merged;
}

/**
 * Gives the leaf its new parent. After an error the disk is healed, and it is tried again: while the device
 * is paused, as the first try may have left one locator of use.
 */
async function relink(world: World, device: Device, { leaf, base }: Triple): Promise<void> {
  const work = (): void =>
    void changeParent(leaf.path, {
      storage: world.disk,
      parent: base.path,
      rawParent: formatNamed(base.format).parentAs === "raw",
    });
  const operation = { what: "relink", mayBe: [] };
  if (!await attempt(world, operation, work)) {
    world.heal();
    const waits = isOpen(device);
    while (waits && !await pause(world, device)) world.heal();
    await attempt(world, operation, work);
    leaf.parent = base;
    while (waits && !await resume(world, device)) world.heal();
  }
  leaf.parent = base;
}

async function shorten(world: World, device: Device, random: Random): Promise<void> {
  const triple = tripleOf(world, device);
  if (triple === null) return;
  if (!await merge(world, triple)) return;
  // Beside a tapdisk, only an image with two locators of use can be relinked. On a device without
  // blocks the header has no copy meanwhile, and a power cut may tear it (docs/on-disk-order.md).
  const { format } = triple.leaf;
  const mayTear = format === "made" || format.endsWith("on a device");
  const waits = mayTear && isOpen(device);
  while (waits && !await pause(world, device)) world.heal();
  await relink(world, device, triple);
  while (waits && !await resume(world, device)) world.heal();
  if (!waits && isOpen(device)) {
    // Until then the device uses the old layer.
    if (random.chance(0.3)) world.settle();
    while (!await pause(world, device) || !await resume(world, device)) world.heal();
  }
  await remove(world, triple.middle);
}

/** Steps that shorten chains. */
export const chainSteps: readonly Step[] = [
  {
    name: "coalesce and relink",
    weight: 6,
    can: (world) => world.devices.some((device) => tripleOf(world, device) !== null),
    async run(world, random) {
      const device = someDevice(world, random, (each) => tripleOf(world, each) !== null);
      if (device !== null) await shorten(world, device, random);
    },
  },
];
