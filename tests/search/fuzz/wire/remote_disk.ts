/**
 * A disk on an NBD server whose two ends are in one thread, on a simulated clock.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { RequestKind, type RequestOwner } from "../../../../src/vbd/slots.ts";
import { Vbd } from "../../../../src/vbd/vbd.ts";
import { createVbdContext, type VbdContext } from "../../../../src/vbd/vbd_context.ts";
import { checkedDrivers } from "../../../support/checked_drivers.ts";
import { type HostileNbdServer, POISON } from "./hostile_nbd_server.ts";
import { SocketScheduler } from "./socket_scheduler.ts";

/** Turns and simulated time in which anything must have ended. */
const MOST_TURNS = 30_000;
const MOST_MS = 3_600_000;

/** The process of the disks, and the server. */
export class BothEnds {
  readonly scheduler = new SocketScheduler();
  readonly log: string[] = [];
  readonly context: VbdContext;

  constructor(readonly server: HostileNbdServer) {
    const connection = new SimulatedDisk({ seed: 1 }).connect(this.scheduler);
    this.context = createVbdContext({
      scheduler: this.scheduler,
      backend: connection,
      files: connection,
      driverOf: checkedDrivers,
      log: (message) => void this.log.push(message),
    });
  }

  /** Lets both ends go on; the clock moves on when neither has anything to do. */
  async until(what: string, done: (turns: number) => boolean): Promise<void> {
    const startMs = this.scheduler.nowMs();
    for (let turns = 0; !done(turns); turns++) {
      if (turns > MOST_TURNS) throw new Error(`${what} has not ended after ${turns} turns`);
      if (this.scheduler.nowMs() - startMs > MOST_MS) throw new Error(`${what} took an hour`);
      // Promises of the driver, such as that of an address.
      for (let i = 0; i < 4; i++) await null;
      this.scheduler.stand();
      const served = this.server.step();
      const polled = this.scheduler.poll();
      if (!served && !polled && !done(turns)) this.scheduler.turn();
    }
  }

  async pass(milliseconds: number): Promise<void> {
    const untilMs = this.scheduler.nowMs() + milliseconds;
    this.scheduler.addTimer(milliseconds, () => {});
    await this.until("the time", () => this.scheduler.nowMs() >= untilMs);
  }
}

interface Pending {
  readonly kind: RequestKind;
  readonly count: number;
}

/** A disk, and its only client. */
export class RemoteDisk implements RequestOwner {
  readonly vbd: Vbd;
  readonly #pending = new Map<number, Pending>();
  /** What was wrong with the end of a request. */
  failure: unknown;
  /** How the last request ended. */
  lastErrno = 0;
  lastData: Uint8Array = new Uint8Array(0);

  constructor(context: VbdContext) {
    this.vbd = new Vbd(context, 0);
  }

  /** How many requests have not ended. */
  get open(): number {
    return this.#pending.size;
  }

  start(kind: RequestKind, sector: number, count: number, data?: Uint8Array): void {
    const { requests } = this.vbd;
    const slot = requests.takeSlot();
    assert.ok(slot >= 0, "there are slots");
    const at = requests.slotOffset(slot);
    const { bytes } = requests.memory;
    if (kind === RequestKind.Read) bytes.fill(POISON, at, at + (count + 1) * 512);
    if (data !== undefined) bytes.set(data, at);
    this.#pending.set(slot, { kind, count });
    if (kind === RequestKind.Status) requests.startStatus(slot, sector, count, 100, this);
    else requests.start(slot, kind, sector, count, false, this);
  }

  requestDone(slot: number, errno: number): void {
    try {
      this.#end(slot, errno);
    } catch (error) {
      // What is thrown here ends the device, as a fault of the program would.
      this.failure ??= error;
      throw error;
    }
  }

  #end(slot: number, errno: number): void {
    const pending = this.#pending.get(slot);
    assert.ok(pending !== undefined, `slot ${slot} ended twice`);
    this.#pending.delete(slot);
    this.lastErrno = errno;
    const { requests } = this.vbd;
    const at = requests.slotOffset(slot);
    const end = at + pending.count * 512;
    const { bytes } = requests.memory;
    if (pending.kind === RequestKind.Read) {
      assert.ok(bytes.subarray(end, end + 512).every((byte) => byte === POISON), "behind a read");
      const missing = errno === 0 ? poisonedAt(bytes.subarray(at, end)) : -1;
      assert.equal(missing, -1, "a read ended well, and its bytes from here on never came");
      this.lastData = bytes.slice(at, end);
    }
    requests.releaseSlot(slot);
  }
}

/** Where bytes begin that nobody wrote; -1 without them. Single ones may be a part of a number. */
function poisonedAt(bytes: Uint8Array): number {
  for (let at = bytes.indexOf(POISON); at >= 0; at = bytes.indexOf(POISON, at + 1)) {
    if (bytes.subarray(at, at + 16).every((byte) => byte === POISON)) return at;
  }
  return -1;
}
