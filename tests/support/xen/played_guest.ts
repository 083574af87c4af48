/**
 * A guest with a block device: the frontend's side of a ring, after io/blkif.h and io/ring.h. It also
 * does what no frontend should do.
 *
 * @module
 */
import { BlkifProtocol } from "../../../ffi/blkif_ring.ts";
import type { GuestRing } from "../../../src/frontend/xenblkif/guest.ts";
import { FIRST_REFERENCE, type GuestMemory, type PlayedXen } from "./played_xen.ts";

export const PAGE = 4096;
export const SECTOR = 512;
const ENTRIES_AT = 64;
const REQ_PROD = 0;
const REQ_EVENT = 1;
const RSP_PROD = 2;
const RSP_EVENT = 3;

export const Op = { Read: 0, Write: 1, Barrier: 2, Flush: 3, Discard: 5, Indirect: 6 } as const;

/** Part of a page: its grant reference, first and last sector. */
export type Segment = readonly [reference: number, first: number, last: number];

export interface GuestRequest {
  readonly operation: number;
  readonly id: bigint;
  readonly sector?: number | bigint;
  readonly segments?: readonly Segment[];
  /** Of a discard. */
  readonly sectors?: number | bigint;
  /** Of an indirect request: the operation, and the page in which the segments are. */
  readonly indirect?: { readonly operation: number; readonly page: number };
  /** Instead of the number of segments. */
  readonly count?: number;
}

export interface GuestResponse {
  readonly id: bigint;
  readonly operation: number;
  readonly status: number;
}

export interface GuestOptions {
  readonly domain?: number;
  readonly device?: number;
  readonly order?: number;
  readonly protocol?: BlkifProtocol;
  readonly pages?: number;
  readonly pollDurationUs?: number;
  readonly isReadOnly?: boolean;
  /** A file for the memory, which another process serves. */
  readonly path?: string;
}

/** The frontend of one device. Its ring is in the first pages of its memory. */
export class PlayedGuest {
  readonly memory: GuestMemory;
  readonly ring: GuestRing;
  readonly entries: number;
  readonly view: DataView<ArrayBuffer>;
  readonly words: Int32Array<ArrayBuffer>;
  #xen: PlayedXen;
  readonly #is32: boolean;
  readonly #entryBytes: number;
  /** Requests put and responses taken in all. */
  put = 0;
  taken = 0;
  /** Notifications of the backend. */
  kicks = 0;

  constructor(xen: PlayedXen, options: GuestOptions = {}) {
    const { domain = 1, device = 51712, order = 0, protocol = BlkifProtocol.X86_64 } = options;
    const { pages = 600, pollDurationUs = 0 } = options;
    this.#xen = xen;
    this.memory = xen.memory(domain, pages, options.path);
    const { bytes } = this.memory.arena;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.words = new Int32Array(bytes.buffer, bytes.byteOffset, 16);
    this.#is32 = protocol === BlkifProtocol.X86_32;
    this.#entryBytes = this.#is32 ? 108 : 112;
    const room = Math.floor(((PAGE << order) - ENTRIES_AT) / this.#entryBytes);
    this.entries = 2 ** Math.floor(Math.log2(room));
    const references = Array.from({ length: 1 << order }, (_, i) => FIRST_REFERENCE + i);
    const polling = { pollDurationUs, pollIdleThreshold: 50 };
    const { isReadOnly = false } = options;
    this.ring = { domain, device, references, port: 5, protocol, ...polling, isReadOnly };
    this.reset();
  }

  /** Another process serves the guest from now on, as it is. */
  moveTo(xen: PlayedXen): void {
    xen.memories.set(this.ring.domain, this.memory);
    this.#xen = xen;
  }

  /** SHARED_RING_INIT and FRONT_RING_INIT. */
  reset(): void {
    this.words.fill(0);
    this.words[REQ_EVENT] = 1;
    this.words[RSP_EVENT] = 1;
    this.put = 0;
    this.taken = 0;
  }

  /** The grant reference of a page. */
  reference(page: number): number {
    return FIRST_REFERENCE + page;
  }

  /** The bytes of sectors of a page. */
  sectors(page: number, first: number, last: number): Uint8Array<ArrayBuffer> {
    const at = page * PAGE;
    return this.memory.arena.bytes.subarray(at + first * SECTOR, at + (last + 1) * SECTOR);
  }

  /** Where entry `index` is in the memory. */
  entryAt(index: number): number {
    return ENTRIES_AT + (index & (this.entries - 1)) * this.#entryBytes;
  }

  /** Whether there is room for a request. */
  get hasRoom(): boolean {
    return this.put - this.taken < this.entries;
  }

  /** Adds a request, which `push` shows. */
  add(request: GuestRequest): void {
    const { view } = this;
    const at = this.entryAt(this.put++);
    for (let i = 0; i < this.#entryBytes; i += 4) view.setUint32(at + i, 0, true);
    const { operation, segments = [], count = segments.length, indirect } = request;
    view.setUint8(at, operation);
    const id = at + (this.#is32 ? 4 : 8);
    view.setBigUint64(id, request.id, true);
    view.setBigUint64(id + 8, BigInt(request.sector ?? 0), true);
    if (operation === Op.Discard) {
      view.setBigUint64(id + 16, BigInt(request.sectors ?? 0), true);
    } else if (indirect !== undefined) {
      view.setUint8(at + 1, indirect.operation);
      view.setUint16(at + 2, count, true);
      view.setUint32(id + 20, this.reference(indirect.page), true);
      segments.forEach((segment, i) => this.#putSegment(indirect.page * PAGE + 8 * i, segment));
    } else {
      view.setUint8(at + 1, count);
      segments.slice(0, 11).forEach((segment, i) => this.#putSegment(id + 16 + 8 * i, segment));
    }
  }

  #putSegment(at: number, [reference, first, last]: Segment): void {
    this.view.setUint32(at, reference, true);
    this.view.setUint8(at + 4, first);
    this.view.setUint8(at + 5, last);
  }

  /** RING_PUSH_REQUESTS_AND_CHECK_NOTIFY; returns whether the backend was notified. */
  push(): boolean {
    const before = Atomics.load(this.words, REQ_PROD);
    Atomics.store(this.words, REQ_PROD, this.put | 0);
    const wanted = Atomics.load(this.words, REQ_EVENT);
    const isWanted = (this.put - wanted) >>> 0 < (this.put - before) >>> 0;
    if (isWanted) this.notify();
    return isWanted;
  }

  /** Notifies the backend, wanted or not. */
  notify(): void {
    this.kicks++;
    const channel = this.#xen.channels.get(`${this.ring.domain}:${this.ring.port}`);
    if (channel !== undefined) this.#xen.events.signal(channel.fd);
  }

  /** How often the backend has notified. */
  get notified(): number {
    return this.#xen.channels.get(`${this.ring.domain}:${this.ring.port}`)?.notified ?? 0;
  }

  /** How many responses were not taken. */
  get waiting(): number {
    return Atomics.load(this.words, RSP_PROD) - this.taken | 0;
  }

  /** Takes all responses there are, and asks to be notified of the next one. */
  take(): GuestResponse[] {
    const responses: GuestResponse[] = [];
    while (this.waiting > 0) {
      const at = this.entryAt(this.taken++);
      responses.push({
        id: this.view.getBigUint64(at, true),
        operation: this.view.getUint8(at + 8),
        status: this.view.getInt16(at + 10, true),
      });
    }
    Atomics.store(this.words, RSP_EVENT, this.taken + 1 | 0);
    return responses;
  }

  /** Sets `rsp_event`. */
  askAt(index: number): void {
    Atomics.store(this.words, RSP_EVENT, index);
  }

  /** Sets `req_prod`, whatever was put. */
  claim(produced: number): void {
    Atomics.store(this.words, REQ_PROD, produced | 0);
  }

  close(): void {
    this.memory.close();
  }
}
