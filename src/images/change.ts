import { Errno, SystemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { resizeRbd, sizeOfRbd } from "../../ffi/rbd_images.ts";
import { coalesce } from "../bulk/coalesce.ts";
import { osStorage } from "../files/storage.ts";
import type { ImageSpec } from "../driver/driver.ts";
import { firstLayer } from "../driver/layers.ts";
import { parseRbdName } from "../driver/rbd/rbd_name.ts";
import { openQcow2 } from "../qcow2/image/image.ts";
import { backingOnCeph } from "../qcow2/image/named_files.ts";
import { createEngine, type Engine } from "./engine.ts";
import { copyInto, zeroStretches } from "./convert.ts";
import type { SnapshotImageOptions } from "./kind.ts";
import { type KnownImage, knownImage } from "./names.ts";
import { OpenImage } from "./open_image.ts";
import { type Stretch, walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";

/** Options of a new size. */
export interface ResizeImageOptions extends WorkOptions {
  /** The new size, whole sectors. */
  readonly sizeBytes: number;
  /** Allows a smaller size, which cuts data off. */
  readonly shrink?: boolean;
}

/** The error for work that a type does not have. */
function unsupported(what: string, why: string): SystemError {
  return new SystemError(Errno.EOPNOTSUPP, `Cannot ${what} (${why})`);
}

/**
 * Makes an image that holds the later writes of another, its parent.
 *
 * @throws {SystemError} EEXIST for a file that exists; EOPNOTSUPP for types that do not go together; EINVAL
 * for an image on Ceph that is no snapshot, or is named with a configuration of its own.
 */
export function snapshotImage(
  parent: string,
  child: string,
  options: SnapshotImageOptions = {},
): void {
  const above = knownImage(child, "make");
  const isOnCeph = firstLayer(parent).type === "rbd";
  const below = isOnCeph ? null : knownImage(parent, "make a snapshot of");
  if (osStorage.exists(above.path) && osStorage.status(above.path).kind !== "block") {
    throw new SystemError(Errno.EEXIST, `Cannot create ${above.path}: choose another name`);
  }
  if (below === null) return snapshotOfCeph(parent, above);
  const make = above.kind.snapshot;
  if (make === undefined || make.parents.includes(below.kind.type) !== true) {
    const can = make?.parents.join(" or ") ?? "no type";
    throw unsupported(`make ${child} on ${parent}`, `its parent can be of ${can}`);
  }
  const image = { type: below.kind.type, path: below.path, name: parent };
  make.run(osStorage, above.path, image, options);
}

/** Makes an image in a file on a snapshot of an image on Ceph. */
function snapshotOfCeph(parent: string, { kind, path }: KnownImage): void {
  const make = kind.snapshot?.onCeph;
  if (make === undefined) throw unsupported(`make ${path} on ${parent}`, "its type cannot name it");
  const { path: rest } = firstLayer(parent);
  const place = parseRbdName(rest, { readOnly: true });
  if (place.snapshot === null) {
    const what = `Cannot make ${path} on ${parent} (others may write to that)`;
    const hint = "make a snapshot of it by 'rbd snap create', and name that";
    throw new SystemError(Errno.EINVAL, what, { hint });
  }
  if (place.conf !== null || /,cluster=/.test(rest)) {
    const what = `Cannot make ${path} on ${parent} (an image cannot name conf= or cluster=)`;
    const hint = "name the configuration by CEPH_CONF in the environment, here and for tapdisk";
    throw new SystemError(Errno.EINVAL, what, { hint });
  }
  const bytes = sizeOfRbd(place);
  if (bytes === null) {
    throw new SystemError(Errno.ENOENT, `Cannot open ${parent} (the image or its snapshot)`);
  }
  const sizeBytes = Math.floor(bytes / SECTOR_BYTES) * SECTOR_BYTES;
  const user = /,id=/.test(rest) ? place.user : null;
  make(osStorage, path, { name: rest.replace(/,.*/s, ""), user, sizeBytes });
}

/**
 * The change of an image's size, when its type has one.
 *
 * @throws {SystemError} EOPNOTSUPP for a type without it; EINVAL for what is no image in a file.
 */
export function resizeOf(name: string): (options: ResizeImageOptions) => void {
  const { type, path: rest } = firstLayer(name);
  if (type === "rbd") {
    const place = parseRbdName(rest, { readOnly: false });
    // Others may have made it larger since its size was asked for.
    return ({ sizeBytes, shrink = false }) => resizeRbd(place, { sizeBytes, shrink });
  }
  const { kind, path } = knownImage(name, "resize");
  const { resize } = kind;
  if (resize === undefined) {
    throw unsupported(`resize ${name}`, "images of its type have one size; convert it");
  }
  return (options) => resize(osStorage, path, options);
}

/**
 * Changes the size of a disk. What is added reads as zeros.
 *
 * @throws {SystemError} EINVAL for a smaller size without that; EOPNOTSUPP for types without this.
 */
export async function resizeImage(
  name: string,
  { sizeBytes, shrink = false, onProgress }: ResizeImageOptions,
): Promise<void> {
  const change = resizeOf(name);
  const nowBytes = await sizeOf(name);
  if (sizeBytes < nowBytes && !shrink) {
    const what =
      `Cannot resize ${name} from ${nowBytes} to ${sizeBytes} bytes (it would lose data)`;
    throw new SystemError(Errno.EINVAL, what, { hint: "allow that by --shrink" });
  }
  change({ sizeBytes, shrink, onProgress });
}

async function sizeOf(name: string): Promise<number> {
  return await withEngine(async (engine) => {
    const image = await OpenImage.open(engine, name, { readOnly: true });
    const { sectors } = image;
    await image.close(engine);
    return sectors * 512;
  });
}

async function withEngine<T>(work: (engine: Engine) => Promise<T>): Promise<T> {
  const engine = createEngine(() => {});
  try {
    return await work(engine);
  } finally {
    engine.close();
  }
}

/**
 * Writes what an image holds into the image below it. The image itself is not changed, and reads the
 * same at every moment, so this may be killed and repeated.
 *
 * @returns The sectors that were written.
 * @throws {SystemError} EINVAL for an image with nothing below it; ENOSPC when that is smaller; EBUSY
 * when a tapdisk writes to that, or has it open and it is a QCOW2; EOPNOTSUPP when it is on Ceph.
 */
export async function commitImage(name: string, options: WorkOptions = {}): Promise<number> {
  const { kind, path } = knownImage(name, "commit");
  if (kind.type === "vhd") return await coalesce(path, options);
  if (kind.type === "qcow2") refuseCeph(name, path);
  return await withEngine(async (engine) => {
    const whole = await OpenImage.open(engine, name, { readOnly: true });
    try {
      const [own, below] = whole.layers.map(({ spec }) => spec);
      if (below === undefined) {
        throw new SystemError(Errno.EINVAL, `Cannot commit ${name}: there is no image below it`);
      }
      const target = `${below.type}:${below.path}`;
      if (below.type === "qcow2") refuseReaders(below.path);
      const written = await commitData(engine, { own, target, options });
      return written + await commitZeros(engine, { whole, target, options });
    } finally {
      await whole.close(engine);
    }
  });
}

/** An image on Ceph is only read below others: the cluster does not know how many there are. */
function refuseCeph(name: string, path: string): void {
  const image = openQcow2(path, { storage: osStorage });
  image.close();
  const below = backingOnCeph(image);
  if (below === null) return;
  throw unsupported(
    `commit ${name}`,
    `rbd:${below} below it is only read; convert the disk instead`,
  );
}

/**
 * A write to a part of a cluster that is compressed, or belongs to a snapshot too, moves all of it. A
 * tapdisk that reads the image would look for the rest in the old place.
 */
function refuseReaders(path: string): void {
  const file = osStorage.open(path, "write");
  try {
    file.refuseReaders();
  } finally {
    file.close();
  }
}

interface Commit {
  /** The name of the image below. */
  readonly target: string;
  readonly options: WorkOptions;
}

/** Writes what an image itself has. */
async function commitData(
  engine: Engine,
  { own, target, options }: Commit & { own: ImageSpec },
): Promise<number> {
  const source = await OpenImage.openAlone(engine, own);
  try {
    const copy = { ...options, detectZeros: false };
    return await copyInto(engine, { source, target, isNew: true, options: copy });
  } finally {
    await source.close(engine);
  }
}

/** Writes zeros where the image says that there are some, and the image below has something else. */
async function commitZeros(
  engine: Engine,
  { whole, target, options }: Commit & { whole: OpenImage },
): Promise<number> {
  const holes: Stretch[] = [];
  await walkImage(engine, {
    source: whole,
    stretch: (stretch, isData) => void (isData || holes.push(stretch)),
  });
  const below = await OpenImage.open(engine, target, { readOnly: true });
  const found: Stretch[] = [];
  try {
    const end = below.sectors;
    await walkImage(engine, {
      source: below,
      ranges: holes.map(({ sector, count }) => ({ sector, count: Math.min(count, end - sector) })),
      signal: options.signal,
      stretch: (stretch, isData) => void (isData && found.push(stretch)),
    });
  } finally {
    await below.close(engine);
  }
  await zeroStretches(engine, target, found);
  return found.reduce((sum, { count }) => sum + count, 0);
}
