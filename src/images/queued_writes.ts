import { type Done, SystemError, systemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import type { DiskQueue, IoOwner } from "../queue/disk_queue.ts";
import type { PutBytes } from "./kind.ts";
import type { Piece } from "./walk.ts";

/** What writes need of a disk queue. */
export type WritingQueue = Pick<DiskQueue, "register" | "write">;

/** A file that is written by the queue. */
export interface QueuedFile {
  readonly path: string;
  /** Its number at the queue. */
  readonly file: number;
}

/** A piece whose parts are being written. */
interface PieceUnderWay {
  readonly piece: Piece;
  readonly done: Done;
  /** Writes that have not ended, and one for the caller until all have been started. */
  left: number;
}

/**
 * Writes the parts of pieces of a disk to places of a file by the disk queue, many at once. The first error
 * ends everything: pieces that come later are not written.
 */
export class QueuedWrites implements IoOwner {
  readonly #queue: WritingQueue;
  readonly #file: QueuedFile;
  /** By slot. */
  readonly #underWay: PieceUnderWay[] = [];
  #error: SystemError | null = null;

  constructor(queue: WritingQueue, file: QueuedFile) {
    this.#queue = queue;
    this.#file = file;
    queue.register(file.file);
  }

  /**
   * Writes what `start` asks for. Calls `done`, with null or the first error of all, when no part of the
   * piece is being written any more.
   *
   * @param start Is called with what writes a part of the piece's bytes to a place of the file. An error
   * that it throws is that of the piece.
   */
  write(piece: Piece, done: Done, start: (put: PutBytes) => void): void {
    const underWay: PieceUnderWay = { piece, done, left: 1 };
    this.#underWay[piece.slot] = underWay;
    const put: PutBytes = (part, offsetBytes) => this.#put(underWay, part, offsetBytes);
    try {
      if (this.#error === null) start(put);
    } catch (error) {
      this.#error ??= systemError(error, `Cannot write ${this.#file.path}`);
    }
    this.#ended(underWay);
  }

  #put(underWay: PieceUnderWay, part: Uint8Array<ArrayBuffer>, offsetBytes: number): void {
    const { slot, bytes, memorySector } = underWay.piece;
    const inPiece = (part.byteOffset - bytes.byteOffset) / SECTOR_BYTES;
    underWay.left++;
    this.#queue.write(
      this.#file.file,
      offsetBytes / SECTOR_BYTES,
      part.length / SECTOR_BYTES,
      memorySector + inPiece,
      this,
      slot,
    );
  }

  ioDone(slot: number, _sectors: number, errno: number): void {
    if (errno !== 0) this.#error ??= new SystemError(errno, `Cannot write ${this.#file.path}`);
    this.#ended(this.#underWay[slot]);
  }

  #ended(underWay: PieceUnderWay): void {
    if (--underWay.left === 0) underWay.done(this.#error);
  }
}
