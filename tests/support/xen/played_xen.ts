/**
 * Xen as a backend sees it, simulated: guests' pages with their grants, and event channels. Pages are
 * in a file that the guest and the backend map, each for itself.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile, O_CREAT, O_RDWR, openFile, truncateFile } from "../../../ffi/files.ts";
import { Arena, isMemory, memoryAddress, memoryWindow, PAGE_BYTES } from "../../../ffi/memory.ts";
import type { EventChannel, GrantCopies, Grants, Xen } from "../../../ffi/xen.ts";

/** A machine without Xen. */
export const noXen: Xen = {
  openGrants(): Grants {
    throw new SystemError(Errno.ENXIO, "Cannot open /dev/xen/gntdev");
  },
  bind(): EventChannel {
    throw new SystemError(Errno.ENXIO, "Cannot open /dev/xen/evtchn");
  },
  adopt(): EventChannel {
    throw new SystemError(Errno.ENXIO, "Cannot open /dev/xen/evtchn");
  },
};

/** The grant reference of a guest's first page. */
export const FIRST_REFERENCE = 8;
const WINDOW_BYTES = 2 ** 30;
// struct gntdev_grant_copy_segment, behind 64 bytes.
const SEGMENTS_AT = 64;
const SEGMENT_BYTES = 24;
const SOURCE_IS_GRANT = 1;
const DEST_IS_GRANT = 2;
// GNTST_* of grant_table.h.
const GNTST_bad_domain = -2;
const GNTST_bad_gntref = -3;
const GNTST_permission_denied = -8;
const GNTST_bad_copy_arg = -10;

/** What a guest allows with a page. */
export const Access = { None: 0, Read: 1, Write: 2 } as const;

/** Descriptors that are readable when they were signalled. */
export interface Events {
  openEvent(): number;
  signal(fd: number): void;
  /** The signal was taken. */
  taken(fd: number): void;
  /** The backend notifies the guest. */
  notify?(fd: number): void;
  closeEvent(fd: number): void;
  /** The descriptor is closed, and another process has the channel. */
  dropEvent?(fd: number): void;
  /** The descriptor here of the event of another process; by default the same one. */
  adoptEvent?(fd: number): number;
}

/** Memory of a guest, and what it allows. */
export class GuestMemory {
  readonly arena: Arena;
  /** By page: one of `Access`. */
  readonly access: Uint8Array;
  readonly fd: number;
  /** The errno of calls for copies; 0: they are made. */
  copyErrno = 0;
  /** Called before each copy, as a guest may act at any time. */
  beforeCopy: (() => void) | null = null;

  /** @param path A file that other processes map, too; by default one without a name. */
  constructor(readonly domain: number, pages: number, path?: string) {
    const own = path ?? `/dev/shm/played-guest-${crypto.randomUUID()}`;
    this.fd = openFile(own, O_RDWR | O_CREAT, 0o600);
    if (path === undefined) Deno.removeSync(own);
    truncateFile(this.fd, pages * PAGE_BYTES);
    this.arena = new Arena(pages * PAGE_BYTES);
    this.arena.mapDescriptor(this.fd);
    this.access = new Uint8Array(pages).fill(Access.Write);
  }

  /** Page of a grant reference that allows something; -1 for none. */
  pageOf(reference: number): number {
    const page = reference - FIRST_REFERENCE;
    const isThere = page >= 0 && page < this.access.length;
    return isThere && this.access[page] !== Access.None ? page : -1;
  }

  close(): void {
    this.arena.unmapDescriptor();
    this.arena.release();
    closeFile(this.fd);
  }
}

/** The guests of a machine. */
export class PlayedXen implements Xen {
  readonly events: Events;
  readonly memories = new Map<number, GuestMemory>();
  /** By domain and port: the channel of the backend. */
  readonly channels = new Map<string, PlayedChannel>();
  /** Calls for copies, and copies. */
  calls = 0;
  copies = 0;
  /** The backend's memory of the ring that was unmapped last. */
  left = new Uint8Array(0);
  /** Handles that are open. */
  open = 0;
  /** By the number of the backend's end: the channel. */
  readonly #bound = new Map<number, string>();
  #lastPort = 100;
  readonly window = memoryWindow(WINDOW_BYTES);

  constructor(events: Events) {
    this.events = events;
  }

  memory(domain: number, pages: number, path?: string): GuestMemory {
    const memory = new GuestMemory(domain, pages, path);
    this.memories.set(domain, memory);
    return memory;
  }

  /** A domain ends: its pages and channels are not there any more. */
  destroy(domain: number): void {
    this.memories.delete(domain);
    for (const [key, channel] of this.channels) {
      if (key.startsWith(`${domain}:`)) channel.isDead = true;
    }
  }

  openGrants(): Grants {
    return new PlayedGrants(this);
  }

  bind(domain: number, port: number): EventChannel {
    // One that is bound already is none that can be bound: evtchn_bind_interdomain of Xen.
    const isBound = this.channels.has(`${domain}:${port}`);
    if (!this.memories.has(domain) || port <= 0 || port > 4095 || isBound) {
      throw new SystemError(Errno.EINVAL, `Cannot bind to event channel ${port} of ${domain}`);
    }
    const key = `${domain}:${port}`;
    const number = ++this.#lastPort;
    this.#bound.set(number, key);
    const channel = new PlayedChannel(this, { key, fd: this.events.openEvent(), port: number });
    this.channels.set(key, channel);
    return channel;
  }

  adopt(fd: number, port: number): EventChannel {
    const key = this.#bound.get(port) ?? `port ${port}`;
    const own = this.events.adoptEvent?.(fd) ?? fd;
    const channel = new PlayedChannel(this, { key, fd: own, port });
    this.channels.set(key, channel);
    return channel;
  }

  /** A channel is closed: it can be bound again. */
  unbind(key: string, port: number): void {
    this.channels.delete(key);
    this.#bound.delete(port);
  }

  /** The channels that another process has bound are known here. */
  knowOf(other: PlayedXen): void {
    for (const [port, key] of other.#bound) this.#bound.set(port, key);
  }
}

class PlayedChannel implements EventChannel {
  readonly fd: number;
  readonly port: number;
  readonly #xen: PlayedXen;
  readonly #key: string;
  isDead = false;
  /** Notifications of the guest by the backend. */
  notified = 0;

  constructor(
    xen: PlayedXen,
    { key, fd, port }: { readonly key: string; readonly fd: number; readonly port: number },
  ) {
    this.#xen = xen;
    this.#key = key;
    this.fd = fd;
    this.port = port;
    xen.open++;
  }

  takeEvent(): void {
    this.#xen.events.taken(this.fd);
  }

  notify(): number {
    if (this.isDead) return Errno.ENOTCONN;
    this.notified++;
    this.#xen.events.notify?.(this.fd);
    return 0;
  }

  close(): void {
    this.#xen.events.closeEvent(this.fd);
    this.#xen.unbind(this.#key, this.port);
    this.#xen.open--;
  }

  drop(): void {
    this.#xen.events.dropEvent?.(this.fd);
    this.#xen.open--;
  }
}

class PlayedGrants implements Grants {
  readonly #xen: PlayedXen;
  #mapped: Arena | null = null;
  #memory: GuestMemory | null = null;

  constructor(xen: PlayedXen) {
    this.#xen = xen;
    xen.open++;
  }

  map(domain: number, references: readonly number[], arena: Arena): void {
    const memory = this.#xen.memories.get(domain);
    const pages = references.map((reference) => memory?.pageOf(reference) ?? -1);
    const isWhole = pages.every((page, i) =>
      page >= 0 && page === pages[0] + i && memory?.access[page] === Access.Write
    );
    if (memory === undefined || !isWhole || arena.sizeBytes !== pages.length * PAGE_BYTES) {
      throw new SystemError(Errno.EINVAL, `Cannot map pages of domain ${domain}`);
    }
    arena.mapDescriptor(memory.fd, pages[0] * PAGE_BYTES);
    this.#mapped = arena;
    this.#memory = memory;
  }

  unmap(): void {
    if (this.#mapped === null) return;
    this.#mapped.unmapDescriptor();
    this.#xen.left = this.#mapped.bytes;
    this.#mapped = null;
  }

  copy({ view, count }: GrantCopies): number {
    const xen = this.#xen;
    if (view.getUint32(0, true) !== count || count === 0) return Errno.EINVAL;
    xen.calls++;
    xen.copies += count;
    const memory = this.#memory;
    if (memory !== null && memory.copyErrno !== 0) return memory.copyErrno;
    for (let i = 0; i < count; i++) {
      memory?.beforeCopy?.();
      const at = SEGMENTS_AT + i * SEGMENT_BYTES;
      view.setInt16(at + 20, this.#copyOne(view, at), true);
    }
    return 0;
  }

  /** Makes one copy; returns a GNTST_*. Throws where the backend's own memory would be wrong. */
  #copyOne(view: DataView, at: number): number {
    const flags = view.getUint16(at + 18, true);
    if (flags !== SOURCE_IS_GRANT && flags !== DEST_IS_GRANT) throw new Error(`Flags ${flags}`);
    const isFromGuest = flags === SOURCE_IS_GRANT;
    const foreign = isFromGuest ? at : at + 8;
    const own = isFromGuest ? at + 8 : at;
    const length = view.getUint16(at + 16, true);
    const offset = view.getUint16(foreign + 4, true);
    if (length === 0 || offset + length > PAGE_BYTES) return GNTST_bad_copy_arg;
    const address = view.getUint32(own, true) + view.getUint32(own + 4, true) * 2 ** 32;
    const ownAt = address - memoryAddress(0);
    if (!isMemory(ownAt / 512, length / 512) || ownAt + length > WINDOW_BYTES) {
      throw new Error(`A copy of ${length} bytes at ${ownAt} of I/O memory`);
    }
    const memory = this.#xen.memories.get(view.getUint16(foreign + 6, true));
    if (memory === undefined) return GNTST_bad_domain;
    const page = memory.pageOf(view.getUint32(foreign, true));
    if (page < 0) return GNTST_bad_gntref;
    if (!isFromGuest && memory.access[page] !== Access.Write) return GNTST_permission_denied;
    const guestAt = memory.arena.sector * 512 + page * PAGE_BYTES + offset;
    const { window } = this.#xen;
    if (isFromGuest) window.copyWithin(ownAt, guestAt, guestAt + length);
    else window.copyWithin(guestAt, ownAt, ownAt + length);
    return 0;
  }

  close(): void {
    this.unmap();
    this.#xen.open--;
  }
}
