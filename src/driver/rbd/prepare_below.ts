import type { DoneWith } from "../../../ffi/errno.ts";
import { type Confinement, confinementOf } from "../../files/confinement.ts";
import type { FileIdentity, Storage } from "../../files/storage.ts";
import { openQcow2 } from "../../qcow2/image/image.ts";
import { backingOnCeph, locateBacking } from "../../qcow2/image/named_files.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import { MAX_CHAIN_DEPTH } from "../../vhd/image/chain_walk.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { locateParent } from "../../vhd/image/parent.ts";
import { parentOnCeph } from "../../vhd/image/parent_on_ceph.ts";
import type { ImageSpec, Prepared } from "../driver.ts";
import { rbdDriver } from "./rbd_driver.ts";

const NOTHING: Prepared = { discard(): void {} };

/**
 * Gets an image of a file ready: opens the image on Ceph that its chain ends with, if it does. What is
 * wrong with the images of the chain, their drivers say when they are opened.
 */
export function prepareBelow(
  spec: ImageSpec,
  scheduler: Scheduler,
  done: DoneWith<Prepared>,
  storage: Storage,
): () => void {
  const below = bottomOnCeph(spec, storage);
  if (below !== null) {
    const leaf = { type: rbdDriver.type, path: below, readOnly: true, direct: spec.direct };
    return rbdDriver.prepare(leaf, scheduler, done, storage);
  }
  done(null, NOTHING);
  return () => {};
}

/** An image of a chain, and what it was named with. */
interface Layer {
  readonly type: string;
  readonly path: string;
  readonly same?: FileIdentity;
  readonly confinement: Confinement;
}

/** The image on Ceph at the end of a chain that may be damaged; null for any other end. */
function bottomOnCeph({ type, path }: ImageSpec, storage: Storage): string | null {
  try {
    const confinement = confinementOf(storage, path);
    // Mostly none is allowed, and the images are not looked at.
    if (!confinement.onCeph) return null;
    let layer: Layer | string | null = { type, path, confinement };
    const seen = new Set<string>();
    for (let depth = 0; depth < MAX_CHAIN_DEPTH; depth++) {
      if (layer === null || typeof layer === "string") return layer;
      // Each file of a loop would be read many times, while other disks wait.
      const { device, inode } = layer.same ?? storage.locate(layer.path);
      const file = `${device}:${inode}`;
      if (seen.has(file)) return null;
      seen.add(file);
      layer = belowOf(layer, storage);
    }
    return null;
  } catch {
    return null;
  }
}

/** The layer below another: an image in a file, or one on Ceph by its name; null for the end. */
function belowOf(
  { type, path, same, confinement }: Layer,
  storage: Storage,
): Layer | string | null {
  const options = { storage, same, confinement };
  if (type === "qcow2") {
    const image = openQcow2(path, options);
    image.close();
    const found = backingOnCeph(image) ?? locateBacking(image);
    return found === null || typeof found === "string" ? found : { ...found, same: found };
  }
  if (type !== "vhd") return null;
  const image = openVhd(path, options);
  try {
    if (image.parent === null) return null;
    const onCeph = parentOnCeph(image);
    if (onCeph !== null) return onCeph;
    const found = locateParent(image);
    return { ...found, type: found.raw ? "aio" : "vhd", same: found };
  } finally {
    image.close();
  }
}
