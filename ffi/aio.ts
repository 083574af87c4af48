/**
 * The kernel's asynchronous file I/O (linux/aio_abi.h). One io_submit(2) starts many requests.
 * Completions are read without a call, from the ring that the kernel maps into the process.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { memoryAt, openLibc, openLibcLater, pointerTo } from "./libc.ts";
import { Arena, memoryAddress, requireMemory, SECTOR_BYTES } from "./memory.ts";
import { putNumber64 } from "./sockets.ts";

const setUp = /* @__PURE__ */ openLibcLater({
  // long syscall(SYS_io_setup, unsigned nr_events, aio_context_t *ctx)
  io_setup: { name: "syscall", parameters: ["i32", "u32", "buffer"], result: "i32" },
  // long syscall(SYS_io_destroy, aio_context_t ctx)
  io_destroy: { name: "syscall", parameters: ["i32", "usize"], result: "i32" },
});

const libc = /* @__PURE__ */ openLibc({
  // long syscall(SYS_io_submit, aio_context_t ctx, long nr, struct iocb **iocbpp)
  io_submit: { name: "syscall", parameters: ["i32", "pointer", "i32", "pointer"], result: "i32" },
});

const SYS_io_setup = 206;
const SYS_io_destroy = 207;
const SYS_io_submit = 209;

/** Operations of an iocb (linux/aio_abi.h). */
export const IOCB_CMD_PREAD = 0;
export const IOCB_CMD_PWRITE = 1;
export const IOCB_CMD_FDSYNC = 3;
export const IOCB_CMD_PREADV = 7;
export const IOCB_CMD_PWRITEV = 8;

const IOCB_FLAG_RESFD = 1;
const IOCB_BYTES = 64;
const POINTER_BYTES = 8;
const RING_MAGIC = 0xa10a10a1;
const RING_HEADER_BYTES = 32;
const RING_HEAD = 2;
const RING_TAIL = 3;
const RING_MAGIC_WORD = 4;
const RING_INCOMPATIBLE = 6;
const RING_HEADER_LENGTH = 7;
const EVENT_BYTES = 32;

/** A context of io_setup(2), and the iocbs of one batch. */
export class AioContext {
  /** How many requests can be in flight at once. */
  readonly capacity: number;
  /** The most requests of one `submit`. */
  readonly batch: number;
  readonly #context: number;
  readonly #iocbs: Arena;
  readonly #contextPointer: Deno.PointerObject;
  /** Pointers into the list of iocbs: element `i` is the list without its first `i` entries. */
  readonly #lists: Deno.PointerObject[] = [];
  readonly #ring: Int32Array<ArrayBuffer>;
  readonly #ringEntries: number;
  #head = 0;
  #prepared = 0;

  /**
   * @param capacity The most requests in flight.
   * @param batch The most requests of one `submit`.
   * @throws {SystemError} EAGAIN when fs.aio-max-nr is used up; ENOSYS for a ring of another
   * layout.
   */
  constructor(capacity: number, batch: number) {
    this.capacity = capacity;
    this.batch = batch;
    const cell = new BigUint64Array(1);
    if (setUp.io_setup(SYS_io_setup, capacity, cell) < 0) {
      throw new SystemError(
        lastErrno(),
        `Cannot set up asynchronous I/O for ${capacity} requests (raise fs.aio-max-nr if used up)`,
      );
    }
    this.#context = Number(cell[0]);
    this.#iocbs = new Arena(batch * (IOCB_BYTES + POINTER_BYTES));
    this.#contextPointer = pointerTo(this.#context);
    for (let i = 0; i < batch; i++) {
      const at = batch * IOCB_BYTES + i * POINTER_BYTES;
      putNumber64(this.#iocbs.view, at, this.#iocbs.address + i * IOCB_BYTES);
      this.#lists.push(this.#iocbs.pointerAt(at));
    }
    // struct aio_ring (fs/aio.c): u32 id @0, nr @4, head @8, tail @12, magic @16, compat_features
    // @20, incompat_features @24, header_length @28; events from @32.
    const header = new Uint32Array(memoryAt(this.#context, RING_HEADER_BYTES));
    const known = header[RING_MAGIC_WORD] === RING_MAGIC && header[RING_INCOMPATIBLE] === 0 &&
      header[RING_HEADER_LENGTH] === RING_HEADER_BYTES;
    if (!known) {
      throw new SystemError(Errno.ENOSYS, "Cannot read the completion ring: unknown layout");
    }
    this.#ringEntries = header[1];
    assert(this.#ringEntries > capacity, "The completion ring has no room for all requests");
    const ringBytes = RING_HEADER_BYTES + this.#ringEntries * EVENT_BYTES;
    this.#ring = new Int32Array(memoryAt(this.#context, ringBytes));
  }

  /** How many requests are prepared and not cleared. */
  get prepared(): number {
    return this.#prepared;
  }

  /**
   * Prepares one request of the next `submit`.
   *
   * @param opcode One of IOCB_CMD_*.
   * @param memorySector Sector of I/O memory at which the buffer begins, or for PREADV and PWRITEV
   * the iovecs.
   * @param length Bytes of the buffer, or for PREADV and PWRITEV the number of iovecs.
   * @param sectors Element `data` is the sector of the file.
   * @param eventFd An eventfd that the completion signals; -1 for none.
   * @param data Number that the completion carries.
   */
  prepare(
    opcode: number,
    fd: number,
    memorySector: number,
    length: number,
    sectors: Float64Array,
    eventFd: number,
    data: number,
  ): void {
    // struct iocb (linux/aio_abi.h): aio_data @0, aio_key @8, aio_rw_flags @12, aio_lio_opcode u16
    // @16, aio_reqprio @18, aio_fildes @20, aio_buf @24, aio_nbytes @32, aio_offset @40,
    // aio_reserved2 @48, aio_flags @56, aio_resfd @60.
    const view = this.#iocbs.view;
    assert(this.#prepared < this.batch, "More requests are prepared than one batch has");
    const vectored = opcode === IOCB_CMD_PREADV || opcode === IOCB_CMD_PWRITEV;
    requireMemory(memorySector, length, vectored);
    const at = this.#prepared++ * IOCB_BYTES;
    view.setUint32(at, data, true);
    view.setUint32(at + 4, 0, true);
    view.setUint16(at + 16, opcode, true);
    view.setInt32(at + 20, fd, true);
    // The kernel refuses an fdsync that names memory (EINVAL).
    putNumber64(view, at + 24, length === 0 ? 0 : memoryAddress(memorySector));
    putNumber64(view, at + 32, length);
    putNumber64(view, at + 40, sectors[data] * SECTOR_BYTES);
    view.setUint32(at + 56, eventFd < 0 ? 0 : IOCB_FLAG_RESFD, true);
    view.setInt32(at + 60, eventFd < 0 ? 0 : eventFd, true);
  }

  /**
   * Submits the prepared requests from number `first` on. The kernel copies their iocbs.
   *
   * @returns How many the kernel took, or a negative errno, which is that of request `first`.
   */
  submit(first: number): number {
    const taken = libc.io_submit(
      SYS_io_submit,
      this.#contextPointer,
      this.#prepared - first,
      this.#lists[first],
    );
    return taken >= 0 ? taken : -lastErrno();
  }

  /** Forgets the prepared requests. */
  clear(): void {
    this.#prepared = 0;
  }

  /** How many completions are in the ring. The methods below take a distance from its head. */
  completions(): number {
    const waiting = Atomics.load(this.#ring, RING_TAIL) - this.#head;
    return waiting < 0 ? waiting + this.#ringEntries : waiting;
  }

  // struct io_event (linux/aio_abi.h): data @0, obj @8, res s64 @16, res2 @24.
  #eventAt(distance: number): number {
    const index = this.#head + distance;
    const wrapped = index >= this.#ringEntries ? index - this.#ringEntries : index;
    return (RING_HEADER_BYTES + wrapped * EVENT_BYTES) >> 2;
  }

  /** The `data` of a completion in the ring. */
  completionData(distance: number): number {
    return this.#ring[this.#eventAt(distance)];
  }

  /** The result of a completion: bytes, or a negative errno. */
  completionResult(distance: number): number {
    return this.#ring[this.#eventAt(distance) + 4];
  }

  /** Removes the oldest `count` completions from the ring. */
  consume(count: number): void {
    const head = this.#head + count;
    this.#head = head >= this.#ringEntries ? head - this.#ringEntries : head;
    Atomics.store(this.#ring, RING_HEAD, this.#head);
  }

  /** Waits for the requests in flight, then destroys the context. */
  close(): void {
    setUp.io_destroy(SYS_io_destroy, this.#context);
    this.#iocbs.release();
  }
}
