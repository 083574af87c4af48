import { Errno } from "../../ffi/errno.ts";
import { IoKind } from "./backend.ts";

const KINDS = Object.keys(IoKind).length;
const NEVER = -Infinity;
/** The latest operation has this part of the mean of what operations take. */
const MEAN_OF = 32;

/** Sectors of a read that looks whether a file's disk works. */
export const PROBE_SECTORS = 8;

/** Errors with which the kernel says that a place of a disk cannot be read or written. */
const ofPlace: ReadonlySet<number> = new Set([
  Errno.EIO,
  // A critical medium error of a block device, and data that its checksum refutes.
  Errno.ENODATA,
  Errno.EILSEQ,
  Errno.EREMOTEIO,
]);

/** Whether an error may be that of a single place of a disk. It may also be that of the whole disk. */
export function isErrorOfPlace(errno: number): boolean {
  return ofPlace.has(errno);
}

/**
 * When the operations on each file last succeeded, and last failed. Where others of the same kind
 * succeed meanwhile, an error concerns a place of the disk, and not the whole disk.
 *
 * The success of a file that goes through the page cache says nothing about its disk, and is not noted.
 */
export class FileHealth {
  readonly #clock: Float64Array;
  /** By kind and file, milliseconds. */
  #succeededMs = new Float64Array(KINDS * 64).fill(NEVER);
  #failedMs = new Float64Array(KINDS * 64).fill(NEVER);
  /** By file: see `goodSector`. */
  #goodSector = new Float64Array(64);
  #isDirect = new Uint8Array(64);
  /** By file: the last error of an operation, also one for want of room, and when that was. */
  #lastErrno = new Int32Array(64);
  #lastErrorMs = new Float64Array(64).fill(NEVER);
  /** By file: how long operations took of late, and when one ended last, milliseconds. */
  #meanMs = new Float64Array(64);
  #endedMs = new Float64Array(64).fill(NEVER);
  /** By file: how a sync through the page cache ended that failed, a negative errno; 0 without one. */
  #failedSync = new Int32Array(64);

  /** @param clock The time that the loop read last, milliseconds, at index 0. */
  constructor(clock: Float64Array) {
    this.#clock = clock;
  }

  /** A file is new; its number may have been that of another file before. */
  register(file: number, isDirect: boolean): void {
    if (file >= this.#isDirect.length) this.#grow(2 * file);
    this.#succeededMs.fill(NEVER, KINDS * file, KINDS * (file + 1));
    this.#failedMs.fill(NEVER, KINDS * file, KINDS * (file + 1));
    this.#goodSector[file] = 0;
    this.#lastErrno[file] = 0;
    this.#meanMs[file] = 0;
    this.#endedMs[file] = NEVER;
    this.#lastErrorMs[file] = NEVER;
    this.#isDirect[file] = isDirect ? 1 : 0;
    this.#failedSync[file] = 0;
  }

  #grow(files: number): void {
    const times = (before: Float64Array): Float64Array<ArrayBuffer> => {
      const larger = new Float64Array(KINDS * files).fill(NEVER);
      larger.set(before);
      return larger;
    };
    this.#succeededMs = times(this.#succeededMs);
    this.#failedMs = times(this.#failedMs);
    const goodSector = new Float64Array(files);
    goodSector.set(this.#goodSector);
    this.#goodSector = goodSector;
    const lastErrno = new Int32Array(files);
    lastErrno.set(this.#lastErrno);
    this.#lastErrno = lastErrno;
    const lastErrorMs = new Float64Array(files).fill(NEVER);
    lastErrorMs.set(this.#lastErrorMs);
    this.#lastErrorMs = lastErrorMs;
    const meanMs = new Float64Array(files);
    meanMs.set(this.#meanMs);
    this.#meanMs = meanMs;
    const endedMs = new Float64Array(files).fill(NEVER);
    endedMs.set(this.#endedMs);
    this.#endedMs = endedMs;
    const isDirect = new Uint8Array(files);
    isDirect.set(this.#isDirect);
    this.#isDirect = isDirect;
    const failedSync = new Int32Array(files);
    failedSync.set(this.#failedSync);
    this.#failedSync = failedSync;
  }

  /**
   * How a sync ended, of which the kernel says `result`. The kernel takes a page that it could not
   * write for written: the next sync of the file ends well, and the page is lost. So once a sync of a
   * file that goes through the page cache has failed, all do, until the file is opened again.
   */
  syncResult(file: number, result: number): number {
    if (this.#isDirect[file] === 1 || result === -Errno.EINTR || result === -Errno.EAGAIN) {
      return result;
    }
    if (result < 0 && this.#failedSync[file] === 0) this.#failedSync[file] = result;
    return this.#failedSync[file] === 0 ? result : this.#failedSync[file];
  }

  /** An operation of `count` sectors succeeded, from the sector on that `sectors` has at `io`. */
  succeeded(file: number, kind: number, count: number, sectors: Float64Array, io: number): void {
    if (this.#isDirect[file] === 0) return;
    this.#succeededMs[KINDS * file + kind] = this.#clock[0];
    if (kind === IoKind.Read && count >= PROBE_SECTORS) this.#goodSector[file] = sectors[io];
  }

  /**
   * An operation failed, or ended early. A disk that has no room is in order.
   *
   * @param result Bytes moved, or a negative errno.
   */
  failed(file: number, kind: number, result: number): void {
    const early = kind === IoKind.Write ? Errno.ENOSPC : Errno.EIO;
    this.#lastErrno[file] = result < 0 ? -result : early;
    this.#lastErrorMs[file] = this.#clock[0];
    const lacksRoom = result === -Errno.ENOSPC || result === -Errno.EDQUOT ||
      (result >= 0 && kind === IoKind.Write);
    if (lacksRoom) return;
    this.#failedMs[KINDS * file + kind] = this.#clock[0];
  }

  /** Whether a read, or any operation, failed since then. */
  hasFailed(file: number, sinceMs: number, { reads = false } = {}): boolean {
    const at = KINDS * file;
    const end = reads ? at + 1 : at + KINDS;
    return this.#failedMs.subarray(at + IoKind.Read, end).some((ms) => ms >= sinceMs);
  }

  /** Whether each kind of operation that failed since then also succeeded, elsewhere in the file. */
  isHealthy(file: number, sinceMs: number): boolean {
    for (let at = KINDS * file; at < KINDS * (file + 1); at++) {
      if (this.#failedMs[at] >= sinceMs && this.#succeededMs[at] < sinceMs) return false;
    }
    return true;
  }

  /** When an operation on a file last succeeded; -Infinity when none did. */
  lastSuccessMs(file: number): number {
    return Math.max(...this.#succeededMs.subarray(KINDS * file, KINDS * (file + 1)));
  }

  /** An operation ended, which the disk got at the time that `submittedMs` has at `group`. */
  took(file: number, submittedMs: Float64Array, group: number): void {
    const tookMs = this.#clock[0] - submittedMs[group];
    if (this.#endedMs[file] === NEVER) this.#meanMs[file] = tookMs;
    else this.#meanMs[file] += (tookMs - this.#meanMs[file]) / MEAN_OF;
    this.#endedMs[file] = this.#clock[0];
  }

  /** How long operations on a file took of late, milliseconds. */
  meanMs(file: number): number {
    return this.#meanMs[file];
  }

  /** When an operation on a file ended last; -Infinity when none did. */
  endedMs(file: number): number {
    return this.#endedMs[file];
  }

  /** The last error of an operation on a file; 0 without one. */
  lastErrno(file: number): number {
    return this.#lastErrno[file];
  }

  /** When an operation on a file failed last; -Infinity when none did. */
  lastErrorMs(file: number): number {
    return this.#lastErrorMs[file];
  }

  /** Where a read of `PROBE_SECTORS` sectors last succeeded; 0 when none did. */
  goodSector(file: number): number {
    return this.#goodSector[file];
  }
}
