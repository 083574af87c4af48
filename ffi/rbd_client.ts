/**
 * A client of a Ceph cluster and the image that it opens: sequences of calls to the cluster, which can be
 * made here, while nothing else runs, or aside, while threads of the runtime wait.
 *
 * @module
 */
import { clientRoomFault } from "./client_room.ts";
import { Errno, SystemError } from "./errno.ts";
import { cString } from "./libc.ts";
import { type Argument, librbd, type RemoteCall } from "./librbd.ts";

/**
 * What is set whatever the configuration file says. Without librbd's cache a write that ended is
 * with the cluster, and the error of a write is that of a request: the cache tells of it at a later
 * flush, after it has dropped the data. Errors go to the log of this program.
 */
const SETTINGS: readonly (readonly [string, string])[] = [
  ["rbd_cache", "false"],
  ["log_to_stderr", "false"],
  ["err_to_stderr", "false"],
];
/** How long a connection may take, seconds, where the configuration file says nothing else. */
const TIMEOUT_SECONDS = "30";
const TIMEOUTS = ["client_mount_timeout"] as const;
/** How long requests may take where they are waited for; without a limit otherwise. */
const REQUEST_TIMEOUTS = ["rados_osd_op_timeout", "rados_mon_op_timeout"] as const;
const OPTION_BYTES = 64;
/** How many clients connect just now, and may still take theirs. */
let clientsConnecting = 0;

/** Which image, and how. */
export interface RbdPlace {
  /** For errors: the image's whole name. */
  readonly title: string;
  /** For errors: what is done; `open` by default. */
  readonly doing?: string;
  readonly pool: string;
  readonly namespace: string;
  readonly image: string;
  /** Null for the image itself. */
  readonly snapshot: string | null;
  /** The cluster's name, and the user without `client.`. */
  readonly cluster: string;
  readonly user: string;
  /** The configuration file; null for the usual places. */
  readonly conf: string | null;
  readonly readOnly: boolean;
  /** Whether calls and requests fail when the cluster does not answer; by default they wait. */
  readonly givesUp?: boolean;
}

/** A call to the cluster: the part of a sequence that can wait here, or on a thread. */
interface Step {
  readonly call: RemoteCall;
  readonly args: readonly Argument[];
}
export type Steps<Result> = Generator<Step, Result, number>;

/** Makes the calls of a sequence one after another, and waits for each. */
export function runHere<Result>(steps: Steps<Result>): Result {
  let next = steps.next();
  while (next.done !== true) next = steps.next(librbd().here(next.value.call, next.value.args));
  return next.value;
}

/** What tells the clusters of a process apart, as far as that is known without asking them. */
export function clusterOf({ conf, cluster }: RbdPlace): string {
  return conf ?? cluster;
}

/** The same on the cluster of a place, while threads of the runtime wait. */
export async function runAside<Result>(place: RbdPlace, steps: Steps<Result>): Promise<Result> {
  const cluster = clusterOf(place);
  let next = steps.next();
  while (next.done !== true) {
    next = steps.next(await librbd().aside(cluster, next.value.call, next.value.args));
  }
  return next.value;
}

/** The handles of an image, as far as it is open. */
export interface Handles {
  cluster: number;
  pool: number;
  image: number;
}

export function failed(
  { title, doing = "open" }: RbdPlace,
  result: number,
  why: string,
): SystemError {
  return new SystemError(-result, `Cannot ${doing} ${title} (${why})`);
}

/** Makes a client, and reads its configuration. */
export function makeClient(place: RbdPlace, handles: Handles): void {
  const fault = clientRoomFault(clientsConnecting + 1);
  if (fault !== null) throw failed(place, -fault.errno, fault.why);
  const { rados } = librbd();
  const { cluster, user, conf } = place;
  const made = new BigUint64Array(1);
  const result = rados.rados_create2(made, cString(cluster), cString(`client.${user}`), 0);
  if (result < 0) throw failed(place, result, "a client cannot be made");
  handles.cluster = Number(made[0]);
  const set = (option: string, value: string): void => {
    // An option that this version of the library lacks changes nothing.
    rados.rados_conf_set(handles.cluster, cString(option), cString(value));
  };
  const valueOf = (option: string): string => {
    const value = new Uint8Array(OPTION_BYTES);
    rados.rados_conf_get(handles.cluster, cString(option), value, OPTION_BYTES);
    return new TextDecoder().decode(value.subarray(0, value.indexOf(0)));
  };
  const timeouts = place.givesUp === true ? [...TIMEOUTS, ...REQUEST_TIMEOUTS] : TIMEOUTS;
  const defaults = timeouts.map(valueOf);
  const read = rados.rados_conf_read_file(handles.cluster, conf === null ? null : cString(conf));
  if (read < 0) throw failed(place, read, confFault(place));
  // What is set here counts more than the file, also when it is set before.
  timeouts.forEach((option, i) => {
    if (valueOf(option) === defaults[i]) set(option, TIMEOUT_SECONDS);
  });
  for (const [option, value] of SETTINGS) set(option, value);
}

function confFault({ conf, cluster }: RbdPlace): string {
  return conf !== null
    ? `its configuration ${conf} cannot be read`
    : `there is no configuration such as /etc/ceph/${cluster}.conf; name one by ,conf=FILE`;
}

export function* connecting(place: RbdPlace, handles: Handles): Steps<void> {
  const { pool, namespace, user } = place;
  clientsConnecting++;
  const connected = yield { call: "rados_connect", args: [handles.cluster] };
  clientsConnecting--;
  if (connected < 0) {
    const keys = `its monitors do not answer, or refuse client.${user}: see its keyring`;
    throw failed(place, connected, keys);
  }
  const made = new BigUint64Array(1);
  const args = [handles.cluster, cString(pool), made];
  const result = yield { call: "rados_ioctx_create", args };
  if (result < 0) throw failed(place, result, `the pool ${pool}`);
  handles.pool = Number(made[0]);
  librbd().rados.rados_ioctx_set_namespace(handles.pool, cString(namespace));
}

export function* openingImage(place: RbdPlace, handles: Handles): Steps<void> {
  const { image, snapshot, readOnly } = place;
  if (snapshot !== null && !readOnly) {
    throw failed(place, -Errno.EROFS, "a snapshot is open for reading only");
  }
  const made = new BigUint64Array(1);
  const name = snapshot === null ? null : cString(snapshot);
  const args = [handles.pool, cString(image), made, name];
  let result = yield { call: "rbd_open", args };
  // A user who may only read cannot watch the image.
  if (readOnly && (result === -Errno.EPERM || result === -Errno.EACCES)) {
    result = yield { call: "rbd_open_read_only", args };
  }
  if (result < 0) throw failed(place, result, snapshot === null ? "the image" : "the snapshot");
  handles.image = Number(made[0]);
}

/** The C string at an address; empty for none. */
export function stringAt(address: bigint): string {
  const pointer = Deno.UnsafePointer.create(address);
  return pointer === null ? "" : Deno.UnsafePointerView.getCString(pointer);
}

export function bytesOf(words: BigUint64Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  return new Uint8Array(words.buffer);
}

/** Lets go of all that is open; the first error of the library, or 0. */
export function* closing(handles: Handles): Steps<number> {
  const { cluster, pool, image } = handles;
  handles.cluster = handles.pool = handles.image = 0;
  let result = 0;
  if (image !== 0) result = yield { call: "rbd_close", args: [image] };
  if (pool !== 0) librbd().rados.rados_ioctx_destroy(pool);
  if (cluster !== 0) yield { call: "rados_shutdown", args: [cluster] };
  return Math.min(0, result);
}

// rbd_image_info_t: u64 size @0, u64 obj_size @8, u64 num_objs @16, …
export const INFO_BYTES = 160;

/** The sizes of an open image and of its objects. */
export function* statOf(
  place: RbdPlace,
  { image }: Handles,
): Steps<{ sizeBytes: number; objectBytes: number }> {
  const info = new Uint8Array(INFO_BYTES);
  const result = yield { call: "rbd_stat", args: [image, info, INFO_BYTES] };
  if (result < 0) throw failed(place, result, "what is known of it");
  const view = new DataView(info.buffer);
  return {
    sizeBytes: Number(view.getBigUint64(0, true)),
    objectBytes: Number(view.getBigUint64(8, true)),
  };
}
