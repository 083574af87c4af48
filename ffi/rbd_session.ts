/**
 * An image on a Ceph cluster: opening, its lock, what is known of it, and closing. Each image has a
 * connection of its own to the cluster, so that a client that the cluster shuts out is one disk.
 *
 * @module
 */
import { createEventFd } from "./epoll.ts";
import { Errno, SystemError } from "./errno.ts";
import { closeFile } from "./files.ts";
import { cString, pointerTo } from "./libc.ts";
import { type Argument, librbd, type RemoteCall } from "./librbd.ts";
import {
  bytesOf,
  closing,
  clusterOf,
  connecting,
  failed,
  type Handles,
  INFO_BYTES,
  makeClient,
  openingImage,
  type RbdPlace,
  runAside,
  runHere,
  statOf,
  type Steps,
  stringAt,
} from "./rbd_client.ts";

// rbd/features.h
const RBD_FEATURE_EXCLUSIVE_LOCK = 4n;
const RBD_FEATURE_OBJECT_MAP = 8n;
// librbd.h
const RBD_FLAG_OBJECT_MAP_INVALID = 1n;
const RBD_LOCK_MODE_EXCLUSIVE = 0;
const EVENT_TYPE_EVENTFD = 2;
// rbd_image_watcher_t: char *addr @0, i64 id @8, u64 cookie @16
const WATCHER_WORDS = 3;
const MOST_WATCHERS = 64;
const MOST_OWNERS = 8;
const ID_BYTES = 256;

/**
 * Opens an image, and waits for the cluster: half a minute for each answer, unless the configuration
 * says more. The image's requests wait as long, too, and fail then (ETIMEDOUT). Throws `SystemError`.
 */
export function openRbd(place: RbdPlace): RbdSession {
  return runHere(opening({ ...place, givesUp: true }));
}

/** Opens an image while threads wait. The promise fails with a `SystemError`. */
export function openRbdAside(place: RbdPlace): Promise<RbdSession> {
  return runAside(place, opening(place));
}

function* opening(place: RbdPlace): Steps<RbdSession> {
  const handles: Handles = { cluster: 0, pool: 0, image: 0 };
  try {
    makeClient(place, handles);
    yield* connecting(place, handles);
    yield* openingImage(place, handles);
    const facts = yield* asking(place, handles);
    if (!place.readOnly && facts.hasLock) yield* locking(place, handles);
    return new RbdSession(place, handles, facts);
  } catch (error) {
    yield* closing(handles);
    throw error;
  }
}

/** What is known of an open image. */
interface ImageFacts {
  readonly sizeBytes: number;
  readonly objectBytes: number;
  /** So many bytes at its start are those of the image that it is a clone of, until written. */
  readonly overlapBytes: number;
  /** Whether it has a lock that one client owns. */
  readonly hasLock: boolean;
  /** The object that tells which objects exist; null without one. */
  readonly objectMap: string | null;
}

function* asking(place: RbdPlace, handles: Handles): Steps<ImageFacts> {
  const { image } = handles;
  const number = new BigUint64Array(1);
  const must = (result: number): void => {
    if (result < 0) throw failed(place, result, "what is known of it");
  };
  const sizes = yield* statOf(place, handles);
  must(yield { call: "rbd_get_features", args: [image, number] });
  const features = number[0];
  must(yield { call: "rbd_get_stripe_count", args: [image, number] });
  const isStriped = number[0] > 1n;
  const overlap = yield { call: "rbd_get_overlap", args: [image, number] };
  // With any other error, what a clone shows of its parent would be taken for holes.
  if (overlap !== -Errno.ENOENT) must(overlap);
  const overlapBytes = overlap < 0 ? 0 : Number(number[0]);
  const hasMap = (features & RBD_FEATURE_OBJECT_MAP) !== 0n && !isStriped;
  return {
    ...sizes,
    overlapBytes,
    hasLock: (features & RBD_FEATURE_EXCLUSIVE_LOCK) !== 0n,
    objectMap: hasMap ? yield* objectMapOf(place, image) : null,
  };
}

/** The name of the object with the map (OBJECT_MAP_PREFIX of Ceph's ObjectMap.h). */
function* objectMapOf({ snapshot }: RbdPlace, image: number): Steps<string | null> {
  const id = new Uint8Array(ID_BYTES);
  const result = yield { call: "rbd_get_id", args: [image, id, ID_BYTES] };
  if (result < 0) return null;
  const head = `rbd_object_map.${new TextDecoder().decode(id.subarray(0, id.indexOf(0)))}`;
  if (snapshot === null) return head;
  const number = new BigUint64Array(1);
  const found = yield { call: "rbd_snap_get_id", args: [image, cString(snapshot), number] };
  return found < 0 ? null : `${head}.${number[0].toString(16).padStart(16, "0")}`;
}

/**
 * Takes the lock of an image and keeps it: other clients get it when this one closes the image, or
 * when they break it. A client that is gone loses it.
 */
function* locking(place: RbdPlace, { image }: Handles): Steps<void> {
  const owner = yield* livingOwner(image);
  if (owner !== null) throw isLocked(place, -Errno.EBUSY, owner);
  const result = yield { call: "rbd_lock_acquire", args: [image, RBD_LOCK_MODE_EXCLUSIVE] };
  if (result >= 0) return;
  throw isLocked(place, result, yield* livingOwner(image));
}

function isLocked(place: RbdPlace, result: number, owner: string | null): SystemError {
  if (owner === null) {
    // librbd says EROFS for a lock that its owner keeps.
    const errno = result === -Errno.EROFS ? -Errno.EBUSY : result;
    return failed(place, errno, "its lock cannot be taken");
  }
  const what = `Cannot open ${place.title} (the client at ${owner} has its lock)`;
  const hint = "one that was killed keeps it for half a minute";
  return new SystemError(Errno.EBUSY, what, { hint });
}

/** The address of the client that owns an image's lock and still watches the image; else null. */
function* livingOwner(image: number): Steps<string | null> {
  const { rbd } = librbd();
  const [mode, owners] = [new BigUint64Array(1), new BigUint64Array(MOST_OWNERS)];
  const count = BigUint64Array.of(BigInt(MOST_OWNERS));
  if ((yield { call: "rbd_lock_get_owners", args: [image, mode, owners, count] }) < 0) return null;
  const [owner] = stringsAt(owners, Number(count[0]), 1);
  rbd.rbd_lock_get_owners_cleanup(bytesOf(owners), Number(count[0]));
  if (owner === undefined) return null;
  const watchers = new BigUint64Array(WATCHER_WORDS * MOST_WATCHERS);
  count[0] = BigInt(MOST_WATCHERS);
  const listed = yield { call: "rbd_watchers_list", args: [image, watchers, count] };
  if (listed < 0) return owner;
  const addresses = stringsAt(watchers, Number(count[0]), WATCHER_WORDS);
  rbd.rbd_watchers_list_cleanup(bytesOf(watchers), Number(count[0]));
  return addresses.includes(owner) ? owner : null;
}

/** The C strings that every `step`th word points to. */
function stringsAt(words: BigUint64Array, count: number, step: number): string[] {
  return Array.from({ length: count }, (_, i) => stringAt(words[i * step]));
}

function* flushingAndClosing(handles: Handles): Steps<number> {
  const flushed = yield { call: "rbd_flush", args: [handles.image] };
  const closed = yield* closing(handles);
  return flushed < 0 ? flushed : closed;
}

/** Largest map of objects that is asked for: that of 256 TiB in objects of 4 MiB. */
const MOST_MAP_BYTES = 16 * 1024 * 1024;
/** What the answer has beside the bits. */
const MAP_FRAME_BYTES = 64 * 1024;

/** An open image. */
export class RbdSession {
  /** Readable when requests have ended. */
  readonly fd: number;
  /** Size of the disk, as `askSize` found it last. */
  sizeBytes: number;
  readonly objectBytes: number;
  readonly overlapBytes: number;
  /** Whether this client has the image's lock, so that no other one writes to it. */
  readonly isLocked: boolean;
  readonly hasObjectMap: boolean;
  /** The image, for calls of each request. */
  readonly pointer: Deno.PointerObject;
  readonly #place: RbdPlace;
  readonly #handles: Handles;
  readonly #objectMap: string | null;
  /** Questions under way: the image stays open until they end. */
  readonly #questions = new Set<Promise<number>>();

  /** @param handles They are this object's from now on. */
  constructor(place: RbdPlace, handles: Handles, facts: ImageFacts) {
    this.sizeBytes = facts.sizeBytes;
    this.objectBytes = facts.objectBytes;
    this.overlapBytes = facts.overlapBytes;
    this.isLocked = facts.hasLock && !place.readOnly;
    this.hasObjectMap = facts.objectMap !== null;
    this.#objectMap = facts.objectMap;
    this.#place = place;
    this.#handles = handles;
    this.pointer = pointerTo(handles.image);
    this.fd = createEventFd();
    const { rbd } = librbd();
    const result = rbd.rbd_set_image_notification(handles.image, this.fd, EVENT_TYPE_EVENTFD);
    if (result >= 0) return;
    closeFile(this.fd);
    throw failed(place, result, "its events cannot be watched");
  }

  /**
   * Asks which objects exist: two bits an object, the first object in the highest bits of a byte.
   * Null when the cluster has no map that is valid.
   */
  async loadObjectMap(): Promise<Uint8Array | null> {
    const { image, pool } = this.#handles;
    if (this.#objectMap === null) return null;
    const flags = new BigUint64Array(1);
    const asked = await this.#ask("rbd_get_flags", [image, flags]);
    if (asked < 0 || (flags[0] & RBD_FLAG_OBJECT_MAP_INVALID) !== 0n) return null;
    const objects = Math.ceil(this.sizeBytes / this.objectBytes);
    const mostBytes = Math.min(MOST_MAP_BYTES, Math.ceil(objects / 4)) + MAP_FRAME_BYTES;
    if (this.#handles.image === 0) return null;
    const out = new Uint8Array(mostBytes);
    const nothing = new Uint8Array(1);
    const names = [this.#objectMap, "rbd", "object_map_load"].map(cString);
    const length = await this.#ask("rados_exec", [pool, ...names, nothing, 0, out, mostBytes]);
    return length < 0 ? null : objectBits(out.subarray(0, length));
  }

  /** Asks for the size of the disk now; false when that is not known. */
  async askSize(): Promise<boolean> {
    const info = new Uint8Array(INFO_BYTES);
    const result = await this.#ask("rbd_stat", [this.#handles.image, info, INFO_BYTES]);
    if (result >= 0) this.sizeBytes = Number(new DataView(info.buffer).getBigUint64(0, true));
    return result >= 0;
  }

  /**
   * Makes a snapshot of what the writes that ended have written; requests go on.
   *
   * @returns 0, or a negative error number.
   */
  makeSnapshot(name: string): Promise<number> {
    return this.#ask("rbd_snap_create", [this.#handles.image, cString(name)]);
  }

  /** Makes a call on a thread, for which `close` waits. */
  async #ask(call: RemoteCall, args: readonly Argument[]): Promise<number> {
    const question = librbd().aside(clusterOf(this.#place), call, args);
    this.#questions.add(question);
    try {
      return await question;
    } finally {
      this.#questions.delete(question);
    }
  }

  /**
   * Closes the image, its descriptor and its connection to the cluster. No request may be under way,
   * and the descriptor must not be watched any more.
   *
   * @param flush Whether writes are brought to stable storage before.
   * @returns 0, or a negative error number.
   */
  async close({ flush }: { flush: boolean }): Promise<number> {
    await Promise.allSettled(this.#questions);
    try {
      const steps = flush ? flushingAndClosing(this.#handles) : closing(this.#handles);
      return await runAside(this.#place, steps);
    } finally {
      // Not before: librbd would write to whatever had the number of the descriptor then.
      closeFile(this.fd);
    }
  }
}

/**
 * The bits of an encoded BitVector of Ceph (bit_vector.hpp): u32 length of the head, the head (u8
 * version, u8 compatible version, u32 length, u64 size in elements), the bits, a footer.
 */
export function objectBits(encoded: Uint8Array): Uint8Array | null {
  const view = new DataView(encoded.buffer, encoded.byteOffset, encoded.byteLength);
  if (encoded.length < 18) return null;
  const headBytes = view.getUint32(0, true);
  const elements = view.getUint32(10, true) + view.getUint32(14, true) * 2 ** 32;
  const bits = 4 + headBytes;
  const lengthBytes = Math.ceil(elements / 4);
  if (headBytes < 14 || bits + lengthBytes > encoded.length) return null;
  const map = encoded.subarray(bits, bits + lengthBytes);
  // What is beyond the last object exists, as far as is known.
  if (elements % 4 !== 0) map[lengthBytes - 1] |= (1 << (8 - 2 * (elements % 4))) - 1;
  return map;
}
