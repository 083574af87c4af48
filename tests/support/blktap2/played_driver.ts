/**
 * A simulated blktap2 driver, on the side of the tapdisk. Another process is the driver: ioctls are
 * messages on a socket, the ring and its pages are a file that both processes map, and a byte on a
 * second socket wakes either side.
 *
 * Every ioctl is first made on /dev/null by the same call with the same arguments. /dev/null knows
 * no ioctls, but the call checks its arguments.
 *
 * @module
 */
import assert from "node:assert/strict";
import {
  type BlktapDriver,
  type BlktapInfo,
  blktapIoctl,
  blktapRespond,
  type BlktapRingDevice,
} from "../../../ffi/blktap.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile, O_RDWR, openFile } from "../../../ffi/files.ts";
import { Arena } from "../../../ffi/memory.ts";
import { POLLIN, waitForDescriptor } from "../../../ffi/poll.ts";
import {
  IOVEC_BYTES,
  MSGHDR_BYTES,
  putIovec,
  putMsghdr,
  receiveAt,
  receiveMessage,
  sendAt,
  sendMessage,
  unixConnect,
} from "../../../ffi/sockets.ts";

/** Number of the control device in messages. */
export const CONTROL_FILE = 0;
/** Number of the ring device, and its operations besides ioctls. */
export const RING_FILE = 1;
export const OPEN_RING = 10_000;
export const MAP_RING = 10_001;
export const CLOSE_RING = 10_002;
/** Bytes of a message before its argument: u32 file, request, i32 number, u32 argument bytes. */
export const MESSAGE_BYTES = 16;

const TIMEOUT_MS = 30_000;
const BELL_BYTES = 4096;

function receiveAll(fd: number, arena: Arena, lengthBytes: number): void {
  for (let done = 0; done < lengthBytes;) {
    if (!waitForDescriptor(fd, POLLIN, TIMEOUT_MS)) throw new Error("The played kernel hangs");
    const got = receiveAt(fd, arena.address + done, lengthBytes - done);
    if (got <= 0) throw new Error("The played kernel has gone");
    done += got;
  }
}

/** The socket that wakes the other side. Sending and receiving allocate nothing. */
export class Bell {
  readonly #arena = new Arena(BELL_BYTES);
  readonly #message = this.#arena.pointerAt(0);

  /** @param bytes Bytes to send, or the most to receive. */
  constructor(readonly fd: number, bytes: number) {
    const iovecAt = MSGHDR_BYTES;
    const dataAt = iovecAt + IOVEC_BYTES;
    putIovec(this.#arena.view, iovecAt, this.#arena.sector, dataAt, bytes);
    putMsghdr(this.#arena.view, 0, this.#arena.sector, iovecAt, 1);
  }

  /** Wakes the other side. A full socket is no error: it wakes the other side already. */
  ring(): void {
    sendMessage(this.fd, this.#message);
  }

  /** Receives. Returns bytes, 0 when the other side has closed, or -errno. */
  hear(): number {
    return receiveMessage(this.fd, this.#message);
  }
}

class PlayedRing implements BlktapRingDevice {
  readonly #driver: PlayedDriver;
  readonly #outward: Bell;
  readonly #inward: Bell;

  constructor(readonly fd: number, driver: PlayedDriver) {
    this.#driver = driver;
    this.#outward = new Bell(fd, 1);
    this.#inward = new Bell(fd, BELL_BYTES / 2);
  }

  map(arena: Arena): void {
    const file = openFile(`${this.#driver.folder}/ring`, O_RDWR);
    arena.mapDescriptor(file);
    closeFile(file);
    this.#driver.play(RING_FILE, MAP_RING, 0);
  }

  call(request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    return this.#driver.call(RING_FILE, request, argument);
  }

  respond(): void {
    blktapRespond(this.#driver.nothing);
    this.#outward.ring();
  }

  woken(): void {
    this.#inward.hear();
  }

  close(): Promise<void> {
    this.#driver.play(RING_FILE, CLOSE_RING, 0);
    closeFile(this.fd);
    return Promise.resolve();
  }
}

/** A driver that is the process behind the socket `kernel` of a folder. */
export class PlayedDriver implements BlktapDriver {
  /** /dev/null, which refuses the ioctls of every driver. */
  readonly nothing = openFile("/dev/null", O_RDWR);
  readonly #fd: number;
  readonly #arena = new Arena(4096);

  constructor(readonly folder: string) {
    this.#fd = unixConnect(`${folder}/kernel`);
  }

  missing(): string | null {
    return null;
  }

  control(request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    return this.call(CONTROL_FILE, request, argument);
  }

  call(file: number, request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    assert.equal(blktapIoctl(this.nothing, request, argument), -Errno.ENOTTY);
    return this.play(file, request, argument);
  }

  /** Sends an ioctl or another operation to the other process. */
  play(file: number, request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    const { bytes, view } = this.#arena;
    const length = typeof argument === "number" ? 0 : argument.length;
    view.setUint32(0, file, true);
    view.setUint32(4, request, true);
    view.setInt32(8, typeof argument === "number" ? argument : 0, true);
    view.setUint32(12, length, true);
    if (typeof argument !== "number") bytes.set(argument, MESSAGE_BYTES);
    if (sendAt(this.#fd, this.#arena.address, MESSAGE_BYTES + length) < 0) return -Errno.EIO;
    receiveAll(this.#fd, this.#arena, 4 + length);
    if (typeof argument !== "number") argument.set(bytes.subarray(4, 4 + length));
    return view.getInt32(0, true);
  }

  openRing(tap: BlktapInfo): BlktapRingDevice {
    const result = this.play(RING_FILE, OPEN_RING, tap.minor);
    if (result < 0) throw new SystemError(-result, `Cannot open the ring of tap ${tap.minor}`);
    return new PlayedRing(unixConnect(`${this.folder}/kernel`), this);
  }

  makeNode({ minor }: BlktapInfo): string {
    return `/dev/xen/blktap-2/tapdev${minor}`;
  }

  removeNodes(_tap: BlktapInfo): void {}

  clearUp(minor: number): void {
    this.control(201, minor);
  }
}
