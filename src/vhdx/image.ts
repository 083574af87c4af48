import { type Confinement, confinementOf } from "../files/confinement.ts";
import { type FileIdentity, osStorage, type Storage, type StorageFile } from "../files/storage.ts";
import { vhdxFault } from "./errors.ts";
import {
  BlockState,
  FILE_PARAMETERS,
  HAS_PARENT,
  LOGICAL_SECTOR_SIZE,
  MIB,
  MOST_DISK_BYTES,
  PAGE_BYTES,
  PARENT_LOCATOR,
  PHYSICAL_SECTOR_SIZE,
  SECTOR_BYTES,
  type VhdxHeader,
  VIRTUAL_DISK_SIZE,
} from "./format.ts";
import { readLog } from "./log.ts";
import {
  type Items,
  readHeader,
  readItems,
  readRegions,
  type Region,
  ReplayedFile,
} from "./regions.ts";

/** The most blocks: 16 TiB in blocks of 1 MiB. The block table is kept in memory. */
const MOST_BLOCKS = 16 << 20;
const BAT_BYTES_AT_ONCE = 1 << 20;
/** Sectors of the disk, in its own sectors, that one block of a sector bitmap is for. */
const SECTORS_PER_CHUNK = 2 ** 23;

/** An open image whose metadata was read and is valid. */
export interface VhdxImage {
  readonly path: string;
  readonly storage: Storage;
  readonly file: StorageFile;
  /** The same file with its log replayed. */
  readonly replayed: ReplayedFile;
  /** The folders in which its parents may be. */
  readonly confinement: Confinement;
  readonly header: VhdxHeader;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  /** Bytes of the disk's own sectors: what a bit of a bitmap is for. */
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  /** By block: one of `BlockState`. */
  readonly states: Uint8Array<ArrayBuffer>;
  /** By block: the MiB of the file at which it lies. */
  readonly places: Uint32Array<ArrayBuffer>;
  /** Blocks that one bitmap is for, and by bitmap: the MiB at which it lies; 0 without one. */
  readonly blocksPerBitmap: number;
  readonly bitmaps: Uint32Array<ArrayBuffer>;
  /** The bytes of the parent locator; null for an image without a parent. */
  readonly locator: Uint8Array<ArrayBuffer> | null;
  close(): void;
}

/** How an image is opened. */
export interface OpenVhdxOptions {
  readonly storage?: Storage;
  readonly same?: FileIdentity;
  /** Without it, the image is the top of a chain. */
  readonly confinement?: Confinement;
}

/**
 * Opens an image for reading. A log that was left behind is replayed in memory.
 *
 * @throws {ImageFormatError} for a file that is no VHDX image or contradicts itself.
 * @throws {SystemError} EOPNOTSUPP for an image that requires something unknown; errors of the file.
 */
export function openVhdx(path: string, options: OpenVhdxOptions = {}): VhdxImage {
  const { storage = osStorage, same } = options;
  const file = storage.open(path, "read", { same });
  try {
    return readImage(file, storage, options);
  } catch (error) {
    file.close();
    throw error;
  }
}

function readImage(file: StorageFile, storage: Storage, options: OpenVhdxOptions): VhdxImage {
  const { path } = file;
  const header = readHeader(file);
  const replayed = new ReplayedFile(file, readLog(file, header));
  const { bat, metadata } = readRegions(replayed);
  const items = readItems(replayed, metadata);
  const disk = readDisk(path, items);
  const tables = readBat(replayed, bat, disk);
  refuseLoggedData(replayed, { ...disk, ...tables });
  return {
    path,
    storage,
    file,
    replayed,
    confinement: options.confinement ?? confinementOf(storage, path),
    header,
    ...disk,
    ...tables,
    close: () => file.close(),
  };
}

interface DiskFields {
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  readonly locator: Uint8Array<ArrayBuffer> | null;
}

function readDisk(path: string, items: Items): DiskFields {
  const number = (
    guid: string,
    name: string,
    length: number,
    read: (view: DataView) => number,
    isRight: (value: number) => boolean,
    problem: string,
  ): number => {
    const item = items.get(guid);
    const isLong = item !== undefined && item.bytes.length >= length;
    const value = isLong ? read(new DataView(item.bytes.buffer)) : NaN;
    if (isLong && isRight(value)) return value;
    throw vhdxFault(path, {
      field: `metadata ${name}`,
      offsetBytes: item?.at ?? 0,
      value: isLong ? `${value}` : "nothing",
      problem: isLong ? problem : "is missing",
    });
  };
  const is = (a: number, b: number) => (value: number): boolean => value === a || value === b;
  const logicalSectorBytes = number(
    LOGICAL_SECTOR_SIZE,
    "LogicalSectorSize",
    4,
    (view) => view.getUint32(0, true),
    is(512, 4096),
    "is not 512 or 4096",
  );
  const physicalSectorBytes = number(
    PHYSICAL_SECTOR_SIZE,
    "PhysicalSectorSize",
    4,
    (view) => view.getUint32(0, true),
    is(512, 4096),
    "is not 512 or 4096",
  );
  const blockBytes = number(
    FILE_PARAMETERS,
    "BlockSize",
    8,
    (view) => view.getUint32(0, true),
    (value) => value >= MIB && value <= 256 * MIB && Number.isInteger(Math.log2(value)),
    "is not a power of two of 1 to 256 MiB",
  );
  const sizeBytes = number(
    VIRTUAL_DISK_SIZE,
    "VirtualDiskSize",
    8,
    (view) => Number(view.getBigUint64(0, true)),
    (value) => value > 0 && value <= MOST_DISK_BYTES && value % logicalSectorBytes === 0,
    "is not whole sectors up to 64 TiB",
  );
  const flags = number(
    FILE_PARAMETERS,
    "flags",
    8,
    (view) => view.getUint32(4, true),
    (value) => value <= 3,
    "has unknown flags",
  );
  const locator = items.get(PARENT_LOCATOR)?.bytes ?? null;
  if ((flags & HAS_PARENT) === 0) {
    return { sizeBytes, blockBytes, logicalSectorBytes, physicalSectorBytes, locator: null };
  }
  if (locator !== null) {
    return { sizeBytes, blockBytes, logicalSectorBytes, physicalSectorBytes, locator };
  }
  throw vhdxFault(path, {
    field: "metadata ParentLocator",
    offsetBytes: 0,
    value: "nothing",
    problem: "is missing in a differencing image",
  });
}

type Tables = Pick<VhdxImage, "states" | "places" | "blocksPerBitmap" | "bitmaps">;

function readBat(file: ReplayedFile, region: Region, disk: DiskFields): Tables {
  const { sizeBytes, blockBytes, logicalSectorBytes, locator } = disk;
  const blocks = Math.ceil(sizeBytes / blockBytes);
  const blocksPerBitmap = SECTORS_PER_CHUNK * logicalSectorBytes / blockBytes;
  const chunks = Math.ceil(blocks / blocksPerBitmap);
  const entries = locator === null ? blocks + chunks - 1 : chunks * (blocksPerBitmap + 1);
  if (blocks > MOST_BLOCKS || 8 * entries > region.lengthBytes) {
    throw vhdxFault(file.path, {
      field: "region of the block table",
      offsetBytes: region.offsetBytes,
      value: `${region.lengthBytes} bytes`,
      problem: blocks > MOST_BLOCKS
        ? `belongs to a disk of ${blocks} blocks; 16 Mi are the most`
        : `is too short for ${entries} entries`,
    });
  }
  const tables = {
    states: new Uint8Array(blocks),
    places: new Uint32Array(blocks),
    blocksPerBitmap,
    bitmaps: new Uint32Array(locator === null ? 0 : chunks),
  };
  const reader = new BatReader(file, { tables, disk, offsetBytes: region.offsetBytes });
  const bytes = new Uint8Array(Math.min(8 * entries, BAT_BYTES_AT_ONCE));
  for (let first = 0; first < entries; first += bytes.length / 8) {
    const count = Math.min(bytes.length / 8, entries - first);
    file.readAt(bytes.subarray(0, 8 * count), region.offsetBytes + 8 * first);
    reader.take(new DataView(bytes.buffer), first, count);
  }
  reader.requireBitmaps();
  return tables;
}

/** Takes entries of the block table apart: those of blocks, and behind each so many one of a bitmap. */
class BatReader {
  readonly #file: ReplayedFile;
  readonly #tables: Tables;
  readonly #disk: DiskFields;
  readonly #offsetBytes: number;
  readonly #fileMib: number;

  constructor(
    file: ReplayedFile,
    { tables, disk, offsetBytes }: { tables: Tables; disk: DiskFields; offsetBytes: number },
  ) {
    this.#file = file;
    this.#tables = tables;
    this.#disk = disk;
    this.#offsetBytes = offsetBytes;
    this.#fileMib = Math.ceil(file.file.sizeBytes() / MIB);
  }

  take(view: DataView, first: number, count: number): void {
    const { states, places, blocksPerBitmap, bitmaps } = this.#tables;
    const blockMib = this.#disk.blockBytes / MIB;
    for (let i = 0; i < count; i++) {
      const low = view.getUint32(8 * i, true);
      const mib = view.getUint32(8 * i + 4, true) * 4096 + (low >>> 20);
      const chunk = Math.floor((first + i) / (blocksPerBitmap + 1));
      const block = first + i - chunk;
      const state = low & 7;
      if ((first + i) % (blocksPerBitmap + 1) === blocksPerBitmap) {
        if (bitmaps.length === 0 || state === BlockState.NotPresent) continue;
        if (state !== BlockState.Full || !this.#isInside(mib, 1)) this.#fault(first + i, low, mib);
        bitmaps[chunk] = mib;
      } else if (block < states.length) {
        if (!this.#isState(state, mib, blockMib)) this.#fault(first + i, low, mib);
        states[block] = state;
        places[block] = mib;
      }
    }
  }

  /** A block that is there in part needs the bitmap that says which part. */
  requireBitmaps(): void {
    const { states, blocksPerBitmap, bitmaps } = this.#tables;
    if (bitmaps.length === 0) return;
    for (let block = 0; block < states.length; block++) {
      const chunk = Math.floor(block / blocksPerBitmap);
      if (states[block] !== BlockState.Partial || bitmaps[chunk] !== 0) continue;
      this.#fault(block + chunk, states[block], this.#tables.places[block]);
    }
  }

  #isState(state: number, mib: number, blockMib: number): boolean {
    if (state === BlockState.Full) return this.#isInside(mib, blockMib);
    if (state !== BlockState.Partial) return state <= 3 || state === BlockState.OldUnmapped;
    return this.#disk.locator !== null && this.#isInside(mib, blockMib);
  }

  #isInside(mib: number, length: number): boolean {
    return mib >= 1 && mib + length <= this.#fileMib && mib < 2 ** 32;
  }

  #fault(entry: number, low: number, mib: number): never {
    throw vhdxFault(this.#file.path, {
      field: `bat[${entry}]`,
      offsetBytes: this.#offsetBytes + 8 * entry,
      value: `state ${low & 7} at MiB ${mib}`,
      problem: "is no block of this file",
    });
  }
}

/** The log changes metadata. A log that changes data of the disk is not known from any program. */
function refuseLoggedData(
  file: ReplayedFile,
  { states, places, blockBytes }: Pick<VhdxImage, "states" | "places" | "blockBytes">,
): void {
  if (file.pages.size === 0) return;
  const changed = new Set(
    [...file.pages.keys()].map((page) => Math.floor(page * PAGE_BYTES / MIB)),
  );
  for (let block = 0; block < states.length; block++) {
    if (states[block] < BlockState.Full) continue;
    for (let i = 0; i < blockBytes / MIB; i++) {
      if (!changed.has(places[block] + i)) continue;
      throw vhdxFault(file.path, {
        field: "log",
        offsetBytes: (places[block] + i) * MIB,
        value: `a change in block ${block}`,
        problem: "is not metadata; open the image once with Hyper-V or QEMU",
      });
    }
  }
}

/** Sectors of 512 bytes of the disk. */
export function sectorsOf({ sizeBytes }: VhdxImage): number {
  return sizeBytes / SECTOR_BYTES;
}
