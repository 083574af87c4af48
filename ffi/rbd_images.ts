/**
 * What is done with whole images on a Ceph cluster: making, copying by a clone, renaming, removing and
 * resizing them. The calls are those of rbd's own command.
 *
 * @module
 */
import { Errno, type SystemError } from "./errno.ts";
import { cString } from "./libc.ts";
import { librbd } from "./librbd.ts";
import {
  bytesOf,
  closing,
  connecting,
  failed,
  type Handles,
  makeClient,
  openingImage,
  type RbdPlace,
  runAside,
  runHere,
  statOf,
  type Steps,
  stringAt,
} from "./rbd_client.ts";

// librbd.h
const RBD_IMAGE_OPTION_ORDER = 2;
const RBD_IMAGE_OPTION_DATA_POOL = 10;

/** What a new image may have other than the cluster's defaults. */
export interface RbdMaking {
  /** Bytes of an object, a power of two. */
  readonly objectBytes?: number;
  /** The pool of its data, such as one with erasure coding. */
  readonly dataPool?: string;
}

/** Makes an empty image with the cluster's default features. Waits. Throws `SystemError`. */
export function createRbd(place: RbdPlace, sizeBytes: number, making: RbdMaking = {}): void {
  runHere(onCluster({ ...place, doing: "make" }, (own, handles) => {
    return creating(own, handles, { ...making, sizeBytes });
  }));
}

/** A new size of an image. */
export interface RbdResize {
  readonly sizeBytes: number;
  /** Whether it may be smaller than the size that the image has when the cluster changes it. */
  readonly shrink: boolean;
}

/**
 * Gives an image another size. The client that has its lock does that. Waits. Throws `SystemError`: EINVAL
 * for a smaller size without `shrink`.
 */
export function resizeRbd(place: RbdPlace, { sizeBytes, shrink }: RbdResize): void {
  runHere(onCluster({ ...place, doing: "resize" }, function* (own, handles) {
    yield* openingImage(own, handles);
    const args = [handles.image, sizeBytes, shrink ? 1 : 0, null, null];
    accept(own, yield { call: "rbd_resize2", args });
  }));
}

/** The size of an image, bytes; null when there is no such image. Waits. Throws `SystemError`. */
export function sizeOfRbd(place: RbdPlace): number | null {
  return runHere(onCluster({ ...place, readOnly: true }, function* (own, handles) {
    try {
      yield* openingImage(own, handles);
    } catch (error) {
      if ((error as SystemError).errno === Errno.ENOENT) return null;
      throw error;
    }
    return (yield* statOf(own, handles)).sizeBytes;
  }));
}

/** Gives an image that nobody has open another name in its pool. Waits. Throws `SystemError`: EEXIST. */
export function renameRbd(place: RbdPlace, name: string): void {
  runHere(onCluster({ ...place, doing: "rename" }, function* (own, { pool }) {
    const args = [pool, cString(own.image), cString(name)];
    accept(own, yield { call: "rbd_rename", args }, `the name ${name}`);
  }));
}

/** Removes an image that nobody has open. Waits. Throws `SystemError`. */
export function removeRbd(place: RbdPlace): void {
  runHere(onCluster({ ...place, doing: "remove" }, removing));
}

/** Which images are left over. */
export interface LeftImages {
  /** Whether an image of this name may be one. */
  isOne(name: string): boolean;
  /** It was made so long before the image of the place. */
  readonly olderSeconds: number;
}

/**
 * Removes images of the pool of an image that were left over and that nobody has open. A client that was
 * killed has its image open for half a minute more. Those that cannot be removed stay. Waits. Throws
 * `SystemError` when the pool cannot be listed.
 *
 * @returns The names of those that were removed.
 */
export function removeLeftRbd(place: RbdPlace, { isOne, olderSeconds }: LeftImages): string[] {
  return runHere(onCluster({ ...place, doing: "list the pool of" }, function* (own, handles) {
    const names = (yield* listing(own, handles)).filter(isOne).slice(0, MOST_LEFT);
    const removed: string[] = [];
    if (names.length === 0) return removed;
    const now = yield* madeAt(handles, own.image);
    for (const name of names) {
      const made = yield* madeAt(handles, name);
      // Both times are of the clock of the cluster.
      if (now === null || made === null || now - made < olderSeconds) continue;
      const result = yield { call: "rbd_remove", args: [handles.pool, cString(name)] };
      if (result >= 0) removed.push(name);
    }
    return removed;
  }));
}

/** The most images that one call removes. */
const MOST_LEFT = 64;
/** The most images of a pool that are listed. */
const MOST_LISTED = 1 << 20;
// rbd_image_spec_t: char *id @0, char *name @8
const SPEC_WORDS = 2;

/** The names of all images of a pool. */
function* listing(place: RbdPlace, { pool }: Handles): Steps<string[]> {
  const count = BigUint64Array.of(256n);
  for (;;) {
    const specs = new BigUint64Array(SPEC_WORDS * Number(count[0]));
    const result = yield { call: "rbd_list2", args: [pool, specs, count] };
    if (result === -Errno.ERANGE && count[0] <= MOST_LISTED) continue;
    accept(place, result);
    const found = Number(count[0]);
    const names = Array.from({ length: found }, (_, i) => stringAt(specs[SPEC_WORDS * i + 1]));
    librbd().rbd.rbd_image_spec_list_cleanup(bytesOf(specs), found);
    return names;
  }
}

/** When an image was made, seconds; null when that is not known. */
function* madeAt({ pool }: Handles, name: string): Steps<number | null> {
  const made = new BigUint64Array(1);
  // An image that is open like this does not look as if somebody used it.
  const args = [pool, cString(name), made, null];
  if ((yield { call: "rbd_open_read_only", args }) < 0) return null;
  const image = Number(made[0]);
  // struct timespec: i64 seconds @0, i64 nanoseconds @8
  const time = new BigUint64Array(2);
  const result = yield { call: "rbd_get_create_timestamp", args: [image, time] };
  yield { call: "rbd_close", args: [image] };
  return result < 0 ? null : Number(time[0]);
}

/**
 * Makes a clone of what an image holds now, in its pool: a snapshot of the image, of the name of the
 * clone, and the clone on it. When that fails, there is neither. The promise fails with a `SystemError`:
 * EEXIST for a name that exists.
 */
export function cloneRbdAside(place: RbdPlace, name: string): Promise<void> {
  return runAside(
    place,
    onCluster({ ...place, doing: "clone" }, function* (own, handles) {
      yield* openingImage(own, handles);
      const args = [handles.image, cString(name)];
      accept(own, yield { call: "rbd_snap_create", args }, `its snapshot ${name}`);
      const result = yield* cloning(own, handles, name);
      if (result >= 0) return;
      yield { call: "rbd_snap_remove", args };
      accept(own, result, `the clone ${name}`);
    }),
  );
}

/** Removes such a clone again, and its snapshot. The promise fails with a `SystemError`. */
export function removeCloneAside(place: RbdPlace, name: string): Promise<void> {
  return runAside(
    place,
    onCluster({ ...place, doing: "remove a clone of" }, function* (own, handles) {
      yield* removing({ ...own, image: name }, handles);
      yield* openingImage(own, handles);
      const args = [handles.image, cString(name)];
      // It is protected only where clones need that.
      yield { call: "rbd_snap_unprotect", args };
      accept(own, yield { call: "rbd_snap_remove", args }, `its snapshot ${name}`);
    }),
  );
}

/** Makes a client, does work with it, and lets go of what that opened. Calls fail when they take long. */
function* onCluster<Result>(
  named: RbdPlace,
  work: (place: RbdPlace, handles: Handles) => Steps<Result>,
): Steps<Result> {
  const place = { ...named, givesUp: true };
  const handles: Handles = { cluster: 0, pool: 0, image: 0 };
  try {
    makeClient(place, handles);
    yield* connecting(place, handles);
    return yield* work(place, handles);
  } finally {
    yield* closing(handles);
  }
}

function accept(place: RbdPlace, result: number, what = "the cluster refuses it"): void {
  if (result < 0) throw failed(place, result, what);
}

function* creating(
  place: RbdPlace,
  { pool }: Handles,
  { sizeBytes, objectBytes, dataPool }: RbdMaking & { readonly sizeBytes: number },
): Steps<void> {
  if (place.snapshot !== null) throw failed(place, -Errno.EINVAL, "a snapshot is made of an image");
  const { rbd } = librbd();
  const made = new BigUint64Array(1);
  rbd.rbd_image_options_create(bytesOf(made));
  const options = Number(made[0]);
  try {
    if (objectBytes !== undefined) {
      const order = Math.log2(objectBytes);
      rbd.rbd_image_options_set_uint64(options, RBD_IMAGE_OPTION_ORDER, order);
    }
    if (dataPool !== undefined) {
      rbd.rbd_image_options_set_string(options, RBD_IMAGE_OPTION_DATA_POOL, cString(dataPool));
    }
    const args = [pool, cString(place.image), sizeBytes, options];
    accept(place, yield { call: "rbd_create4", args });
  } finally {
    rbd.rbd_image_options_destroy(options);
  }
}

function* removing(place: RbdPlace, { pool }: Handles): Steps<void> {
  const result = yield { call: "rbd_remove", args: [pool, cString(place.image)] };
  accept(place, result, `the image ${place.image}`);
}

/**
 * Makes a clone of a snapshot of its name. Clusters that still serve clients before Ceph 13 make clones
 * of protected snapshots only (EINVAL).
 */
function* cloning(place: RbdPlace, { pool, image }: Handles, name: string): Steps<number> {
  const { rbd } = librbd();
  const made = new BigUint64Array(1);
  rbd.rbd_image_options_create(bytesOf(made));
  const options = Number(made[0]);
  const args = [pool, cString(place.image), cString(name), pool, cString(name), options];
  const snapshot = [image, cString(name)];
  try {
    const result = yield { call: "rbd_clone3", args };
    if (result !== -Errno.EINVAL) return result;
    const isProtected = yield { call: "rbd_snap_protect", args: snapshot };
    if (isProtected < 0) return isProtected;
    const again = yield { call: "rbd_clone3", args };
    if (again < 0) yield { call: "rbd_snap_unprotect", args: snapshot };
    return again;
  } finally {
    rbd.rbd_image_options_destroy(options);
  }
}
