import { zeroSectors } from "../../../ffi/memory.ts";
import type { IoOwner } from "../../queue/disk_queue.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import type { ImageContext, ImageCounts, ImageDriver, RequestSink } from "../driver.ts";
import { PieceKind } from "../pieces.ts";
import type { BitmapCache } from "./bitmap_cache.ts";
import type { SectorCipher } from "./sector_cipher.ts";
import type { VhdFile } from "./vhd_file.ts";

/**
 * Reads sectors within one block: from the file where the image holds them, from the parent or as
 * zeros where it does not.
 */
export class BlockReader {
  /** The image below; null without a parent. */
  below: ImageDriver | null = null;
  readonly #context: ImageContext;
  readonly #sink: RequestSink;
  readonly #file: VhdFile;
  readonly #cache: BitmapCache;
  /** Null for an image that is not encrypted. */
  readonly #cipher: SectorCipher | null;
  readonly #counts: ImageCounts;
  readonly #directOwner: IoOwner;
  readonly #cipherOwner: IoOwner = {
    ioDone: (piece, _length, errno) => this.#readEncrypted(piece, errno),
  };

  constructor(
    { context, sink, file, cache, cipher, counts, directOwner }: {
      context: ImageContext;
      sink: RequestSink;
      file: VhdFile;
      cache: BitmapCache;
      cipher: SectorCipher | null;
      counts: ImageCounts;
      /** Takes the end of reads that need nothing else. */
      directOwner: IoOwner;
    },
  ) {
    this.#context = context;
    this.#sink = sink;
    this.#file = file;
    this.#cache = cache;
    this.#cipher = cipher;
    this.#counts = counts;
    this.#directOwner = directOwner;
  }

  /** Whether something below shows through at a sector that this image does not hold. */
  showsParentAt(sector: number): boolean {
    return this.below !== null && sector < this.below.sectors;
  }

  /** Reads sectors that the image holds, of a block that begins at `location` of the file. */
  readData(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    location: number,
  ): void {
    const start = location + this.#file.bitmapSectors + this.#file.inBlock(sector);
    const missing = Math.min(count, start + count - this.#file.endSector);
    if (missing > 0) {
      const there = count - missing;
      if (there > 0) this.readData(slot, sector, there, memorySector, location);
      return this.#readMissing(slot, sector + there, missing, memorySector + there, start + there);
    }
    this.#counts.readSectors += count;
    const encrypted = this.#cipher !== null;
    const token = encrypted
      ? this.#context.pieces.take(PieceKind.Read, slot, sector, count, memorySector)
      : slot;
    this.#context.queue.read(
      this.#file.disk.file,
      start,
      count,
      memorySector,
      encrypted ? this.#cipherOwner : this.#directOwner,
      token,
    );
  }

  /** Reads what the file ends in front of; `start` is where it would be. */
  #readMissing(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    start: number,
  ): void {
    this.#file.readPastEnd(start, count, memorySector);
    this.#cipher?.open(sector, count, memorySector);
    this.#sink.pieceDone(slot, count, 0);
  }

  #readEncrypted(piece: number, errno: number): void {
    const { pieces } = this.#context;
    const slot = pieces.slot[piece];
    const count = pieces.count[piece];
    if (errno === 0) this.#cipher?.open(pieces.sector[piece], count, pieces.memory[piece]);
    pieces.give(piece);
    this.#sink.pieceDone(slot, count, errno);
  }

  /** Reads sectors of the block of an entry: what its bitmap has from the file, the rest from below. */
  readRuns(
    slot: number,
    sector: number,
    count: number,
    memorySector: number,
    entry: number,
  ): void {
    const bits = this.#cache.onDisk;
    let bit = this.#cache.bitOf(entry) + this.#file.inBlock(sector);
    const end = bit + count;
    while (bit < end) {
      const run = runEnd(bits, bit, end) - bit;
      if (testBit(bits, bit)) {
        this.readData(slot, sector, run, memorySector, this.#cache.location[entry]);
      } else this.readBelow(slot, sector, run, memorySector);
      bit += run;
      sector += run;
      memorySector += run;
    }
  }

  /** Reads sectors that the image does not hold. */
  readBelow(slot: number, sector: number, count: number, memorySector: number): void {
    const { below } = this;
    // A parent may be smaller than its child; what lies past its end is zero.
    const there = below === null ? 0 : Math.max(0, Math.min(count, below.sectors - sector));
    if (below !== null && there > 0) below.read(slot, sector, there, memorySector);
    if (there === count) return;
    zeroSectors(memorySector + there, count - there);
    this.#sink.pieceDone(slot, count - there, 0);
  }
}
