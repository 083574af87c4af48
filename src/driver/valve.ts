import { EPOLLIN, EPOLLOUT } from "../../ffi/epoll.ts";
import { type Done, Errno, errnoName, messageOf, SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import {
  putNumber64,
  receiveAt,
  sendAt,
  unixAddress,
  unixConnectAtOnce,
} from "../../ffi/sockets.ts";
import {
  bridgePath,
  MOST_NEED_BYTES,
  numberAt,
  VALVE_CREDIT_BYTES,
  VALVE_REQUEST_BYTES,
} from "../rated/valve_protocol.ts";
import type { FdHandler } from "../scheduler/scheduler.ts";
import type { ShareCondition } from "./condition.ts";
import type { Deferred } from "./deferral.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  REQUEST_SLOTS,
  type RequestSink,
  SECTOR_BYTES,
} from "./driver.ts";
import { FilterImage } from "./filter.ts";
import { parseImageName } from "./image_name.ts";

/** How long until a bridge is looked for again (TD_VALVE_CONNECT_INTERVAL). */
const RECONNECT_MS = 2_000;
/** The longest zeroing, sectors: it has to be granted whole. */
const MOST_ZERO_SECTORS = 2048;
/** The most bytes that a bridge is asked for ahead. It refuses more than twice as much. */
const MOST_ASKED_BYTES = MOST_NEED_BYTES / 2;
const NONE = -1;

/** What waits in a slot. */
const Change = { Write: 0, Zero: 1, Fill: 2 } as const;
type Change = (typeof Change)[keyof typeof Change];

/**
 * Shares a data rate with other disks. `valve:BRIDGE:TYPE:PATH` asks a bridge, which td-rated is,
 * before it writes; BRIDGE is the path of the bridge's socket, or a name in /var/run/blktap/ratelimit.
 * Reads and discards pass. So does everything while there is no bridge.
 */
export const valveDriver: DriverType = {
  type: "valve",
  where: "BRIDGE:IMAGE",
  summary: "A rate of writing that disks share by a td-rated, in front of another image",
  number: 14,
  named: (rest: string) => ({ kind: "image", at: rest.indexOf(":") + 1 }),
  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    const colon = spec.path.indexOf(":");
    const bridge = spec.path.slice(0, Math.max(0, colon));
    const what = `Cannot open valve:${spec.path}`;
    if (bridge === "") {
      throw new SystemError(Errno.EINVAL, `${what} (it is named valve:BRIDGE:TYPE:PATH)`);
    }
    try {
      unixAddress(bridgePath(bridge));
    } catch (error) {
      throw new SystemError(Errno.ENAMETOOLONG, `${what} (${messageOf(error)})`);
    }
    return new ValveImage(spec, { below: spec.path.slice(colon + 1), bridge, context, sink });
  },
};

/** A filter that asks a bridge before it writes. */
class ValveImage extends FilterImage implements RequestSink, FdHandler, Deferred {
  /** For the end-of-turn list; not for anyone else. */
  deferred = false;
  override readonly sinkBelow: RequestSink = this;
  readonly faults: ImageContext["faults"];
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #path: string;
  #fd = NONE;
  #timer = 0;
  #closed = false;
  /** Why there was no connection, as the log was told. */
  #toldWhy = "";
  /** Bytes that were granted and not used, asked for and not granted, and still to be asked for. */
  #credit = 0;
  #asked = 0;
  #wanted = 0;
  /** Bytes that have ended, of which the bridge does not know yet. */
  #ended = 0;
  /** Changes that wait, in order; and what each of them is, by slot. */
  readonly #stored = new Int32Array(REQUEST_SLOTS);
  #head = 0;
  #size = 0;
  readonly #change = new Uint8Array(REQUEST_SLOTS);
  readonly #sector = new Float64Array(REQUEST_SLOTS);
  readonly #count = new Float64Array(REQUEST_SLOTS);
  readonly #memorySector = new Int32Array(REQUEST_SLOTS);
  /** By slot: sectors under way that the bridge granted. */
  readonly #granted = new Float64Array(REQUEST_SLOTS);
  readonly #output = new Uint8Array(VALVE_REQUEST_BYTES);
  readonly #outputView = new DataView(this.#output.buffer);
  readonly #outputAddress = addressOf(this.#output);
  readonly #input = new Uint8Array(64 * VALVE_CREDIT_BYTES);
  readonly #inputView = new DataView(this.#input.buffer);
  readonly #inputAddress = addressOf(this.#input);
  /** Bytes of a credit that has not come whole. */
  #received = 0;
  #waitsForRoom = false;
  readonly #reconnect = (): void => {
    this.#timer = 0;
    if (!this.faults.failed) this.#connect();
  };

  constructor(
    spec: ImageSpec,
    { below, bridge, context, sink }: {
      below: string;
      bridge: string;
      context: ImageContext;
      sink: RequestSink;
    },
  ) {
    super(spec, parseImageName(below));
    this.#context = context;
    this.faults = context.faults;
    this.#sink = sink;
    this.#path = bridgePath(bridge);
    this.#connect();
  }

  condition(): ShareCondition {
    const isConnected = this.#fd !== NONE;
    return { kind: "share", bridge: this.#path, isConnected, waiting: this.#size };
  }

  override get zeroSectors(): number {
    return Math.min(this.below.zeroSectors, MOST_ZERO_SECTORS);
  }

  override get fillSectors(): number {
    return Math.min(this.below.fillSectors, MOST_ZERO_SECTORS);
  }

  // ---- requests ---------------------------------------------------------------------------

  override write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#memorySector[slot] = memorySector;
    this.#take(Change.Write, slot, sector, count);
  }

  override zero(slot: number, sector: number, count: number): void {
    this.#take(Change.Zero, slot, sector, count);
  }

  override fill(slot: number, sector: number, count: number): void {
    this.#take(Change.Fill, slot, sector, count);
  }

  #take(change: Change, slot: number, sector: number, count: number): void {
    this.#change[slot] = change;
    this.#sector[slot] = sector;
    this.#count[slot] = count;
    if (this.#fd === NONE) return this.#forward(slot);
    const bytes = count * SECTOR_BYTES;
    if (this.#size === 0 && this.#credit >= bytes) return this.#spend(slot);
    this.#stored[(this.#head + this.#size++) % REQUEST_SLOTS] = slot;
    this.#wanted += bytes;
    this.#context.deferral.add(this);
  }

  /** Forwards a change for which there is credit. */
  #spend(slot: number): void {
    this.#credit -= this.#count[slot] * SECTOR_BYTES;
    this.#granted[slot] = this.#count[slot];
    this.#forward(slot);
  }

  #forward(slot: number): void {
    const sector = this.#sector[slot];
    const count = this.#count[slot];
    switch (this.#change[slot]) {
      case Change.Write:
        return this.below.write(slot, sector, count, this.#memorySector[slot]);
      case Change.Zero:
        return this.below.zero(slot, sector, count);
      default:
        return this.below.fill(slot, sector, count);
    }
  }

  #shift(): number {
    const slot = this.#stored[this.#head];
    this.#head = (this.#head + 1) % REQUEST_SLOTS;
    this.#size--;
    return slot;
  }

  /** Forwards those that wait as far as the credit goes. */
  #forwardStored(): void {
    while (this.#size > 0 && this.#count[this.#stored[this.#head]] * SECTOR_BYTES <= this.#credit) {
      this.#spend(this.#shift());
    }
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (this.#granted[slot] > 0) {
      this.#granted[slot] -= sectors;
      this.#ended += sectors * SECTOR_BYTES;
      this.#context.deferral.add(this);
    }
    this.#sink.pieceDone(slot, sectors, errno);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    return this.#sink.extent(slot, sectors, isData);
  }

  statusDone(slot: number, errno: number): void {
    this.#sink.statusDone(slot, errno);
  }

  // ---- the bridge -------------------------------------------------------------------------

  #connect(): void {
    const { log, scheduler } = this.#context;
    let fd = NONE;
    try {
      fd = unixConnectAtOnce(this.#path);
      scheduler.watch(fd, EPOLLIN, this);
    } catch (error) {
      if (fd !== NONE) closeFile(fd);
      const why = messageOf(error);
      if (why !== this.#toldWhy) log(`${why}; writes pass until the bridge is there`);
      this.#toldWhy = why;
      this.#timer = scheduler.addTimer(RECONNECT_MS, this.#reconnect);
      return;
    }
    this.#toldWhy = "";
    this.#fd = fd;
  }

  ready(events: number): void {
    // What waits must not go on to the images of a disk that has failed: its requests end with EIO.
    if (this.faults.failed) return this.abandon();
    if ((events & EPOLLOUT) !== 0) this.#send();
    if (this.#fd !== NONE && (events & ~EPOLLOUT) !== 0) this.#receive();
  }

  #receive(): void {
    const room = this.#input.length - this.#received;
    const got = receiveAt(this.#fd, this.#inputAddress + this.#received, room);
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return;
    if (got <= 0) return this.#lose(got === 0 ? "it hung up" : errnoName(-got));
    this.#received += got;
    const credits = Math.floor(this.#received / VALVE_CREDIT_BYTES);
    for (let i = 0; i < credits; i++) {
      const credit = numberAt(this.#inputView, i * VALVE_CREDIT_BYTES);
      if (credit > this.#asked) return this.#lose("it granted more than it was asked for");
      this.#credit += credit;
      this.#asked -= credit;
    }
    const used = credits * VALVE_CREDIT_BYTES;
    this.#input.copyWithin(0, used, this.#received);
    this.#received -= used;
    this.#forwardStored();
    if (this.#wanted > 0) this.#context.deferral.add(this);
  }

  /** The end-of-turn list calls this: all that a turn needs is one message. */
  runDeferred(): void {
    if (this.#fd !== NONE && !this.#waitsForRoom && !this.faults.failed) this.#send();
  }

  #send(): void {
    const need = Math.min(this.#wanted, MOST_ASKED_BYTES - this.#asked);
    if (need > 0 || this.#ended > 0) {
      putNumber64(this.#outputView, 0, need);
      putNumber64(this.#outputView, 8, this.#ended);
      const put = sendAt(this.#fd, this.#outputAddress, VALVE_REQUEST_BYTES);
      if (put === -Errno.EAGAIN || put === -Errno.EINTR) return this.#watchRoom(true);
      // A message is so much shorter than the buffer that it goes whole, or not at all.
      if (put !== VALVE_REQUEST_BYTES) {
        return this.#lose(put < 0 ? errnoName(-put) : "a short send");
      }
      this.#wanted -= need;
      this.#asked += need;
      this.#ended = 0;
    }
    this.#watchRoom(false);
  }

  #watchRoom(waits: boolean): void {
    if (waits === this.#waitsForRoom) return;
    this.#waitsForRoom = waits;
    this.#context.scheduler.rewatch(this.#fd, waits ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }

  #lose(why: string): void {
    const { log, scheduler } = this.#context;
    log(`${this.#path}: lost the bridge (${why}); writes pass until it is there again`);
    this.#timer = scheduler.addTimer(RECONNECT_MS, this.#reconnect);
    this.#hangUp();
  }

  /** Ends the connection. What waits goes on. */
  #hangUp(): void {
    if (this.#fd === NONE) return;
    this.#context.scheduler.unwatch(this.#fd);
    closeFile(this.#fd);
    this.#fd = NONE;
    this.#credit = 0;
    this.#asked = 0;
    this.#wanted = 0;
    this.#ended = 0;
    this.#received = 0;
    this.#waitsForRoom = false;
    this.#granted.fill(0);
    while (this.#size > 0) this.#forward(this.#shift());
  }

  drain(): void {
    if (this.#fd === NONE) return;
    this.#timer = this.#context.scheduler.addTimer(RECONNECT_MS, this.#reconnect);
    this.#hangUp();
  }

  override close(done: Done): void {
    this.#end();
    done(null);
  }

  override abandon(): void {
    // The images below do nothing any more, so what waits must not go on.
    this.#size = 0;
    this.#end();
  }

  #end(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#context.scheduler.cancelTimer(this.#timer);
    this.#hangUp();
  }
}
