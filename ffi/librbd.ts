/**
 * Ceph's librados and librbd, which are opened with the first image on a cluster. What each call
 * does is in librados.h and librbd.h of Ceph 16.
 *
 * Calls that ask the cluster may take as long as the cluster is away. Each of them can be made here,
 * where nothing else runs meanwhile, or on a thread of the runtime (`aside`).
 *
 * @module
 */
import { Errno, SystemError } from "./errno.ts";
import { type Calls, openLibrary } from "./libc.ts";
import { SharedRoom } from "./limited.ts";
import { SYSTEM_FOLDERS } from "./libcrypto.ts";
import { becomeIoFlusher } from "./process.ts";

/** Calls of librados that do not ask the cluster. Handles are addresses. */
const RADOS_LOCAL = {
  // int rados_create2(rados_t *pcluster, const char *const clustername, const char *const name,
  //   uint64_t flags)
  rados_create2: { parameters: ["buffer", "buffer", "buffer", "u64"], result: "i32" },
  // int rados_conf_read_file(rados_t cluster, const char *path); null: the usual places
  rados_conf_read_file: { parameters: ["usize", "buffer"], result: "i32" },
  // int rados_conf_set(rados_t cluster, const char *option, const char *value)
  rados_conf_set: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rados_conf_get(rados_t cluster, const char *option, char *buf, size_t len)
  rados_conf_get: { parameters: ["usize", "buffer", "buffer", "usize"], result: "i32" },
  // void rados_ioctx_set_namespace(rados_ioctx_t io, const char *nspace)
  rados_ioctx_set_namespace: { parameters: ["usize", "buffer"], result: "void" },
  // void rados_ioctx_destroy(rados_ioctx_t io)
  rados_ioctx_destroy: { parameters: ["usize"], result: "void" },
} as const;

/** Calls of librados that ask the cluster. */
const RADOS_REMOTE = {
  // int rados_connect(rados_t cluster)
  rados_connect: { parameters: ["usize"], result: "i32" },
  // void rados_shutdown(rados_t cluster)
  rados_shutdown: { parameters: ["usize"], result: "void" },
  // int rados_ioctx_create(rados_t cluster, const char *pool_name, rados_ioctx_t *ioctx)
  rados_ioctx_create: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rados_exec(rados_ioctx_t io, const char *oid, const char *cls, const char *method,
  //   const char *in_buf, size_t in_len, char *buf, size_t out_len)
  rados_exec: {
    parameters: [
      "usize",
      "buffer",
      "buffer",
      "buffer",
      "buffer",
      "usize",
      "buffer",
      "usize",
    ],
    result: "i32",
  },
} as const;

/** Calls of librbd that ask the cluster. */
const RBD_REMOTE = {
  // int rbd_open(rados_ioctx_t io, const char *name, rbd_image_t *image, const char *snap_name)
  rbd_open: { parameters: ["usize", "buffer", "buffer", "buffer"], result: "i32" },
  // int rbd_open_read_only(rados_ioctx_t io, const char *name, rbd_image_t *image,
  //   const char *snap_name)
  rbd_open_read_only: { parameters: ["usize", "buffer", "buffer", "buffer"], result: "i32" },
  // int rbd_close(rbd_image_t image)
  rbd_close: { parameters: ["usize"], result: "i32" },
  // int rbd_flush(rbd_image_t image)
  rbd_flush: { parameters: ["usize"], result: "i32" },
  // int rbd_stat(rbd_image_t image, rbd_image_info_t *info, size_t infosize)
  rbd_stat: { parameters: ["usize", "buffer", "usize"], result: "i32" },
  // int rbd_get_features(rbd_image_t image, uint64_t *features)
  rbd_get_features: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_get_flags(rbd_image_t image, uint64_t *flags)
  rbd_get_flags: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_get_stripe_count(rbd_image_t image, uint64_t *stripe_count)
  rbd_get_stripe_count: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_get_overlap(rbd_image_t image, uint64_t *overlap)
  rbd_get_overlap: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_get_id(rbd_image_t image, char *id, size_t id_len)
  rbd_get_id: { parameters: ["usize", "buffer", "usize"], result: "i32" },
  // int rbd_snap_get_id(rbd_image_t image, const char *snapname, uint64_t *snap_id)
  rbd_snap_get_id: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rbd_lock_get_owners(rbd_image_t image, rbd_lock_mode_t *lock_mode, char **lock_owners,
  //   size_t *max_lock_owners)
  rbd_lock_get_owners: { parameters: ["usize", "buffer", "buffer", "buffer"], result: "i32" },
  // int rbd_watchers_list(rbd_image_t image, rbd_image_watcher_t *watchers, size_t *max_watchers)
  rbd_watchers_list: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rbd_snap_create(rbd_image_t image, const char *snapname)
  rbd_snap_create: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_create4(rados_ioctx_t io, const char *name, uint64_t size, rbd_image_options_t opts)
  rbd_create4: { parameters: ["usize", "buffer", "u64", "usize"], result: "i32" },
  // int rbd_resize2(rbd_image_t image, uint64_t size, bool allow_shrink, librbd_progress_fn_t cb,
  //   void *cbdata); bool is the lowest byte
  rbd_resize2: { parameters: ["usize", "u64", "i32", "pointer", "pointer"], result: "i32" },
  // int rbd_snap_remove(rbd_image_t image, const char *snapname)
  rbd_snap_remove: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_snap_protect(rbd_image_t image, const char *snap_name)
  rbd_snap_protect: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_snap_unprotect(rbd_image_t image, const char *snap_name)
  rbd_snap_unprotect: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_clone3(rados_ioctx_t p_ioctx, const char *p_name, const char *p_snapname,
  //   rados_ioctx_t c_ioctx, const char *c_name, rbd_image_options_t c_opts)
  rbd_clone3: {
    parameters: ["usize", "buffer", "buffer", "usize", "buffer", "usize"],
    result: "i32",
  },
  // int rbd_list2(rados_ioctx_t io, rbd_image_spec_t *images, size_t *max_images)
  rbd_list2: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rbd_get_create_timestamp(rbd_image_t image, struct timespec *timestamp)
  rbd_get_create_timestamp: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_remove(rados_ioctx_t io, const char *name)
  rbd_remove: { parameters: ["usize", "buffer"], result: "i32" },
  // int rbd_rename(rados_ioctx_t src_io_ctx, const char *srcname, const char *destname)
  rbd_rename: { parameters: ["usize", "buffer", "buffer"], result: "i32" },
  // int rbd_lock_acquire(rbd_image_t image, rbd_lock_mode_t lock_mode)
  rbd_lock_acquire: { parameters: ["usize", "i32"], result: "i32" },
} as const;

/**
 * Calls of librbd for each request, and those that do not ask the cluster. An offset is a number; the
 * address of a completion is one, too, as making a pointer of it would cost more.
 */
const RBD_LOCAL = {
  // void rbd_lock_get_owners_cleanup(char **lock_owners, size_t lock_owner_count)
  rbd_lock_get_owners_cleanup: { parameters: ["buffer", "usize"], result: "void" },
  // void rbd_image_options_create(rbd_image_options_t *opts)
  rbd_image_options_create: { parameters: ["buffer"], result: "void" },
  // void rbd_image_options_destroy(rbd_image_options_t opts)
  rbd_image_options_destroy: { parameters: ["usize"], result: "void" },
  // int rbd_image_options_set_uint64(rbd_image_options_t opts, int optname, uint64_t optval)
  rbd_image_options_set_uint64: { parameters: ["usize", "i32", "u64"], result: "i32" },
  // int rbd_image_options_set_string(rbd_image_options_t opts, int optname, const char *optval)
  rbd_image_options_set_string: { parameters: ["usize", "i32", "buffer"], result: "i32" },
  // void rbd_image_spec_list_cleanup(rbd_image_spec_t *images, size_t num_images)
  rbd_image_spec_list_cleanup: { parameters: ["buffer", "usize"], result: "void" },
  // void rbd_watchers_list_cleanup(rbd_image_watcher_t *watchers, size_t num_watchers)
  rbd_watchers_list_cleanup: { parameters: ["buffer", "usize"], result: "void" },
  // int rbd_set_image_notification(rbd_image_t image, int fd, int type)
  rbd_set_image_notification: { parameters: ["usize", "i32", "i32"], result: "i32" },
  // int rbd_aio_create_completion(void *cb_arg, rbd_callback_t complete_cb, rbd_completion_t *c);
  // the argument is a small number
  rbd_aio_create_completion: { parameters: ["u32", "pointer", "buffer"], result: "i32" },
  // void *rbd_aio_get_arg(rbd_completion_t c); the number of the line above
  rbd_aio_get_arg: { parameters: ["usize"], result: "u32" },
  // ssize_t rbd_aio_get_return_value(rbd_completion_t c); lengths stay below 2 GiB
  rbd_aio_get_return_value: { parameters: ["usize"], result: "i32" },
  // void rbd_aio_release(rbd_completion_t c)
  rbd_aio_release: { parameters: ["usize"], result: "void" },
  // int rbd_poll_io_events(rbd_image_t image, rbd_completion_t *comps, int numcomp)
  rbd_poll_io_events: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  // int rbd_aio_read(rbd_image_t image, uint64_t off, size_t len, char *buf, rbd_completion_t c)
  rbd_aio_read: { parameters: ["pointer", "u64", "usize", "pointer", "usize"], result: "i32" },
  // int rbd_aio_write(rbd_image_t image, uint64_t off, size_t len, const char *buf,
  //   rbd_completion_t c)
  rbd_aio_write: { parameters: ["pointer", "u64", "usize", "pointer", "usize"], result: "i32" },
  // int rbd_aio_discard(rbd_image_t image, uint64_t off, uint64_t len, rbd_completion_t c)
  rbd_aio_discard: { parameters: ["pointer", "u64", "u64", "usize"], result: "i32" },
  // int rbd_aio_write_zeroes(rbd_image_t image, uint64_t off, size_t len, rbd_completion_t c,
  //   int zero_flags, int op_flags)
  rbd_aio_write_zeroes: {
    parameters: ["pointer", "u64", "usize", "usize", "i32", "i32"],
    result: "i32",
  },
  // int rbd_aio_flush(rbd_image_t image, rbd_completion_t c)
  rbd_aio_flush: { parameters: ["pointer", "usize"], result: "i32" },
} as const;

/** The name of a call that asks the cluster. */
export type RemoteCall = keyof typeof RADOS_REMOTE | keyof typeof RBD_REMOTE;

/** An argument of such a call: a handle, a number, a C string or memory for results. */
export type Argument = number | Uint8Array<ArrayBuffer> | BigUint64Array<ArrayBuffer> | null;

/** Both libraries. */
export interface Librbd {
  readonly rados: Calls<typeof RADOS_LOCAL>;
  readonly rbd: Calls<typeof RBD_LOCAL>;
  /** Makes a call, which waits for the cluster; returns its result. */
  here(call: RemoteCall, args: readonly Argument[]): number;
  /** The same on a thread of the runtime. Handles of the cluster must stay open until it ends. */
  aside(cluster: string, call: RemoteCall, args: readonly Argument[]): Promise<number>;
}

type AnyCall = (...args: readonly Argument[]) => number | undefined;
type AnyAside = (...args: readonly Argument[]) => Promise<number | undefined>;

/**
 * The runtime has 32 threads for calls aside. A cluster that does not answer keeps those that ask it; other
 * clusters need some, and so do others, such as for files and names of servers.
 */
const asideRoom = new SharedRoom({ most: 20, mostOfEach: 8, kept: 4 });

let opened: Librbd | null = null;

/** The libraries. Throws `SystemError`: ENOENT when one is missing. */
export function librbd(): Librbd {
  if (opened !== null) return opened;
  // The libraries' threads do the I/O of disks, and inherit that from the thread that makes them.
  becomeIoFlusher();
  const names = [...SYSTEM_FOLDERS.map((folder) => `${folder}/`), ""];
  for (const folder of names) {
    try {
      opened = openBoth(`${folder}librados.so.2`, `${folder}librbd.so.1`);
      return opened;
    } catch {
      // Try the next folder.
    }
  }
  throw new SystemError(
    Errno.ENOENT,
    "Cannot use images on Ceph: librbd of Ceph 16 or later is missing (Debian: install librbd1)",
  );
}

function openBoth(radosName: string, rbdName: string): Librbd {
  const remote = {
    ...openLibrary(radosName, RADOS_REMOTE),
    ...openLibrary(rbdName, RBD_REMOTE),
  } as unknown as Record<RemoteCall, AnyCall>;
  const asides = {
    ...openLibrary(radosName, onThreads(RADOS_REMOTE)),
    ...openLibrary(rbdName, onThreads(RBD_REMOTE)),
  } as unknown as Record<RemoteCall, AnyAside>;
  return {
    rados: openLibrary(radosName, RADOS_LOCAL),
    rbd: openLibrary(rbdName, RBD_LOCAL),
    here: (call, args) => remote[call](...args) ?? 0,
    // The thread reads the arguments until the call has ended: this keeps them.
    aside: (cluster, call, args) =>
      asideRoom.run(cluster, async () => {
        const result = await asides[call](...args);
        return args.length === 0 ? 0 : result ?? 0;
      }),
  };
}

/** The same calls, each of which is made on a thread. */
function onThreads(symbols: Record<string, Deno.ForeignFunction>): Deno.ForeignLibraryInterface {
  const entries = Object.entries(symbols);
  return Object.fromEntries(entries.map(([name, call]) => [name, { ...call, nonblocking: true }]));
}
