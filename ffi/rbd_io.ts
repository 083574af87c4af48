/**
 * Requests to an open image on a Ceph cluster. librbd's threads move the bytes, and signal a
 * descriptor; its completions are taken here, so that none of its threads calls into this program.
 *
 * @module
 */
import { librbd } from "./librbd.ts";
import { requireMemory, SECTOR_BYTES, SectorPointers } from "./memory.ts";

/** What a request does. */
export const RbdCommand = {
  Read: 0,
  Write: 1,
  /** Frees room. What the sectors hold then is undefined. */
  Discard: 2,
  /** Makes sectors zeros; objects that are nothing else are removed. */
  Zero: 3,
  /** Writes zeros. */
  Fill: 4,
  Flush: 5,
} as const;

// librbd.h
const RBD_WRITE_ZEROES_FLAG_THICK_PROVISION = 1;
/** The most completions that are taken by one call. */
const BATCH = 64;
/** Pointers to memory of requests that are kept. */
const MOST_POINTERS = 4096;
const TWO_32 = 2 ** 32;

/**
 * The requests of one image. Each has a number, which the caller chooses, and which its completion
 * tells. A completion is an object of librbd that lives from `start` to `finish`.
 */
export class RbdIo {
  /** The result of the completion that `finish` let go of: a length, or a negative error number. */
  readonly result = new Int32Array(1);
  readonly #rbd = librbd().rbd;
  readonly #image: Deno.PointerObject;
  readonly #pointers = new SectorPointers(MOST_POINTERS);
  /** Where librbd puts the address of a new completion, and those of completions that ended. */
  readonly #made = new Uint32Array(2);
  readonly #ended = new Uint32Array(2 * BATCH);
  readonly #madeBytes = new Uint8Array(this.#made.buffer);
  readonly #endedBytes = new Uint8Array(this.#ended.buffer);

  /** @param image As `RbdSession.pointer` has it. */
  constructor(image: Deno.PointerObject) {
    this.#image = image;
  }

  /**
   * Starts a request. Its memory must stay until it has ended.
   *
   * @param number Below 2^32.
   * @param command Of `RbdCommand`.
   * @param memorySector Of I/O memory; of no meaning for requests without data.
   * @returns 0, or a negative error number: there is no completion then, nor when it throws.
   */
  start(
    number: number,
    command: number,
    sector: number,
    count: number,
    memorySector: number,
  ): number {
    const made = this.#rbd.rbd_aio_create_completion(number, null, this.#madeBytes);
    if (made < 0) return made;
    const completion = this.#made[0] + this.#made[1] * TWO_32;
    let result: number;
    try {
      result = this.#submit(completion, command, sector, count, memorySector);
    } catch (error) {
      this.#rbd.rbd_aio_release(completion);
      throw error;
    }
    if (result < 0) this.#rbd.rbd_aio_release(completion);
    return Math.min(0, result);
  }

  #submit(
    completion: number,
    command: number,
    sector: number,
    count: number,
    memorySector: number,
  ): number {
    const rbd = this.#rbd;
    const image = this.#image;
    const at = sector * SECTOR_BYTES;
    const length = count * SECTOR_BYTES;
    if (command === RbdCommand.Read || command === RbdCommand.Write) {
      requireMemory(memorySector, length, false);
      const pointer = this.#pointers.at(memorySector);
      return command === RbdCommand.Read
        ? rbd.rbd_aio_read(image, at, length, pointer, completion)
        : rbd.rbd_aio_write(image, at, length, pointer, completion);
    }
    if (command === RbdCommand.Flush) return rbd.rbd_aio_flush(image, completion);
    if (command === RbdCommand.Discard) return rbd.rbd_aio_discard(image, at, length, completion);
    const flags = command === RbdCommand.Fill ? RBD_WRITE_ZEROES_FLAG_THICK_PROVISION : 0;
    return rbd.rbd_aio_write_zeroes(image, at, length, completion, flags, 0);
  }

  /** Takes completions that are there; returns how many. With a full batch there may be more. */
  take(): number {
    return this.#rbd.rbd_poll_io_events(this.#image, this.#endedBytes, BATCH);
  }

  /** Whether so many completions are all that were taken at once, so that there may be more. */
  isFull(count: number): boolean {
    return count === BATCH;
  }

  /** Lets go of a completion of the batch; returns the number of its request, and sets `result`. */
  finish(index: number): number {
    const rbd = this.#rbd;
    const completion = this.#ended[2 * index] + this.#ended[2 * index + 1] * TWO_32;
    const number = rbd.rbd_aio_get_arg(completion);
    this.result[0] = rbd.rbd_aio_get_return_value(completion);
    rbd.rbd_aio_release(completion);
    return number;
  }
}
