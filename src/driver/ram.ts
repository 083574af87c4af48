import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { Arena, copySectors, zeroSectors } from "../../ffi/memory.ts";
import type { Storage, StorageFile } from "../files/storage.ts";
import {
  type DriverType,
  type ImageContext,
  type ImageDriver,
  type ImageSpec,
  type RequestSink,
  SECTOR_BYTES,
} from "./driver.ts";
import { NAMES_FILE, NAMES_OTHER } from "./image_name.ts";
import type { Retained } from "./retained_state.ts";

const MIB = 1 << 20;
/** The largest RAM disk. All memory for I/O shares one range of addresses. */
const MOST_BYTES = 16 * 1024 * MIB;
const COPY_BYTES = 4 * MIB;
/** Memory is given back, and holes are reported, in units of so many sectors: 64 KiB. */
const CHUNK_SECTORS = 128;
const ZERO_SECTORS = 1 << 20;

/**
 * Disks in memory. `ram:64` is an empty one of 64 MiB; `ram:/disk.raw` starts with what the file
 * holds, and never writes to it. What was written is gone when the device closes; a pause keeps it.
 */
export const ramDriver: DriverType = {
  type: "ram",
  where: "{MIB | FILE}",
  summary: "A disk in memory, empty or with the content of a file",
  number: 5,
  named: (rest: string) => isSize(rest) ? NAMES_OTHER : NAMES_FILE,

  open(spec: ImageSpec, context: ImageContext, sink: RequestSink): ImageDriver {
    const contents = context.retained.take(`ram:${spec.path}`, {
      kind: RamContents,
      make: () => makeContents(spec.path, context.files.storage),
    });
    return new RamImage(spec, contents, sink);
  },
};

function isSize(path: string): boolean {
  return /^\d+$/.test(path);
}

function makeContents(path: string, storage: Storage): RamContents {
  if (isSize(path)) return new RamContents(checkedSize(Number(path) * MIB, path));
  const file = storage.open(path, "read");
  try {
    const sectors = Math.floor(file.sizeBytes() / SECTOR_BYTES);
    const contents = new RamContents(checkedSize(sectors * SECTOR_BYTES, path));
    contents.load(file);
    return contents;
  } finally {
    file.close();
  }
}

function checkedSize(sizeBytes: number, path: string): number {
  if (sizeBytes > 0 && sizeBytes <= MOST_BYTES) return sizeBytes;
  const limit = `a RAM disk has from one sector to ${MOST_BYTES / MIB} MiB`;
  throw new SystemError(
    sizeBytes === 0 ? Errno.EINVAL : Errno.ENOMEM,
    `Cannot open ram:${path} with ${sizeBytes} bytes (${limit})`,
  );
}

/** What a RAM disk holds. Memory that was never written to, or was zeroed since, takes no room. */
class RamContents implements Retained {
  readonly sectors: number;
  readonly #arena: Arena;
  /** Which chunks hold data, a byte each. */
  readonly #used: Uint8Array;

  constructor(sizeBytes: number) {
    this.sectors = sizeBytes / SECTOR_BYTES;
    this.#arena = new Arena(sizeBytes);
    this.#used = new Uint8Array(Math.ceil(this.sectors / CHUNK_SECTORS));
  }

  load(file: StorageFile): void {
    const { bytes } = this.#arena;
    const end = this.sectors * SECTOR_BYTES;
    for (let at = 0; at < end; at += COPY_BYTES) {
      file.readAt(bytes.subarray(at, Math.min(end, at + COPY_BYTES)), at);
    }
    this.#used.fill(1);
  }

  read(sector: number, count: number, memorySector: number): void {
    copySectors(memorySector, this.#arena.sector + sector, count);
  }

  write(sector: number, count: number, memorySector: number): void {
    copySectors(this.#arena.sector + sector, memorySector, count);
    this.#use(sector, count);
  }

  fill(sector: number, count: number): void {
    zeroSectors(this.#arena.sector + sector, count);
    this.#use(sector, count);
  }

  #use(sector: number, count: number): void {
    const last = Math.floor((sector + count - 1) / CHUNK_SECTORS);
    for (let chunk = Math.floor(sector / CHUNK_SECTORS); chunk <= last; chunk++) {
      this.#used[chunk] = 1;
    }
  }

  zero(sector: number, count: number): void {
    const end = sector + count;
    const first = Math.ceil(sector / CHUNK_SECTORS);
    const last = end === this.sectors ? this.#used.length : Math.floor(end / CHUNK_SECTORS);
    if (first >= last) return zeroSectors(this.#arena.sector + sector, count);
    const start = first * CHUNK_SECTORS;
    const stop = last * CHUNK_SECTORS;
    if (sector < start) zeroSectors(this.#arena.sector + sector, start - sector);
    if (stop < end) zeroSectors(this.#arena.sector + stop, end - stop);
    const lengthBytes = (stop - start) * SECTOR_BYTES;
    const offsetBytes = start * SECTOR_BYTES;
    this.#arena.discard(offsetBytes, Math.min(lengthBytes, this.#arena.sizeBytes - offsetBytes));
    this.#used.fill(0, first, last);
  }

  /**
   * How many sectors from `sector` on, at most `count`, are alike: positive when they hold data,
   * negative when they are a hole.
   */
  run(sector: number, count: number): number {
    let chunk = Math.floor(sector / CHUNK_SECTORS);
    const used = this.#used[chunk];
    let end = sector;
    while (end < sector + count && this.#used[chunk] === used) end = ++chunk * CHUNK_SECTORS;
    const length = Math.min(count, end - sector);
    return used === 1 ? length : -length;
  }

  release(): void {
    this.#arena.release();
  }
}

/** An open RAM disk. Every request ends before its call returns. */
class RamImage implements ImageDriver {
  readonly spec: ImageSpec;
  readonly sectors: number;
  readonly parent = null;
  readonly zeroSectors = ZERO_SECTORS;
  readonly fillSectors = ZERO_SECTORS;
  readonly counts = { readSectors: 0, writtenSectors: 0 };
  readonly #contents: RamContents;
  readonly #sink: RequestSink;

  constructor(spec: ImageSpec, contents: RamContents, sink: RequestSink) {
    this.spec = spec;
    this.sectors = contents.sectors;
    this.#contents = contents;
    this.#sink = sink;
  }

  operationsFor(_sectors: number): number {
    return 0;
  }

  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.readSectors += count;
    this.#contents.read(sector, count, memorySector);
    this.#sink.pieceDone(slot, count, 0);
  }

  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.counts.writtenSectors += count;
    this.#contents.write(sector, count, memorySector);
    this.#sink.pieceDone(slot, count, 0);
  }

  zero(slot: number, sector: number, count: number): void {
    this.#contents.zero(sector, count);
    this.#sink.pieceDone(slot, count, 0);
  }

  fill(slot: number, sector: number, count: number): void {
    this.counts.writtenSectors += count;
    this.#contents.fill(sector, count);
    this.#sink.pieceDone(slot, count, 0);
  }

  discard(slot: number, sector: number, count: number): void {
    this.zero(slot, sector, count);
  }

  flush(slot: number): void {
    this.#sink.pieceDone(slot, 1, 0);
  }

  status(slot: number, sector: number, count: number): void {
    for (let wanted = true; wanted && count > 0;) {
      const run = this.#contents.run(sector, count);
      const sectors = Math.abs(run);
      wanted = this.#sink.extent(slot, sectors, run > 0);
      sector += sectors;
      count -= sectors;
    }
    this.#sink.statusDone(slot, 0);
  }

  close(done: Done): void {
    done(null);
  }

  abandon(): void {}
}
