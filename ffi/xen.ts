/**
 * Xen's interfaces for the backend of a guest's device, as programs have them: grants of the guest's
 * pages (/dev/xen/gntdev) and event channels (/dev/xen/evtchn). Numbers and layouts are those of
 * Linux's include/uapi/xen/gntdev.h and evtchn.h on x86-64.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { closeFile, O_NONBLOCK, O_RDWR, openFile } from "./files.ts";
import { openLibc } from "./libc.ts";
import { Arena, memoryAddress } from "./memory.ts";
import { pathExists } from "./paths.ts";
import { putNumber64 } from "./sockets.ts";

const libc = /* @__PURE__ */ openLibc({
  // int ioctl(int fd, unsigned long request, void *argp)
  ioctl: { parameters: ["i32", "u32", "buffer"], result: "i32" },
  // int ioctl(int fd, unsigned long request, void *argp)
  ioctlPointer: { name: "ioctl", parameters: ["i32", "u32", "pointer"], result: "i32" },
  // ssize_t read(int fd, void *buf, size_t count), of fewer than 2^31 bytes
  read: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // ssize_t write(int fd, const void *buf, size_t count), of fewer than 2^31 bytes
  write: { parameters: ["i32", "buffer", "u32"], result: "i32" },
});

const GRANTS = "/dev/xen/gntdev";
const EVENTS = "/dev/xen/evtchn";

// _IOC(_IOC_NONE, 'G' or 'E', number, bytes of the argument), with one grant reference.
const IOCTL_GNTDEV_MAP_GRANT_REF = 0x18_4700;
const IOCTL_GNTDEV_UNMAP_GRANT_REF = 0x10_4701;
const IOCTL_GNTDEV_GRANT_COPY = 0x10_4708;
const IOCTL_EVTCHN_BIND_INTERDOMAIN = 0x8_4501;
const IOCTL_EVTCHN_UNBIND = 0x4_4503;
const IOCTL_EVTCHN_NOTIFY = 0x4_4504;

// GNTCOPY_* of Xen's grant_table.h: which side of a copy is a grant.
const GNTCOPY_source_gref = 1;
const GNTCOPY_dest_gref = 2;

// struct ioctl_gntdev_grant_copy: u32 count @0, segments * @8.
const COPY_SEGMENTS_AT = 64;
// struct gntdev_grant_copy_segment: source @0 and dest @8, each void *virt or { u32 ref; u16 offset
// @4; u16 domid @6 }; u16 len @16, u16 flags @18, i16 status @20.
const COPY_SEGMENT_BYTES = 24;

/** The most segments of one call. */
const MOST_COPIES = 1024;

/** Copies between a guest's pages and I/O memory, of one call. Adding one allocates nothing. */
export class GrantCopies {
  readonly #arena = new Arena(COPY_SEGMENTS_AT + MOST_COPIES * COPY_SEGMENT_BYTES);
  readonly #view = this.#arena.view;
  readonly #domain: number;
  /** The argument of the call. */
  readonly pointer = this.#arena.pointerAt(0);
  #count = 0;

  /** @param domain The guest. */
  constructor(domain: number) {
    this.#domain = domain;
    putNumber64(this.#view, 8, this.#arena.address + COPY_SEGMENTS_AT);
  }

  /** The argument of the call, for a driver that is played. */
  get view(): DataView<ArrayBuffer> {
    return this.#view;
  }

  /** How many there are. */
  get count(): number {
    return this.#count;
  }

  /** How many more there is room for. */
  get room(): number {
    return MOST_COPIES - this.#count;
  }

  /** Removes all. */
  clear(): void {
    this.#count = 0;
    this.#view.setUint32(0, 0, true);
  }

  /** A copy of the guest's bytes to I/O memory. */
  addFromGuest(
    reference: number,
    offsetBytes: number,
    memorySector: number,
    lengthBytes: number,
  ): void {
    const at = this.#add(lengthBytes, GNTCOPY_source_gref);
    this.#putForeign(at, reference, offsetBytes);
    putNumber64(this.#view, at + 8, memoryAddress(memorySector));
  }

  /** A copy of bytes of I/O memory to the guest. */
  addToGuest(
    reference: number,
    offsetBytes: number,
    memorySector: number,
    lengthBytes: number,
  ): void {
    const at = this.#add(lengthBytes, GNTCOPY_dest_gref);
    putNumber64(this.#view, at, memoryAddress(memorySector));
    this.#putForeign(at + 8, reference, offsetBytes);
  }

  #add(lengthBytes: number, flags: number): number {
    const at = COPY_SEGMENTS_AT + this.#count * COPY_SEGMENT_BYTES;
    this.#count++;
    this.#view.setUint32(0, this.#count, true);
    this.#view.setUint16(at + 16, lengthBytes, true);
    this.#view.setUint16(at + 18, flags, true);
    this.#view.setInt16(at + 20, 0, true);
    return at;
  }

  #putForeign(at: number, reference: number, offsetBytes: number): void {
    this.#view.setInt32(at, reference, true);
    this.#view.setUint16(at + 4, offsetBytes, true);
    this.#view.setUint16(at + 6, this.#domain, true);
  }

  /** Status of a copy after the call: 0, or a GNTST_* of Xen's grant_table.h, below 0. */
  status(index: number): number {
    return this.#view.getInt16(COPY_SEGMENTS_AT + index * COPY_SEGMENT_BYTES + 20, true);
  }

  /** Releases the memory. */
  release(): void {
    this.#arena.release();
  }
}

/** Grants of a guest's pages: the driver's, or a simulation's in tests. */
export interface Grants {
  /**
   * Maps pages of a guest, for reading and writing, over an arena of their size. Throws `SystemError`;
   * the arena then has memory of its own.
   */
  map(domain: number, references: readonly number[], arena: Arena): void;
  /** Ends the mapping; the arena has memory of its own, of zeros. */
  unmap(): void;
  /** Makes copies, whose statuses say how each ended. Returns 0, or an errno when none was made. */
  copy(copies: GrantCopies): number;
  /** Closes the driver, after `unmap`. */
  close(): void;
}

/** The event channel to a guest: the driver's, or a simulation's in tests. */
export interface EventChannel {
  /** Is readable when the guest has notified. */
  readonly fd: number;
  /** The number of this end, which another process needs besides the descriptor. */
  readonly port: number;
  /** Takes the notification of the guest, if there is one, and lets the next one come. */
  takeEvent(): void;
  /** Notifies the guest. Returns 0 or an errno. */
  notify(): number;
  /** Leaves the channel: it is closed also for another process that has it. */
  close(): void;
  /** Closes the descriptor. Another process that has the channel keeps it. */
  drop(): void;
}

/** Xen, or its simulation in tests. */
export interface Xen {
  /** Opens the driver of grants. Throws `SystemError`. */
  openGrants(): Grants;
  /** Binds to an event channel of a guest. Throws `SystemError`. */
  bind(domain: number, port: number): EventChannel;
  /**
   * Goes on with a channel that another process has bound: the binding belongs to the open file. So a
   * notification is not lost, whoever of the two has the file open.
   *
   * @param fd The channel owns it.
   * @param port The number of this end.
   */
  adopt(fd: number, port: number): EventChannel;
}

/** Opens a device of Xen. Throws `SystemError`. */
function openDevice(path: string): number {
  if (pathExists(path)) return openFile(path, O_RDWR | O_NONBLOCK);
  const hint = "is this a domain of Xen, and is the module xen-gntdev or xen-evtchn loaded?";
  throw new SystemError(Errno.ENXIO, `Cannot open ${path} (it does not exist; ${hint})`);
}

class KernelGrants implements Grants {
  readonly #fd = openDevice(GRANTS);
  #mapped: { arena: Arena; index: bigint; count: number } | null = null;

  map(domain: number, references: readonly number[], arena: Arena): void {
    // struct ioctl_gntdev_map_grant_ref: u32 count @0, u64 index @8, { u32 domid; u32 ref }[] @16.
    const argument = new DataView(new ArrayBuffer(16 + 8 * references.length));
    argument.setUint32(0, references.length, true);
    references.forEach((reference, i) => {
      argument.setUint32(16 + 8 * i, domain, true);
      argument.setUint32(20 + 8 * i, reference, true);
    });
    const what = `Cannot map ${references.length} pages of domain ${domain}`;
    if (libc.ioctl(this.#fd, IOCTL_GNTDEV_MAP_GRANT_REF, new Uint8Array(argument.buffer)) < 0) {
      throw new SystemError(lastErrno(), what);
    }
    const index = argument.getBigUint64(8, true);
    this.#mapped = { arena, index, count: references.length };
    try {
      arena.mapDescriptor(this.#fd, Number(index));
    } catch (error) {
      this.unmap();
      throw new SystemError(error instanceof SystemError ? error.errno : Errno.EIO, what);
    }
  }

  unmap(): void {
    if (this.#mapped === null) return;
    const { arena, index, count } = this.#mapped;
    this.#mapped = null;
    // Also after a mapping that failed: the kernel may have removed what was there.
    arena.unmapDescriptor();
    // struct ioctl_gntdev_unmap_grant_ref: u64 index @0, u32 count @8.
    const argument = new DataView(new ArrayBuffer(16));
    argument.setBigUint64(0, index, true);
    argument.setUint32(8, count, true);
    // It cannot fail for what was mapped, and a close of the driver does the same.
    libc.ioctl(this.#fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, new Uint8Array(argument.buffer));
  }

  copy(copies: GrantCopies): number {
    if (libc.ioctlPointer(this.#fd, IOCTL_GNTDEV_GRANT_COPY, copies.pointer) >= 0) return 0;
    return lastErrno();
  }

  close(): void {
    closeFile(this.#fd);
  }
}

class KernelEventChannel implements EventChannel {
  readonly fd: number;
  readonly port: number;
  /** The local port, as the arguments of calls have it. */
  readonly #port: Uint8Array<ArrayBuffer>;
  readonly #event = new Uint8Array(4);

  constructor(fd: number, port: number) {
    this.fd = fd;
    this.port = port;
    this.#port = new Uint8Array(new Uint32Array([port]).buffer);
  }

  static bind(domain: number, port: number): KernelEventChannel {
    const fd = openDevice(EVENTS);
    // struct ioctl_evtchn_bind_interdomain: u32 remote_domain @0, remote_port @4.
    const argument = new Uint8Array(new Uint32Array([domain, port]).buffer);
    const local = libc.ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, argument);
    if (local >= 0) return new KernelEventChannel(fd, local);
    const errno = lastErrno();
    closeFile(fd);
    throw new SystemError(errno, `Cannot bind to event channel ${port} of domain ${domain}`);
  }

  takeEvent(): void {
    // A port that was read is masked until it is written.
    if (libc.read(this.fd, this.#event, 4) === 4) libc.write(this.fd, this.#event, 4);
  }

  notify(): number {
    return libc.ioctl(this.fd, IOCTL_EVTCHN_NOTIFY, this.#port) < 0 ? lastErrno() : 0;
  }

  close(): void {
    libc.ioctl(this.fd, IOCTL_EVTCHN_UNBIND, this.#port);
    closeFile(this.fd);
  }

  drop(): void {
    closeFile(this.fd);
  }
}

/** The Xen on which this machine runs. */
export const kernelXen: Xen = {
  openGrants: () => new KernelGrants(),
  bind: (domain, port) => KernelEventChannel.bind(domain, port),
  adopt: (fd, port) => new KernelEventChannel(fd, port),
};
