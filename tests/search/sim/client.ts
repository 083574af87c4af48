/**
 * A client of a device: it has many requests under way, and tells the models what they do and when
 * they are answered.
 *
 * @module
 */
import { Errno } from "../../../ffi/errno.ts";
import { RequestKind, type RequestOwner } from "../../../src/vbd/slots.ts";
import type { Vbd } from "../../../src/vbd/vbd.ts";
import type { LogModel } from "./changed_blocks.ts";
import { formatNamed } from "./formats/registry.ts";
import { Change, CUT, type ImageModel, type Moment, NOISE, type Ticks } from "./model.ts";
import { SECTOR_BYTES, stamp } from "./stamps.ts";

/** A request that a client may make. */
export interface Request {
  readonly kind: "read" | "write" | "zero" | "fill" | "discard" | "flush" | "status";
  readonly sector: number;
  readonly count: number;
  readonly fua?: boolean;
}

interface UnderWay {
  readonly request: Request;
  readonly start: number;
  readonly change: Change | null;
  readonly what: string;
  /** The log that the device had when the request was started. */
  readonly log: LogModel | null;
}

const KINDS = {
  read: RequestKind.Read,
  write: RequestKind.Write,
  zero: RequestKind.Zero,
  fill: RequestKind.Fill,
  discard: RequestKind.Discard,
  flush: RequestKind.Flush,
  status: RequestKind.Status,
} as const;

const MOST_EXTENTS = 64;

/** What a client needs of its world. */
export interface ClientWorld {
  readonly ticks: Ticks;
  /** The sectors of a range that the world looks at. */
  hotSectors(sector: number, count: number): Iterable<number>;
  /** A number for the content of a write. */
  nextStamp(): number;
  trace(line: () => string): void;
  /** A request failed; throws where that cannot be. */
  requestFailed(what: string, errno: number): void;
  /** Notes what must end the run. */
  fail(error: unknown): void;
}

/** The only client of a device. */
export class Client implements RequestOwner {
  readonly #underWay = new Map<number, UnderWay>();
  #log: LogModel | null = null;

  constructor(
    readonly world: ClientWorld,
    readonly vbd: Vbd,
    /** The image that is served. */
    public leaf: ImageModel,
  ) {}

  /** The log of changed blocks that the device has. */
  get log(): LogModel | null {
    return this.#log;
  }

  /** Requests that wait while the device has none open get their bits in this one. */
  set log(log: LogModel | null) {
    this.#log = log;
    for (const { request: { sector, count }, change } of this.#underWay.values()) {
      if (change !== null) log?.started(sector, count);
    }
  }

  /** Requests that were not answered. */
  get outstanding(): number {
    return this.#underWay.size;
  }

  /** Whether another request can be started. */
  get hasRoom(): boolean {
    return this.vbd.requests.freeSlots > 0;
  }

  /** Starts a request. */
  start(request: Request): void {
    const { kind, sector, count, fua = false } = request;
    const { requests } = this.vbd;
    const slot = requests.takeSlot();
    if (slot < 0) return;
    const { ticks } = this.world;
    const start = ticks.next();
    const value = kind === "write" ? this.world.nextStamp() : 0;
    const name = fua ? `${kind} with FUA` : kind;
    const what = kind === "flush"
      ? `flush ${start}`
      : kind === "write"
      ? `${name} of sectors ${sector}+${count} with stamp ${value}`
      : `${name} of sectors ${sector}+${count}`;
    this.world.trace(() => `  ${start}: ${this.leaf.path}: ${what}`);
    let change: Change | null = null;
    if (kind === "write" || kind === "zero" || kind === "fill" || kind === "discard") {
      change = new Change(what, start);
      const isDiscard = kind === "discard";
      const { encrypted } = formatNamed(this.leaf.format);
      const values = isDiscard && encrypted ? [NOISE] : [value];
      const mark = { change, values, keeps: isDiscard };
      for (const each of this.world.hotSectors(sector, count)) this.leaf.mark(each, mark);
      this.#log?.started(sector, count);
    }
    if (kind === "write") {
      const { buffer, byteOffset } = requests.memory.bytes;
      const at = byteOffset + requests.slotOffset(slot);
      stamp(new Uint32Array(buffer, at, count * SECTOR_BYTES / 4), { sector, count, value });
    }
    this.#underWay.set(slot, { request, start, change, what, log: this.#log });
    if (kind === "status") requests.startStatus(slot, sector, count, MOST_EXTENTS, this);
    else requests.start(slot, KINDS[kind], sector, count, fua, this);
  }

  requestDone(slot: number, errno: number): void {
    const entry = this.#underWay.get(slot);
    if (entry === undefined) return this.world.fail(new Error(`Slot ${slot} ended twice`));
    this.#underWay.delete(slot);
    const { ticks } = this.world;
    const { request, start, change, what } = entry;
    const end = ticks.next();
    this.world.trace(() => `  ${end}: answered ${errno}: ${what}`);
    try {
      if (errno !== 0) this.world.requestFailed(what, errno);
      if (change !== null) {
        change.end = end;
        change.answered = errno === 0;
        if (request.fua && errno === 0) change.durable = true;
        // Parts of a request that goes in steps may have been carried out with the log before.
        const isInLog = request.kind === "write" || entry.log === this.#log;
        if (errno === 0 && isInLog) this.#log?.answered(request.sector, request.count);
      } else if (errno === 0) this.#verify(slot, { request, start });
    } catch (error) {
      this.world.fail(error);
    }
    this.vbd.requests.releaseSlot(slot);
  }

  #verify(slot: number, { request, start }: { request: Request; start: number }): void {
    const { requests } = this.vbd;
    const { kind, sector, count } = request;
    const moment: Moment = { kind: "read", since: start };
    if (kind === "flush") {
      for (let image: ImageModel | null = this.leaf; image !== null; image = image.parent) {
        image.flushed(start);
      }
    } else if (kind === "read") {
      const { bytes } = requests.memory;
      const at = requests.slotOffset(slot);
      const data = bytes.subarray(at, at + count * SECTOR_BYTES);
      this.leaf.compare(data, sector, moment, "A read of the running disk");
    } else this.#verifyExtents(slot, { sector, count, moment });
  }

  #verifyExtents(
    slot: number,
    { sector, count, moment }: { sector: number; count: number; moment: Moment },
  ): void {
    const { requests } = this.vbd;
    const { view } = requests.memory;
    let at = sector;
    for (let i = 0; i < requests.extents(slot); i++) {
      const place = requests.slotOffset(slot) + 8 * i;
      const length = view.getUint32(place, true);
      const isHole = view.getUint32(place + 4, true) !== 1;
      if (length === 0 || at + length > sector + count) throw new Error("A wrong extent");
      for (const each of isHole ? this.world.hotSectors(at, length) : []) {
        if (this.leaf.values(each, moment).has(0)) continue;
        throw new Error(
          `A status says that sector ${each} of ${this.leaf.path} is a hole, but it holds ` +
            [...this.leaf.values(each, CUT)].join(" or "),
        );
      }
      at += length;
    }
    if (at === sector) throw new Error("A status without extents");
  }
}

/** Whether a request that a device ended, because it was closed, may have this error. */
export function endsByClose(errno: number): boolean {
  return errno === Errno.ESHUTDOWN;
}
