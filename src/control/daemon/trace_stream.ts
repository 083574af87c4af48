import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { receiveAt, sendAt } from "../../../ffi/sockets.ts";
import type { Log } from "../../log/log.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import { type FdHandler, ownedBy, type Scheduler } from "../../scheduler/scheduler.ts";
import { FRAME_HEAD_BYTES, FrameType, RECORD_BYTES, type TraceEnd } from "../../trace/records.ts";
import { TraceRing } from "../../trace/trace_ring.ts";
import { beginTrace, endTrace, type RequestTrace } from "../../vbd/request_trace.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { encodeTraceHead } from "../protocol/trace.ts";

/** How often records are sent. */
const SEND_MS = 20;
/** How long a peer may take nothing of what there is. */
const PATIENCE_MS = 30_000;

/**
 * Records what becomes of the requests of a disk, and sends that to whoever asked, until the peer sends
 * a byte, hangs up or takes nothing any more, or the disk is closed. The peer gets the rest, except when
 * it has hung up. Memory and time do not depend on the peer: what it does not take in time is lost, and
 * counted.
 */
export class TraceStream implements FdHandler, FaultOwner {
  failed = false;
  /** The process that asked. */
  readonly peer: number;
  readonly #fd: number;
  readonly #vbd: Vbd;
  readonly #scheduler: Scheduler;
  readonly #log: Log;
  readonly #ended: () => void;
  readonly #ring: TraceRing;
  readonly #trace: RequestTrace;
  /** What is sent before records: a head, or a frame of text. */
  #output: Uint8Array<ArrayBuffer>;
  #sent = 0;
  /** Bytes of records that their head has announced, and how many of them were sent. */
  #announced = 0;
  #taken = 0;
  /** Why nothing is recorded any more; empty while it is. */
  #why = "";
  #isLast = false;
  #isWaiting = false;
  #movedMs: number;
  #timer = 0;
  readonly #head = new Uint8Array(FRAME_HEAD_BYTES);
  readonly #headView = new DataView(this.#head.buffer);
  readonly #input = new Uint8Array(1);
  readonly #tick = (): void => {
    this.#timer = 0;
    this.#move();
    if (!this.failed) this.#later();
  };

  /**
   * Begins. Throws `SystemError` when there is no memory.
   *
   * @param fd The connection, which belongs to the trace from now on.
   * @param ended Called at the end.
   */
  constructor(
    { fd, peer }: { fd: number; peer: number },
    { vbd, scheduler, log, ended }: {
      vbd: Vbd;
      scheduler: Scheduler;
      log: Log;
      ended: () => void;
    },
  ) {
    this.#fd = fd;
    this.peer = peer;
    this.#vbd = vbd;
    this.#scheduler = ownedBy(this, scheduler);
    this.#log = log;
    this.#ended = ended;
    this.#ring = new TraceRing(scheduler.lastMs);
    this.#movedMs = scheduler.nowMs();
    try {
      scheduler.watch(fd, EPOLLIN, this, this);
      this.#trace = this.#begun();
    } catch (error) {
      this.#ring.release();
      throw error;
    }
    vbd.tracing.whenClosed = () => this.stop("the disk was closed");
    this.#output = encodeTraceHead(vbd.minor, { startMs: this.#movedMs, epochMs: Date.now() });
    this.#later();
    const fields = { event: "traced", minor: vbd.minor, image: vbd.name, pid: peer } as const;
    log.info(`Minor ${vbd.minor} is traced for process ${peer}`, fields);
  }

  /** Begins to record; when that fails, nothing is recorded and nothing watched. */
  #begun(): RequestTrace {
    try {
      return beginTrace(this.#vbd, this.#ring, this.#scheduler.lastMs);
    } catch (error) {
      this.#vbd.requests.times.trace = null;
      this.#vbd.tracing.end();
      this.#scheduler.unwatch(this.#fd);
      throw error;
    }
  }

  #later(): void {
    this.#timer = this.#scheduler.addTimer(SEND_MS, this.#tick);
  }

  fault(error: unknown): void {
    this.#log.error(`A trace was ended by a fault: ${describeFault(error)}`);
    this.#close("a fault of this program");
  }

  ready(events: number): void {
    if ((events & EPOLLIN) !== 0) {
      const got = receiveAt(this.#fd, addressOf(this.#input), 1);
      if (got > 0) this.stop("it was told to end");
      else if (got !== -Errno.EAGAIN && got !== -Errno.EINTR) return this.#close("nobody wants it");
    } else if ((events & (EPOLLERR | EPOLLHUP)) !== 0) return this.#close("nobody wants it");
    if ((events & EPOLLOUT) !== 0) this.#move();
  }

  /** Records no more; what there is, is sent. */
  stop(why: string): void {
    if (this.#why !== "" || this.failed) return;
    this.#scheduler.nowMs();
    this.#why = why;
    endTrace(this.#vbd, this.#trace);
    this.#move();
  }

  /** Sends what there is, as far as the socket takes it. */
  #move(): void {
    if (this.failed) return;
    while (this.#isSent() && !this.failed) {
      if (this.#isLast) return this.#close(this.#why);
      if (!this.#next()) return this.#watch(false);
    }
    if (this.failed) return;
    this.#watch(true);
    if (this.#scheduler.nowMs() < this.#movedMs + PATIENCE_MS) return;
    this.#close(`its reader has taken nothing for ${PATIENCE_MS / 1000} s`);
  }

  /** Goes on to send what was begun; true when all of that was sent. */
  #isSent(): boolean {
    while (this.#sent < this.#output.length) {
      const left = this.#output.length - this.#sent;
      const put = this.#put(addressOf(this.#output) + this.#sent, left);
      if (put <= 0) return false;
      this.#sent += put;
    }
    while (this.#taken < this.#announced) {
      const put = this.#put(this.#ring.address + this.#taken, this.#announced - this.#taken);
      if (put <= 0) return false;
      this.#taken += put;
    }
    if (this.#announced > 0) this.#ring.drop(this.#announced / RECORD_BYTES);
    this.#announced = 0;
    return true;
  }

  /** Sends bytes; 0 when the socket has no room, or the peer is gone. */
  #put(address: number, lengthBytes: number): number {
    const put = sendAt(this.#fd, address, lengthBytes);
    if (put > 0) {
      this.#movedMs = this.#scheduler.lastMs[0];
      return put;
    }
    if (put !== -Errno.EAGAIN && put !== -Errno.EINTR) this.#close("nobody wants it");
    return 0;
  }

  /** Begins the next frame; false when there is none now. */
  #next(): boolean {
    const names = this.#vbd.tracing.takeNames();
    if (names.length > 0) return this.#text(FrameType.Layers, names);
    const records = this.#ring.run;
    if (records > 0) {
      this.#announced = records * RECORD_BYTES;
      this.#taken = 0;
      this.#begin(FrameType.Records, this.#announced, this.#head, this.#headView);
      return true;
    }
    if (this.#why === "") {
      this.#movedMs = this.#scheduler.lastMs[0];
      return false;
    }
    this.#isLast = true;
    const end: TraceEnd = { why: this.#why, lost: this.#ring.lost };
    return this.#text(FrameType.End, end);
  }

  #begin(
    type: number,
    lengthBytes: number,
    output: Uint8Array<ArrayBuffer>,
    view: DataView<ArrayBuffer>,
  ): void {
    view.setUint32(0, type, true);
    view.setUint32(4, lengthBytes, true);
    this.#output = output;
    this.#sent = 0;
  }

  #text(type: number, value: unknown): true {
    const text = new TextEncoder().encode(JSON.stringify(value));
    const output = new Uint8Array(FRAME_HEAD_BYTES + text.length);
    output.set(text, FRAME_HEAD_BYTES);
    this.#begin(type, text.length, output, new DataView(output.buffer));
    return true;
  }

  #watch(forRoom: boolean): void {
    if (this.failed || forRoom === this.#isWaiting) return;
    this.#isWaiting = forRoom;
    this.#scheduler.rewatch(this.#fd, forRoom ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }

  #close(why: string): void {
    if (this.failed) return;
    this.failed = true;
    if (this.#why === "") endTrace(this.#vbd, this.#trace);
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.#fd);
    closeFile(this.#fd);
    this.#ring.release();
    this.#log.info(`The trace of minor ${this.#vbd.minor} has ended: ${why}`);
    this.#ended();
  }
}
