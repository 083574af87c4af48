/**
 * The kernel's side of a ublk device, simulated. It keeps the commands of the queues, completes
 * them with requests and takes the results. It throws for a command that the kernel's driver would
 * refuse. The code under test writes the commands to entries of an io_uring, as for the kernel.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile, O_CREAT, O_RDWR, openFile, truncateFile, writeAt } from "../../ffi/files.ts";
import { memoryAt } from "../../ffi/libc.ts";
import { putCommandEntry } from "../../ffi/uring.ts";
import {
  UBLK_IO_COMMIT_AND_FETCH_REQ,
  UBLK_IO_F_FUA,
  UBLK_IO_FETCH_REQ,
  UBLK_IO_OP_DISCARD,
  UBLK_IO_OP_FLUSH,
  UBLK_IO_OP_READ,
  UBLK_IO_OP_WRITE,
  UBLK_IO_OP_WRITE_ZEROES,
  UBLK_IO_RES_ABORT,
} from "../../ffi/ublk.ts";
import { type CommandRing, UblkQueue } from "../../src/frontend/ublk/queue.ts";
import { REQUEST_SLOTS } from "../../src/driver/driver.ts";
import type { Log } from "../../src/log/log.ts";
import type { UringUser } from "../../src/queue/uring_loop.ts";
import type { DiskClient } from "./disk_model.ts";
import { type Outcome, SECTOR_BYTES, type SimulatedDevice } from "./sim.ts";

export const QUEUES = 2;
export const DEPTH = 32;
const TAGS = QUEUES * DEPTH;
// struct io_uring_sqe: u8 opcode @0, s32 fd @4, u32 cmd_op @8, u64 user_data @32, u8 cmd[80] @48.
const ENTRY_BYTES = 128;
const FD_AT = 4;
const CMD_OP_AT = 8;
const USER_DATA_AT = 32;
const COMMAND_AT = 48;
const IORING_OP_URING_CMD = 46;
/** Bytes of the descriptors of a queue of any depth. */
const QUEUE_BYTES = 4096 * 24;

const Place = { Nowhere: 0, Kernel: 1, Server: 2 } as const;

const silent: Log = { info() {}, warn() {}, error() {} };

/** A simulated device. Tags are numbered across all queues. */
export class PlayedUblk implements CommandRing, DiskClient {
  readonly #entries = new Int32Array(2 * TAGS * ENTRY_BYTES / 4);
  readonly commands = new DataView(this.#entries.buffer);
  readonly queues: UblkQueue[] = [];
  /** Number of queues all of whose commands have ended. */
  gone = 0;
  /** Number of results that were taken, and of errors among them. */
  answered = 0;
  failed = 0;
  readonly #device: SimulatedDevice;
  readonly #folder = Deno.makeTempDirSync();
  readonly #fd = openFile(`${this.#folder}/ublkc`, O_RDWR | O_CREAT);
  readonly #users: UringUser[] = [];
  #prepared = 0;
  /** By tag. */
  readonly #places = new Uint8Array(TAGS);
  readonly addresses = new Float64Array(TAGS);
  /** The result of each tag's last request. */
  readonly results = new Int32Array(TAGS);
  readonly #outcomes = new Map<number, { outcome: Outcome; readBytes: number }>();

  constructor(device: SimulatedDevice) {
    this.#device = device;
    truncateFile(this.#fd, QUEUES * QUEUE_BYTES);
    const host = {
      requests: device.vbd.requests,
      uring: this,
      log: silent,
      meter: device.vbd.meters.open({ of: "blktap", minor: 0 }, REQUEST_SLOTS),
      fd: this.#fd,
      encoded: false,
      queueGone: () => void this.gone++,
    };
    for (let i = 0; i < QUEUES; i++) this.queues.push(new UblkQueue(host, i, DEPTH));
    for (const queue of this.queues) queue.fetch();
    this.take();
  }

  // ---- the ring ---------------------------------------------------------------------------

  add(user: UringUser): number {
    return this.#users.push(user) - 1;
  }

  remove(_tag: number): void {}

  prepareCommand(fd: number, command: number, id: number, tag: number): number {
    const at = this.#prepared++ * ENTRY_BYTES;
    return putCommandEntry(this.#entries, at / 4, ENTRY_BYTES, fd, command, id, tag);
  }

  /** Takes the commands that were prepared. */
  take(): void {
    for (let i = 0; i < this.#prepared; i++) this.#takeOne(i);
    this.#prepared = 0;
  }

  #takeOne(entry: number): void {
    const start = entry * ENTRY_BYTES;
    const at = start + COMMAND_AT;
    const queue = this.commands.getUint16(at, true);
    const ownTag = this.commands.getUint16(at + 2, true);
    const tag = queue * DEPTH + ownTag;
    const number = this.commands.getUint32(start + CMD_OP_AT, true);
    const fits = this.commands.getUint8(start) === IORING_OP_URING_CMD &&
      this.commands.getInt32(start + FD_AT, true) === this.#fd &&
      this.commands.getInt32(start + USER_DATA_AT, true) === ownTag &&
      this.commands.getInt32(start + USER_DATA_AT + 4, true) === queue;
    if (!fits) throw new Error(`The entry of the command for tag ${tag} is wrong`);
    const expected = number === UBLK_IO_FETCH_REQ ? Place.Nowhere : Place.Server;
    if (this.#places[tag] !== expected) throw new Error(`Tag ${tag} came at the wrong time`);
    if (number === UBLK_IO_COMMIT_AND_FETCH_REQ) {
      this.#answer(tag, this.commands.getInt32(at + 4, true));
    }
    this.#places[tag] = Place.Kernel;
    this.addresses[tag] = this.commands.getUint32(at + 8, true) +
      this.commands.getUint32(at + 12, true) * 2 ** 32;
  }

  #answer(tag: number, result: number): void {
    this.answered++;
    this.results[tag] = result;
    if (result < 0) this.failed++;
    const entry = this.#outcomes.get(tag);
    if (entry === undefined) return;
    this.#outcomes.delete(tag);
    entry.outcome.errno = result < 0 ? -result : 0;
    if (entry.readBytes === 0 || result < 0) return;
    assert.equal(result, entry.readBytes);
    // The kernel copies from the address of the command with which the request was delivered.
    entry.outcome.data = new Uint8Array(memoryAt(this.addresses[tag], result)).slice();
  }

  // ---- requests ---------------------------------------------------------------------------

  /** Writes the descriptor of a tag's next request. */
  describe(
    tag: number,
    operationAndFlags: number,
    sector: number | bigint,
    count: number,
  ): void {
    const descriptor = new DataView(new ArrayBuffer(24));
    descriptor.setUint32(0, operationAndFlags, true);
    descriptor.setUint32(4, count, true);
    descriptor.setBigUint64(8, BigInt(sector), true);
    const at = Math.floor(tag / DEPTH) * QUEUE_BYTES + tag % DEPTH * 24;
    writeAt(this.#fd, new Uint8Array(descriptor.buffer), at);
  }

  /** Whether the kernel holds the command of a tag. */
  holds(tag: number): boolean {
    return this.#places[tag] === Place.Kernel;
  }

  deliver(tag: number): void {
    this.#places[tag] = Place.Server;
    this.#users[tag < DEPTH ? 0 : 1].uringDone(tag < DEPTH ? tag : tag - DEPTH, 0);
  }

  #start(operation: number, sector: number, count: number, data?: Uint8Array): Outcome {
    const free = Array.from({ length: TAGS }, (_, tag) => tag).filter((tag) => this.holds(tag));
    assert.notEqual(free.length, 0, "a tag is free");
    // Use tags of both queues in varying order.
    const tag = free[sector % free.length];
    const outcome: Outcome = { errno: null, data: null };
    const readBytes = operation === UBLK_IO_OP_READ ? count * SECTOR_BYTES : 0;
    this.#outcomes.set(tag, { outcome, readBytes });
    this.describe(tag, operation, sector, count);
    if (data !== undefined) {
      new Uint8Array(memoryAt(this.addresses[tag], data.length)).set(data);
    }
    this.deliver(tag);
    return outcome;
  }

  write(sector: number, data: Uint8Array, fua = false): Outcome {
    const operation = fua ? UBLK_IO_OP_WRITE | UBLK_IO_F_FUA : UBLK_IO_OP_WRITE;
    return this.#start(operation, sector, data.length / SECTOR_BYTES, data);
  }

  read(sector: number, count: number): Outcome {
    return this.#start(UBLK_IO_OP_READ, sector, count);
  }

  zero(sector: number, count: number): Outcome {
    return this.#start(UBLK_IO_OP_WRITE_ZEROES, sector, count);
  }

  discard(sector: number, count: number): Outcome {
    return this.#start(UBLK_IO_OP_DISCARD, sector, count);
  }

  flush(): Outcome {
    return this.#start(UBLK_IO_OP_FLUSH, 0, 0);
  }

  settle(): void {
    this.take();
    while (this.#outcomes.size > 0) {
      const before = this.answered;
      const goesOn = this.#device.simulation.scheduler.turn();
      this.take();
      assert.ok(goesOn || this.answered > before, "a request never ended");
    }
  }

  // ---- the end ----------------------------------------------------------------------------

  /** Completes all commands in the kernel, as at the stop of a device. */
  stop(): void {
    this.take();
    for (let tag = 0; tag < TAGS; tag++) {
      if (!this.holds(tag)) continue;
      this.#places[tag] = Place.Nowhere;
      this.#users[tag < DEPTH ? 0 : 1].uringDone(tag % DEPTH, UBLK_IO_RES_ABORT);
    }
  }

  close(): void {
    for (const queue of this.queues) queue.close();
    closeFile(this.#fd);
    Deno.removeSync(this.#folder, { recursive: true });
  }
}
