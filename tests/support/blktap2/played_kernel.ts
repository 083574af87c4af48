/**
 * The kernel's side of a blktap2 ring, after linux-blktap.h, without constants of the code under
 * test. It creates the tap and the block device as the driver does, adds requests to the ring and
 * takes responses. The tapdisk is another process.
 *
 * @module
 */
import { Arena } from "../../../ffi/memory.ts";
import { closeFile, O_RDWR, openFile } from "../../../ffi/files.ts";
import { POLLIN, waitForDescriptor } from "../../../ffi/poll.ts";
import { acceptConnection, receiveAt, sendAt, unixListen } from "../../../ffi/sockets.ts";
import {
  Bell,
  CLOSE_RING,
  CONTROL_FILE,
  MAP_RING,
  MESSAGE_BYTES,
  OPEN_RING,
} from "./played_driver.ts";
import { TextLineStream } from "./text_lines.ts";

const PAGE = 4096;
const RING_ENTRIES = 32;
const ENTRY_BYTES = 112;
const ENTRIES_AT = 64;
const SEGMENTS = 11;
const RING_FILE_BYTES = (1 + RING_ENTRIES * SEGMENTS) * PAGE;

const ENOTTY = 25;
const EINVAL = 22;
const EBUSY = 16;
const EEXIST = 17;
const ENODEV = 19;
const SERVER = new URL("./ring_server.ts", import.meta.url).pathname;
const TIMEOUT_MS = 30_000;

/** Parameters with which the block device was created. */
export interface MadeDevice {
  readonly request: number;
  readonly capacity: number;
  readonly sectorSize: number;
  readonly flags: number;
  readonly physBlockSize: number;
  readonly trimBlockSize: number;
  readonly name: string;
}

export interface RingAnswer {
  readonly id: bigint;
  readonly operation: number;
  readonly status: number;
}

export interface KernelOptions {
  /** Whether the driver knows CREATE_DEVICE 202 only. */
  readonly firstDriver?: boolean;
  /** Supported flags of the block device. */
  readonly flagMask?: number;
  readonly serverArgs?: readonly string[];
  readonly v8Flags?: string;
}

/** A kernel, and the tapdisk that serves its only tap. */
export class PlayedKernel {
  /** Operations on the files of the driver, in order. */
  readonly calls: string[] = [];
  device: MadeDevice | null = null;
  /** Whether the block device is in use. */
  opened = false;
  /** The image to resume with, for the first drivers. */
  reopenName = "";
  paused = false;
  resumeResult: number | null = null;
  readonly arena = new Arena(RING_FILE_BYTES);
  readonly words: Int32Array<ArrayBuffer>;
  /** Responses that were taken. */
  taken = 0;
  /** Requests that were added; `publish` shows them to the tapdisk. */
  put = 0;
  readonly #options: KernelOptions;
  readonly #listener: number;
  #calls = -1;
  #bellFd = -1;
  #outward: Bell | null = null;
  #inward: Bell | null = null;
  readonly #message = new Arena(PAGE);
  readonly #child: Deno.ChildProcess;
  readonly #answers: AsyncIterator<string>;
  readonly #orders: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  #ringOpen = false;
  #mapped = false;
  #allocated = false;

  private constructor(folder: string, image: string, options: KernelOptions) {
    this.#options = options;
    const path = `${folder}/ring`;
    Deno.writeFileSync(path, new Uint8Array(0));
    Deno.truncateSync(path, RING_FILE_BYTES);
    const file = openFile(path, O_RDWR);
    this.arena.mapDescriptor(file);
    closeFile(file);
    this.words = new Int32Array(this.arena.bytes.buffer, this.arena.bytes.byteOffset, PAGE / 4);
    this.#listener = unixListen(`${folder}/kernel`);
    const flags = options.v8Flags === undefined ? [] : [`--v8-flags=${options.v8Flags}`];
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", "--quiet", ...flags, SERVER, folder, image, ...options.serverArgs ?? []],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#orders = this.#child.stdin.getWriter();
    this.#answers = this.#child.stdout.pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream())[Symbol.asyncIterator]();
  }

  /** Starts a tapdisk that opens `image` and creates a device for it. */
  static async start(
    folder: string,
    image: string,
    options: KernelOptions = {},
  ): Promise<PlayedKernel> {
    const kernel = new PlayedKernel(folder, image, options);
    await kernel.#served(kernel.#nextAnswer());
    return kernel;
  }

  /** Executes an ioctl for which the tapdisk waits. */
  async #served<T>(wanted: Promise<T>): Promise<T> {
    let over = false;
    const settle = () => void (over = true);
    wanted.then(settle, settle);
    while (!over) {
      this.serveCalls();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return await wanted;
  }

  async #nextAnswer(): Promise<unknown> {
    for (;;) {
      const { done, value } = await this.#answers.next();
      if (done) throw new Error("The tapdisk has ended");
      // Other lines are those of the runtime's garbage collector.
      if (/^(true|false|null|["[{\d-])/.test(value) && !/^\[\d+:/.test(value)) {
        return JSON.parse(value);
      }
      this.runtimeLines.push(value);
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Output of the tapdisk's runtime. */
  readonly runtimeLines: string[] = [];

  /** Sends the tapdisk an order of `ring_server.ts`. */
  async order(word: string): Promise<unknown> {
    await this.#orders.write(new TextEncoder().encode(`${word}\n`));
    return await this.#served(this.#nextAnswer());
  }

  /** Ends the tapdisk and releases everything. */
  async close(): Promise<void> {
    await this.#orders.close().catch(() => {});
    await this.#served(this.#child.status);
    for await (const line of { [Symbol.asyncIterator]: () => this.#answers }) {
      this.runtimeLines.push(line);
    }
    for (const fd of [this.#listener, this.#calls, this.#bellFd]) if (fd >= 0) closeFile(fd);
    this.arena.unmapDescriptor();
    this.arena.release();
    this.#message.release();
  }

  // ---- the driver's files -----------------------------------------------------------------

  /** Accepts the connection for ioctls, and executes those that arrived. */
  serveCalls(): void {
    if (this.#calls < 0) this.#calls = Math.max(-1, acceptConnection(this.#listener));
    if (this.#calls < 0) return;
    while (receiveAt(this.#calls, this.#message.address, MESSAGE_BYTES) === MESSAGE_BYTES) {
      this.#answerCall();
    }
  }

  #answerCall(): void {
    const { view, bytes, address } = this.#message;
    const file = view.getUint32(0, true);
    const request = view.getUint32(4, true);
    const number = view.getInt32(8, true);
    const length = view.getUint32(12, true);
    for (let got = 0; got < length;) {
      const more = receiveAt(this.#calls, address + got, length - got);
      if (more > 0) got += more;
    }
    const argument = bytes.slice(0, length);
    const result = this.#carryOut(file, request, length > 0 ? argument : number);
    view.setInt32(0, result, true);
    bytes.set(argument, 4);
    sendAt(this.#calls, address, 4 + length);
  }

  #carryOut(file: number, request: number, argument: Uint8Array<ArrayBuffer> | number): number {
    const kind = typeof argument === "number" ? String(argument) : `${argument.length} bytes`;
    this.calls.push(`${file === CONTROL_FILE ? "control" : "ring"} ${request} ${kind}`);
    const bytes = typeof argument === "number" ? new Uint8Array(0) : argument;
    if (file === CONTROL_FILE) return this.#control(request, bytes, argument);
    if (request === OPEN_RING) return this.#openRing();
    if (request === MAP_RING) return this.#mapRing();
    if (request === CLOSE_RING) {
      this.#ringOpen = false;
      this.#mapped = false;
      return 0;
    }
    return this.#ringCall(request, bytes, Number(argument));
  }

  #control(request: number, bytes: Uint8Array<ArrayBuffer>, argument: unknown): number {
    if (request === 200) {
      if (this.#allocated) return -EBUSY;
      this.#allocated = true;
      new Uint32Array(bytes.buffer).set([240, 253, 7]);
      return 0;
    }
    if (request !== 201) return -ENOTTY;
    if (argument !== 7 || !this.#allocated) return -ENODEV;
    if (this.#ringOpen || this.#mapped) return -EBUSY;
    this.#allocated = false;
    return 0;
  }

  #openRing(): number {
    if (this.#ringOpen) return -EBUSY;
    this.#ringOpen = true;
    return 0;
  }

  /** SHARED_RING_INIT; by now the opener has connected its bell. */
  #mapRing(): number {
    this.#bellFd = acceptConnection(this.#listener);
    if (this.#bellFd < 0) return this.#bellFd;
    this.#outward = new Bell(this.#bellFd, 1);
    this.#inward = new Bell(this.#bellFd, PAGE / 2);
    this.#mapped = true;
    this.arena.bytes.fill(0, 0, PAGE);
    this.words[1] = 1;
    this.words[3] = 1;
    return 0;
  }

  #ringCall(request: number, bytes: Uint8Array<ArrayBuffer>, number: number): number {
    switch (request) {
      case 208:
        return this.#options.firstDriver ? -ENOTTY : this.#create(bytes);
      case 202:
        return this.#createOldWay(bytes);
      case 207:
        if (this.opened) return -EBUSY;
        this.device = null;
        return 0;
      case 203:
        return this.paused ? this.#createOldWay(bytes) : -EINVAL;
      case 204:
        this.paused = true;
        return this.#clearMessage();
      case 205:
        new TextEncoder().encodeInto(`${this.reopenName}\0`, bytes);
        return this.paused ? this.#clearMessage() : -EINVAL;
      case 206:
        this.resumeResult = number;
        this.paused = number !== 0;
        return this.#clearMessage();
      default:
        return -ENOTTY;
    }
  }

  #clearMessage(): number {
    this.arena.bytes[16] = 0;
    return 0;
  }

  #create(bytes: Uint8Array<ArrayBuffer>): number {
    if (this.device !== null) return -EEXIST;
    if (bytes.length < 40) return -EINVAL;
    const view = new DataView(bytes.buffer);
    const flags = view.getUint32(16, true);
    const heeded = flags & (this.#options.flagMask ?? 0x1f);
    const sectorSize = view.getUint32(8, true);
    const physBlockSize = (heeded & 2) !== 0 ? view.getUint32(24, true) : sectorSize;
    const trimBlockSize = view.getUint32(32, true);
    const capacity = Number(view.getBigUint64(0, true));
    const powerOfTwo = (n: number): boolean => n > 0 && (n & (n - 1)) === 0;
    const valid = capacity > 0 && sectorSize >= 512 && powerOfTwo(sectorSize) &&
      physBlockSize >= sectorSize && powerOfTwo(physBlockSize) && view.getUint32(28, true) === 0 &&
      ((heeded & 8) === 0 || trimBlockSize >= sectorSize && powerOfTwo(trimBlockSize));
    if (!valid) return -EINVAL;
    view.setBigUint64(16, BigInt(heeded), true);
    this.device = {
      request: 208,
      capacity,
      sectorSize,
      flags: heeded,
      physBlockSize,
      trimBlockSize,
      name: "",
    };
    return 0;
  }

  #createOldWay(bytes: Uint8Array<ArrayBuffer>): number {
    if (bytes.length !== 272) return -EINVAL;
    const view = new DataView(bytes.buffer);
    const sectorSize = Number(view.getBigUint64(264, true));
    this.device = {
      request: 202,
      capacity: Number(view.getBigUint64(256, true)),
      sectorSize,
      flags: 0,
      physBlockSize: sectorSize,
      trimBlockSize: 0,
      name: new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0))),
    };
    return 0;
  }

  // ---- the ring ---------------------------------------------------------------------------

  /** Offset of entry `index` in the page of the ring, bytes. */
  entryAt(index: number): number {
    return ENTRIES_AT + (index % RING_ENTRIES) * ENTRY_BYTES;
  }

  /** Offset in the arena of the page of a segment of request `id`, bytes. */
  pageAt(id: number, segment: number): number {
    return (1 + id * SEGMENTS + segment) * PAGE;
  }

  /** Adds a request, which `publish` shows to the tapdisk. */
  putRequest(
    { operation, segments, id, sector, first = 0, last = 0, trimSectors = 0 }: {
      operation: number;
      segments: number;
      id: number;
      sector: number;
      /** Of all segments alike; the entry can be changed before it is published. */
      first?: number;
      last?: number;
      trimSectors?: number;
    },
  ): number {
    const { view } = this.arena;
    const at = this.entryAt(this.put++);
    view.setUint8(at, operation);
    view.setUint8(at + 1, segments);
    view.setUint16(at + 2, 0, true);
    view.setUint32(at + 8, id, true);
    view.setUint32(at + 12, 0, true);
    view.setUint32(at + 16, sector >>> 0, true);
    view.setUint32(at + 20, Math.floor(sector / 2 ** 32), true);
    if (operation === 3) {
      view.setUint32(at + 24, trimSectors >>> 0, true);
      view.setUint32(at + 28, Math.floor(trimSectors / 2 ** 32), true);
    } else {
      for (let i = 0; i < Math.min(segments, SEGMENTS); i++) this.setSegment(at, i, first, last);
    }
    return at;
  }

  /** Sets a segment of the entry that begins at `at`. */
  setSegment(at: number, index: number, first: number, last: number): void {
    this.arena.bytes[at + 28 + 8 * index] = first;
    this.arena.bytes[at + 29 + 8 * index] = last;
  }

  /** Publishes the added requests and wakes the tapdisk. */
  publish(): void {
    Atomics.store(this.words, 0, this.put | 0);
    this.wake();
  }

  wake(): void {
    this.#outward?.ring();
  }

  /** Sends the tapdisk a BLKTAP_RING_MESSAGE_*. */
  sendMessage(message: number): void {
    this.arena.bytes[16] = message;
    this.wake();
  }

  /** The number of responses that were not taken. */
  get waiting(): number {
    return Atomics.load(this.words, 2) - this.taken | 0;
  }

  /** Waits for the tapdisk's bell and serves its ioctls; false when `timeoutMs` has passed. */
  hear(timeoutMs: number): boolean {
    if (this.#bellFd < 0 || !waitForDescriptor(this.#bellFd, POLLIN, timeoutMs)) return false;
    return (this.#inward?.hear() ?? -1) > 0;
  }

  /** Takes a response; there must be one. */
  takeAnswer(): RingAnswer {
    const at = this.entryAt(this.taken++);
    const { view } = this.arena;
    return {
      id: view.getBigUint64(at, true),
      operation: view.getUint8(at + 8),
      status: view.getInt16(at + 10, true),
    };
  }

  /** Waits for `count` responses and takes them. */
  async answers(count: number, timeoutMs = TIMEOUT_MS): Promise<RingAnswer[]> {
    const answers: RingAnswer[] = [];
    const untilMs = performance.now() + timeoutMs;
    while (answers.length < count) {
      while (this.waiting > 0 && answers.length < count) answers.push(this.takeAnswer());
      if (answers.length === count) break;
      if (performance.now() > untilMs) {
        throw new Error(`${answers.length} of ${count} answers came`);
      }
      this.serveCalls();
      if (!this.hear(1)) await new Promise((resolve) => setTimeout(resolve, 0));
    }
    return answers;
  }

  /** Waits for a condition, and serves the tapdisk's ioctls. */
  async until(what: string, holds: () => boolean): Promise<void> {
    const untilMs = performance.now() + TIMEOUT_MS;
    while (!holds()) {
      if (performance.now() > untilMs) throw new Error(`It never came that ${what}`);
      this.serveCalls();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}
