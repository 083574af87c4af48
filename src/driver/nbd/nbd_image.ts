import { type Done, Errno, SystemError } from "../../../ffi/errno.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_STATE_ZERO,
} from "../../nbd/protocol.ts";
import {
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type RequestSink,
  SECTOR_BYTES,
} from "../driver.ts";
import type { LogFields } from "../../log/log.ts";
import type { ServerCondition } from "../condition.ts";
import { BackOff } from "./back_off.ts";
import { closeConnected, type Connected, type Destination, Dial, toError } from "./dial.ts";
import { handedOver } from "./handed_over.ts";
import type { RemoteExport } from "./handshake.ts";
import { Link, type LinkHost, lossText } from "./link.ts";

const EXTENT_BYTES = 8;
/** Sectors of one request to write zeros, and of one for extents: its length has 32 bits. */
const ZERO_SECTORS = 1 << 16;
const STATUS_SECTORS = 1 << 22;

/** The most connections to a server that allows several. */
const MOST_LINKS = 4;
/** So many requests on each connection call for another one. */
const BUSY_LOAD = 12;
/** How long not to try again after another connection could not be made. */
const MORE_AGAIN_MS = 30_000;

/** Why an export cannot be this image; null when it can. */
export function exportFault(remote: RemoteExport, spec: ImageSpec): SystemError | null {
  const title = `${spec.type}:${spec.path}`;
  if (remote.minimumBlockBytes > SECTOR_BYTES) {
    const why = `its server takes no less than ${remote.minimumBlockBytes} bytes at a time`;
    return new SystemError(Errno.EINVAL, `Cannot serve ${title} (${why})`);
  }
  if (remote.maximumBlockBytes < SECTOR_BYTES) {
    const why = `its server takes no more than ${remote.maximumBlockBytes} bytes at a time`;
    return new SystemError(Errno.EINVAL, `Cannot serve ${title} (${why})`);
  }
  if (remote.sizeBytes < SECTOR_BYTES) {
    return new SystemError(Errno.EINVAL, `Cannot serve ${title}: it holds no whole sector`);
  }
  if (remote.sizeBytes > Number.MAX_SAFE_INTEGER) {
    // Larger sizes are not exact here, and 2^64 - 1 would become 2^64: a disk of no bytes to clients.
    return new SystemError(Errno.EFBIG, `Cannot serve ${title}: it is larger than 8 PiB`);
  }
  if (!spec.readOnly && (remote.flags & NBD_FLAG_READ_ONLY) !== 0) {
    return new SystemError(Errno.EROFS, `Cannot open ${title} for writing (its server forbids it)`);
  }
  return null;
}

/**
 * An export of an NBD server. Many requests are in flight at once and end in any order. When the
 * connection is lost, requests fail with ENOTCONN, which the device retries, and the image connects
 * again: to the address that it had, then to the others that have the export.
 *
 * To a server that allows it, more connections are opened while those that there are have much to do.
 * They go to the address of the first one, and are closed with it, so that never two servers have
 * requests of one disk.
 *
 * A write that the server answered before the connection was lost counts as written. A later flush
 * makes durable what the server still has.
 */
export class NbdImage implements ImageDriver, LinkHost {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly parent = null;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly context: ImageContext;
  readonly #sink: RequestSink;
  /** Where the export is: the address in use first. */
  #destinations: Destination[];
  /** Which of them is tried next. */
  #next = 0;
  /** The connections. The first one is always wanted. */
  readonly #links: Link[] = [];
  readonly #mostSectors: number;
  #flags = 0;
  #allocationId: number | null = null;
  #dial: Dial | null = null;
  #redialTimer = 0;
  /** The attempt to make another connection, and until when there is none. */
  #moreDial: Dial | null = null;
  #moreDueMs = 0;
  /** Whether the server allows another connection, and there is room for it. */
  #mayHaveMore = false;
  readonly #backOff = new BackOff();
  /** The device is to be closed: nothing is asked of the server any more. */
  #givenUp = false;
  #toldWhy = "";
  #toldMore = "";
  /** When the first connection was lost, and why; when the next attempt is made. */
  #lostMs = 0;
  #lostWhy = "";
  #redialMs = 0;
  #closed = false;

  constructor(
    { spec, context, sink, connected }: {
      spec: ImageSpec;
      context: ImageContext;
      sink: RequestSink;
      connected: Connected;
    },
  ) {
    this.spec = spec;
    this.context = context;
    this.#sink = sink;
    const { remote, destination, others } = connected;
    this.sectors = Math.floor(remote.sizeBytes / SECTOR_BYTES);
    this.#mostSectors = Math.floor(remote.maximumBlockBytes / SECTOR_BYTES);
    const canZero = (remote.flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0;
    this.zeroSectors = canZero ? ZERO_SECTORS : context.zeros.sectors;
    this.fillSectors = context.zeros.sectors;
    this.#destinations = [destination, ...others];
    this.#links.push(new Link(this));
    try {
      this.#use(connected);
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  get #title(): string {
    return `${this.spec.type}:${this.spec.path}`;
  }

  /** Takes the first connection; closes it when the loop cannot watch it. Throws `SystemError`. */
  #use(connected: Connected): void {
    const { remote } = connected;
    this.#links[0].use(connected);
    this.#backOff.connected(this.context.scheduler.nowMs());
    this.#flags = remote.flags;
    this.#allocationId = remote.allocationId;
    this.#noteRoom();
  }

  condition(nowMs: number): ServerCondition {
    const [first] = this.#links;
    const oldestMs = Math.min(...this.#links.map((link) => link.oldestMs));
    const isTried = this.#redialTimer !== 0;
    return {
      kind: "server",
      image: this.#title,
      lostMs: first.isOpen ? null : nowMs - this.#lostMs,
      why: first.isOpen ? "" : this.#toldWhy || this.#lostWhy,
      nextTryMs: isTried ? Math.max(0, this.#redialMs - nowMs) : null,
      asked: this.#links.reduce((sum, { asked }) => sum + asked, 0),
      oldestMs: oldestMs === Infinity ? 0 : nowMs - oldestMs,
      meanMs: first.meanMs,
    };
  }

  operationsFor(sectors: number): number {
    return Math.max(
      1,
      Math.ceil(sectors / Math.min(this.#mostSectors, this.context.zeros.sectors)),
    );
  }

  // ---- requests ---------------------------------------------------------------------------

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.readSectors += count;
    for (let done = 0; done < count;) {
      const part = Math.min(this.#mostSectors, count - done);
      this.#start(NBD_CMD_READ, slot, sector + done, part, memorySector + done);
      done += part;
    }
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.writtenSectors += count;
    for (let done = 0; done < count;) {
      const part = Math.min(this.#mostSectors, count - done);
      this.#start(NBD_CMD_WRITE, slot, sector + done, part, memorySector + done);
      done += part;
    }
  }

  zero(slot: number, sector: number, count: number): void {
    if ((this.#flags & NBD_FLAG_SEND_WRITE_ZEROES) !== 0) {
      return this.#start(NBD_CMD_WRITE_ZEROES, slot, sector, count, 0);
    }
    this.#writeZeros(slot, sector, count);
  }

  fill(slot: number, sector: number, count: number): void {
    this.counts.writtenSectors += count;
    this.#writeZeros(slot, sector, count);
  }

  #writeZeros(slot: number, sector: number, count: number): void {
    const { at, sectors } = this.context.zeros;
    const most = Math.min(this.#mostSectors, sectors);
    for (let done = 0; done < count; done += most) {
      const part = Math.min(most, count - done);
      this.#start(NBD_CMD_WRITE, slot, sector + done, part, at);
    }
  }

  discard(slot: number, sector: number, count: number): void {
    if ((this.#flags & NBD_FLAG_SEND_TRIM) === 0) return this.#sink.pieceDone(slot, count, 0);
    this.#start(NBD_CMD_TRIM, slot, sector, count, 0);
  }

  flush(slot: number): void {
    if ((this.#flags & NBD_FLAG_SEND_FLUSH) === 0 && this.#links[0].isOpen) {
      return this.#sink.pieceDone(slot, 1, 0);
    }
    this.#start(NBD_CMD_FLUSH, slot, 0, 1, 0);
  }

  status(slot: number, sector: number, count: number): void {
    if (this.#allocationId === null && this.#links[0].isOpen) {
      this.#sink.extent(slot, count, true);
      return this.#sink.statusDone(slot, 0);
    }
    this.#start(NBD_CMD_BLOCK_STATUS, slot, sector, Math.min(count, STATUS_SECTORS), 0);
  }

  #start(command: number, slot: number, sector: number, count: number, memorySector: number): void {
    const link = this.#leastBusy();
    if (!link.isOpen) return this.pieceEnded(command, slot, count, Errno.ENOTCONN);
    link.start(command, slot, sector, count, memorySector);
    if (link.load > BUSY_LOAD) this.#connectMore();
  }

  /** The open connection with the fewest requests; the first one when none is open. */
  #leastBusy(): Link {
    let best = this.#links[0];
    for (let i = 1; i < this.#links.length; i++) {
      const link = this.#links[i];
      if (link.isOpen && link.load < best.load) best = link;
    }
    return best;
  }

  // ---- answers ----------------------------------------------------------------------------

  /** Tells the end of a piece. The one place that does: a status request ends in its own way. */
  pieceEnded(command: number, slot: number, count: number, errno: number): void {
    if (command === NBD_CMD_BLOCK_STATUS) this.#sink.statusDone(slot, errno);
    else this.#sink.pieceDone(slot, count, errno);
  }

  extentsCame(slot: number, sectors: number, view: DataView, at: number, count: number): void {
    let left = sectors;
    for (let i = 0; i < count && left > 0; i++) {
      const bytes = view.getUint32(at + EXTENT_BYTES * i, false);
      const isZero = (view.getUint32(at + EXTENT_BYTES * i + 4, false) & NBD_STATE_ZERO) !== 0;
      // An extent that ends within its first sector counts as data.
      const whole = Math.min(left, Math.max(1, Math.floor(bytes / SECTOR_BYTES)));
      left -= whole;
      const wanted = this.#sink.extent(slot, whole, !isZero || bytes < SECTOR_BYTES);
      // After an extent that ends within a sector, the rest is asked for again.
      if (!wanted || bytes % SECTOR_BYTES !== 0) break;
    }
    this.#sink.statusDone(slot, 0);
  }

  // ---- the connection ---------------------------------------------------------------------

  linkLost(link: Link, errno: number): void {
    const { log, scheduler } = this.context;
    const why = lossText(link, errno);
    this.#lostWhy = why;
    const [first] = this.#links;
    if (link === first) {
      this.#lostMs = scheduler.nowMs();
      const fields: LogFields = { event: "server-lost", image: this.#title, errno };
      log(`${this.#title}: lost the connection (${why}); connecting again`, fields);
    } else {
      this.#moreDueMs = scheduler.nowMs() + MORE_AGAIN_MS;
      this.#noteRoom();
      log(`${this.#title}: lost one of several connections (${why})`);
      if (link.load === 0) return;
      this.#lostMs = scheduler.nowMs();
      // A server cannot tell that what is made again on an older connection comes behind the lost one.
      first.hangUp();
      this.#mayHaveMore = false;
    }
    this.#backOff.lost(scheduler.nowMs());
    this.#next = 0;
    this.#redialLater();
    this.#closeOthers();
    if (link !== first) first.failAll();
  }

  /** Ends the connections behind the first one. */
  #closeOthers(): void {
    this.#moreDial?.cancel();
    this.#moreDial = null;
    for (const other of this.#links.slice(1)) {
      other.hangUp();
      other.failAll();
    }
  }

  giveUp(): void {
    this.#givenUp = true;
    const { log, scheduler } = this.context;
    scheduler.cancelTimer(this.#redialTimer);
    this.#dial?.cancel();
    this.#dial = null;
    const [first] = this.#links;
    if (!first.isOpen) return;
    log(`${this.#title}: its server does not answer; it is left, with what it was asked`);
    first.hangUp();
    this.#closeOthers();
    first.failAll();
  }

  // ---- more connections -------------------------------------------------------------------

  /** Makes another connection to the server in use, if it allows that and there is none on its way. */
  #connectMore(): void {
    if (!this.#mayHaveMore || this.#moreDial !== null || this.#givenUp || this.#closed) return;
    const { scheduler, log } = this.context;
    if (scheduler.lastMs[0] < this.#moreDueMs) return;
    try {
      this.#moreDial = new Dial(scheduler, this.#destinations[0], (result) => {
        this.#moreDial = null;
        const fault = result instanceof Error ? result : this.#takeMore(result);
        if (fault === null) return;
        this.#moreDueMs = scheduler.nowMs() + MORE_AGAIN_MS;
        if (fault.message === this.#toldMore) return;
        this.#toldMore = fault.message;
        log(`${this.#title}: goes on with ${this.#openLinks} connections: ${fault.message}`);
      });
    } catch {
      this.#moreDueMs = scheduler.nowMs() + MORE_AGAIN_MS;
    }
  }

  get #openLinks(): number {
    return this.#links.filter(({ isOpen }) => isOpen).length;
  }

  #noteRoom(): void {
    this.#mayHaveMore = (this.#flags & NBD_FLAG_CAN_MULTI_CONN) !== 0 &&
      typeof this.#destinations[0].route !== "string" && this.#openLinks < MOST_LINKS;
  }

  /** Takes another connection; returns why not. */
  #takeMore(connected: Connected): Error | null {
    const { remote } = connected;
    const isAlike = remote.flags === this.#flags &&
      (remote.allocationId === null) === (this.#allocationId === null);
    // Another program, or another version, behind the same address may not be coherent with this one.
    const fault = isAlike ? this.#faultOf(remote) : new SystemError(
      Errno.ESTALE,
      `Cannot use another connection of ${this.#title} (its server answers differently there)`,
    );
    if (fault !== null) {
      closeConnected(connected);
      return fault;
    }
    try {
      let link = this.#links.find(({ isOpen }) => !isOpen);
      if (link === undefined) {
        link = new Link(this);
        this.#links.push(link);
      }
      link.use(connected);
      this.#noteRoom();
      return null;
    } catch (error) {
      return toError(error);
    }
  }

  // ---- the first connection ---------------------------------------------------------------

  #redialLater(): void {
    if (this.#givenUp) return;
    // The other addresses are tried before the next pause.
    const pauseMs = this.#next === 0 ? this.#backOff.nextMs() : 0;
    const { scheduler } = this.context;
    this.#redialMs = scheduler.nowMs() + pauseMs;
    this.#redialTimer = scheduler.addTimer(pauseMs, () => {
      this.#redialTimer = 0;
      this.#redial();
    });
  }

  #redial(): void {
    const destination = this.#destinations[this.#next];
    this.#next = (this.#next + 1) % this.#destinations.length;
    try {
      this.#dial = new Dial(this.context.scheduler, destination, (result) => {
        this.#dial = null;
        if (result instanceof Error) this.#notConnected(result);
        else this.#reconnected(result);
      });
    } catch (error) {
      this.#notConnected(toError(error));
    }
  }

  /** An attempt failed; why is logged once, and again when it changes. */
  #notConnected(error: Error): void {
    if (error.message !== this.#toldWhy) this.context.log(error.message);
    this.#toldWhy = error.message;
    this.#redialLater();
  }

  /** Why the image cannot go on with an export; null when it can. */
  #faultOf(remote: RemoteExport): SystemError | null {
    const isSame = Math.floor(remote.sizeBytes / SECTOR_BYTES) === this.sectors &&
      Math.floor(remote.maximumBlockBytes / SECTOR_BYTES) >= this.#mostSectors;
    return isSame ? exportFault(remote, this.spec) : new SystemError(
      Errno.ESTALE,
      `Cannot go on with ${this.#title} (its size has changed to ${remote.sizeBytes} bytes)`,
    );
  }

  #reconnected(connected: Connected): void {
    const { remote, destination } = connected;
    const fault = this.#faultOf(remote);
    if (fault !== null) {
      closeConnected(connected);
      return this.#notConnected(fault);
    }
    try {
      this.#use(connected);
    } catch (error) {
      return this.#notConnected(toError(error));
    }
    const isOther = destination !== this.#destinations[0];
    const rest = this.#destinations.filter((each) => each !== destination);
    this.#destinations = [destination, ...rest];
    this.#toldWhy = "";
    const where = isOther ? `, to another address${hostText(destination)}` : "";
    const { log, scheduler } = this.context;
    const durationMs = scheduler.nowMs() - this.#lostMs;
    const fields: LogFields = { event: "server-back", image: this.#title, durationMs };
    log(`${this.#title}: connected again${where}`, fields);
  }

  close(done: Done): void {
    const [{ route }] = this.#destinations;
    for (const link of this.#links) {
      const fd = link.leave();
      if (fd < 0) continue;
      if (typeof route === "string") handedOver.putBack(route, fd);
      else closeConnected({ fd, tls: null });
    }
    this.abandon();
    done(null);
  }

  abandon(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { scheduler } = this.context;
    scheduler.cancelTimer(this.#redialTimer);
    this.#dial?.cancel();
    this.#dial = null;
    this.#moreDial?.cancel();
    this.#moreDial = null;
    for (const link of this.#links) {
      link.hangUp();
      link.release();
    }
  }
}

/** The host of a destination, for the log. */
function hostText({ host }: Destination): string {
  return host === undefined ? "" : ` (${host})`;
}
