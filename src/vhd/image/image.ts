/**
 * `src/vhd/image`: open images and chains of images. This folder reads metadata, checks it against
 * the file and keeps it in a `VhdImage`; it locates, confines and identifies parents; it reads data
 * through a chain. It also has the parts that all writers share: the place of a new block, the
 * batmap, the footers.
 *
 * Everything is synchronous, one call at a time. This folder must not know the disk queue, tapdisk
 * or the commands, and it must not decide to change an image; `src/vhd` and the live driver do
 * that.
 *
 * This file opens an image.
 *
 * @module
 */

import { Errno, SystemError } from "../../../ffi/errno.ts";
import { batBytes, DD_BLK_UNUSED, decodeBat } from "../format/bat.ts";
import { batmapBytes, type BatmapHeader } from "../format/batmap.ts";
import { readBatmap } from "./batmap_reader.ts";
import { VhdFormatError } from "./errors.ts";
import { type Footer, HD_TYPE_DIFF, HD_TYPE_FIXED, VHD_POISON_COOKIE } from "../format/footer.ts";
import { type FooterSource, readFooter } from "./footer_reader.ts";
import { decodeParentName, type ParentLocator, PLAT_CODE_NONE } from "../format/locator.ts";
import type { DynamicHeader } from "../format/header.ts";
import { readHeader } from "./header_reader.ts";
import { dropBuriedLocators, type LocatorFault } from "./locator_reader.ts";
import {
  batmapHeaderOffset,
  bitmapSectors,
  type BlockShape,
  blocksOf,
  endOfDataSector,
  endOfHeaders,
  isBatmapPlaceFree,
  newBatmapHeader,
  sectorsPerBlock,
} from "../format/layout.ts";
import {
  type FileIdentity,
  osStorage,
  type Storage,
  type StorageFile,
} from "../../files/storage.ts";
import { type Confinement, confinementOf } from "../../files/confinement.ts";
import { validateBat } from "./validate.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";
import { isNullUuid } from "../format/uuid.ts";

/** The kinds of image. */
export type VhdType = "fixed" | "dynamic" | "differencing";

/**
 * The batmap: one bit for each block that is full. It is a hint for other programs. Reads and
 * writes use the blocks' bitmaps. Bits that contradict the bitmaps are cleared when the map is
 * written.
 */
export interface Batmap {
  header: BatmapHeader;
  /** Whether `bits` differ from the file. A bit may be set late, never too early. */
  dirty: boolean;
  /** One bit a block, most significant first. Blocks past the end have no bit. */
  bits: Uint8Array<ArrayBuffer>;
  /** Byte offset of the batmap's header. */
  readonly headerOffsetBytes: number;
  /** Byte offset of the bits. */
  readonly offsetBytes: number;
}

/** The reference of a differencing image to its parent. */
export interface ParentReference {
  /** 16 bytes, zero for a raw parent. */
  readonly uuid: Uint8Array;
  /** Whether the parent is a raw image. */
  readonly raw: boolean;
  /** The file name in the header. */
  readonly name: string;
  /** The locators in use, in header order. */
  readonly locators: readonly ParentLocator[];
}

/** An open image whose metadata was read and is valid. */
export interface VhdImage {
  readonly path: string;
  readonly file: StorageFile;
  readonly storage: Storage;
  /** The folders in which its parents and their parents may be. */
  readonly confinement: Confinement;
  footer: Footer;
  /** The source of the footer: `backup` when the footer at the end is missing or damaged. */
  readonly footerSource: FooterSource;
  /** Null in a fixed image. */
  header: DynamicHeader | null;
  /** The header's locators that are not used as they are in the file, with their faults. */
  readonly locatorFaults: readonly LocatorFault[];
  readonly type: VhdType;
  /** Size of the virtual disk. */
  sizeBytes: number;
  /** 0 in a fixed image, like the next two fields. */
  readonly blockSizeBytes: number;
  readonly sectorsPerBlock: number;
  readonly bitmapSectors: number;
  /** The number of the virtual disk's blocks. The BAT may have more entries. */
  blocks: number;
  /**
   * The sector of each block's bitmap, 0xffffffff for a block that is not allocated; one entry for
   * each of `blocks`. Further entries that the header declares belong to no block and are never
   * read.
   */
  bat: Uint32Array;
  /** The content of the file behind the BAT's last entry, up to the end of the sector. */
  batPadding: Uint32Array;
  readonly batOffsetBytes: number;
  batmap: Batmap | null;
  /**
   * The fault of the batmap; null without a fault. With a wrong checksum, `batmap` is set and no
   * bit is set. Without a valid place for the map, `batmap` has no bits. Without a header, `batmap`
   * is null.
   */
  readonly batmapFault: VhdFormatError | null;
  /** The first byte behind the metadata at the front. */
  endOfHeadersBytes: number;
  /** The first sector behind all metadata and blocks: the earliest start of the next block. */
  endOfDataSector: number;
  hidden: boolean;
  savedState: boolean;
  /** Null in fixed and dynamic images. */
  readonly parent: ParentReference | null;
  close(): void;
}

/** How an image is opened. */
export interface OpenOptions {
  /** The storage of the file; the system's by default. */
  readonly storage?: Storage;
  /** True by default. */
  readonly readOnly?: boolean;
  /** Also accept disabled images (cookie `v_poison`). */
  readonly ignoreDisabled?: boolean;
  /** Accept invalid BAT entries. Only to inspect damaged images, never for writing. */
  readonly lenient?: boolean;
  /** Use the backup footer even if the one at the end is valid. */
  readonly useBackupFooter?: boolean;
  /**
   * The folders in which its parents may be. For an image further down a chain, this is the child's
   * confinement. Without it, the image is the top of a chain.
   */
  readonly confinement?: Confinement;
  /** The file must be this one, which was located before (ESTALE). */
  readonly same?: FileIdentity;
  /** For writing: the caller already holds the lock of this file, and the name must lead to it. */
  readonly lockedBy?: FileIdentity;
  /** For writing: open the image also while a tapdisk serves it; see `StorageFile.isShared`. */
  readonly besideTapdisk?: boolean;
}

/**
 * Opens an image and reads its metadata. When the footer at the end of the file is damaged, as
 * after a crash, the backup at its start is used. Opening for writing takes the lock that a tapdisk
 * also takes.
 *
 * @throws {VhdFormatError} for a file that is no VHD or contradicts itself or its size.
 * @throws {SystemError} when the file cannot be read; EBUSY when another process may write to it.
 */
export function openVhd(path: string, options: OpenOptions = {}): VhdImage {
  const { storage = osStorage, readOnly = true } = options;
  const { same, lockedBy, besideTapdisk } = options;
  const mode = readOnly ? "read" : "write";
  const file = storage.open(path, mode, { same, lockedBy, besideTapdisk });
  try {
    return readSettledImage(file, storage, options);
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * Reads an image that a tapdisk may be writing. When the image grows between the reads of its
 * footer and its BAT, the two contradict each other, so a failed read is repeated once.
 */
function readSettledImage(file: StorageFile, storage: Storage, options: OpenOptions): VhdImage {
  const sizeBytes = file.sizeBytes();
  try {
    return readImage(file, storage, options);
  } catch (error) {
    if (!(error instanceof VhdFormatError)) throw error;
    // A table may have millions of entries: one that is wrong in itself is not read twice.
    const isOfTable = error.fault.field.startsWith("bat[");
    if (isOfTable && file.sizeBytes() === sizeBytes) throw error;
    return readImage(file, storage, options);
  }
}

function readImage(file: StorageFile, storage: Storage, options: OpenOptions): VhdImage {
  const { path } = file;
  const { footer, source } = readFooter(file, options);
  if (footer.cookie === VHD_POISON_COOKIE && options.ignoreDisabled !== true) {
    throw new SystemError(Errno.EINVAL, `Cannot open ${path}: the image was put out of use`);
  }
  const common = {
    path,
    file,
    storage,
    confinement: options.confinement ?? confinementOf(storage, path),
    footer,
    footerSource: source,
    sizeBytes: Number(footer.currentSize),
    hidden: footer.hidden !== 0,
    savedState: footer.savedState !== 0,
    close: (): void => file.close(),
  };
  if (footer.diskType === HD_TYPE_FIXED) {
    const endOfDataSector = Number(footer.currentSize) / VHD_SECTOR_SIZE;
    const none = new Uint32Array(0);
    return { ...common, ...FIXED_PARTS, endOfDataSector, bat: none, batPadding: none };
  }
  const { header, locatorFaults } = readHeader(file, footer);
  const sectors = sectorsPerBlock(header.blockSize);
  const shape = { sectorsPerBlock: sectors, bitmapSectors: bitmapSectors(sectors) };
  const blocks = blocksOf(Number(footer.currentSize), header.blockSize);
  const bat = readBat(file, header, blocks);
  const buried = dropBuriedLocators(file, header, {
    headerOffsetBytes: Number(footer.dataOffset),
    isInBlock: (from, to) => isInBlock(bat, { from, to, shape, header }),
  });
  const { batmap, fault, reserved } = readBatmapOf({ file, footer, header, shape, bat });
  const layout = {
    ...shape,
    endOfHeadersBytes: endOfHeaders({ footer, header, batmap: reserved }),
  };
  const image: VhdImage = {
    ...common,
    header,
    locatorFaults: [...locatorFaults, ...buried],
    type: footer.diskType === HD_TYPE_DIFF ? "differencing" : "dynamic",
    blockSizeBytes: header.blockSize,
    ...layout,
    blocks,
    bat,
    batPadding: readBatPadding(file, header, blocks),
    batOffsetBytes: Number(header.tableOffset),
    batmap,
    batmapFault: fault,
    endOfDataSector: endOfDataSector({ ...layout, bat }),
    parent: footer.diskType === HD_TYPE_DIFF ? parentOf(header) : null,
  };
  if (options.lenient !== true) validateBat(image);
  return image;
}

/**
 * Whether a block overlaps a range of bytes. The table may have millions of entries, all of them
 * hostile. An entry that points into the table itself is wrong, and proves nothing about the range.
 */
function isInBlock(
  bat: Uint32Array,
  { from, to, shape, header }: {
    from: number;
    to: number;
    shape: BlockShape;
    header: DynamicHeader;
  },
): boolean {
  const blockSectors = shape.sectorsPerBlock + shape.bitmapSectors;
  const first = Math.floor(from / VHD_SECTOR_SIZE) - blockSectors;
  const end = Math.ceil(to / VHD_SECTOR_SIZE);
  const batStart = Number(header.tableOffset) / VHD_SECTOR_SIZE;
  const batEnd = batmapHeaderOffset(header) / VHD_SECTOR_SIZE;
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector <= first || sector >= end || sector === DD_BLK_UNUSED) continue;
    if (sector >= batEnd || sector + blockSectors <= batStart) return true;
  }
  return false;
}

const FIXED_PARTS = {
  header: null,
  locatorFaults: [],
  type: "fixed",
  blockSizeBytes: 0,
  sectorsPerBlock: 0,
  bitmapSectors: 0,
  blocks: 0,
  batOffsetBytes: 0,
  batmap: null,
  batmapFault: null,
  endOfHeadersBytes: 0,
  parent: null,
} as const;

/** The number of BAT entries in one read. */
const BAT_ENTRIES_AT_ONCE = 256 * 1024;

/** Reads the first `entries` entries of the BAT: one for each block of the disk. */
export function readBat(file: StorageFile, header: DynamicHeader, entries: number): Uint32Array {
  const bat = new Uint32Array(entries);
  const buffer = new Uint8Array(4 * Math.min(entries, BAT_ENTRIES_AT_ONCE));
  for (let first = 0; first < entries; first += BAT_ENTRIES_AT_ONCE) {
    const count = Math.min(entries - first, BAT_ENTRIES_AT_ONCE);
    const bytes = buffer.subarray(0, count * 4);
    if (file.readAt(bytes, Number(header.tableOffset) + first * 4) < bytes.length) {
      throw new VhdFormatError(file.path, {
        field: "header.maxBatEntries",
        offsetBytes: Number(header.tableOffset),
        value: String(header.maxBatEntries),
        problem: "reaches past the end of the file",
      });
    }
    bat.set(decodeBat(bytes, count), first);
  }
  return bat;
}

/** Reads the rest of the last sector, behind those entries. */
function readBatPadding(file: StorageFile, header: DynamicHeader, entries: number): Uint32Array {
  const bytes = new Uint8Array(batBytes(entries) - entries * 4);
  file.readAt(bytes, Number(header.tableOffset) + entries * 4);
  return decodeBat(bytes, bytes.length / 4);
}

interface UsableBatmap {
  readonly batmap: Batmap | null;
  readonly fault: VhdFormatError | null;
  /**
   * The space of the batmap, where no block may be allocated. It is set also while a map is missing
   * and could be rebuilt.
   */
  readonly reserved: BatmapHeader | null;
}

/** The batmap as far as it can be used. A batmap that overlaps other structures is ignored. */
function readBatmapOf(
  { file, footer, header, shape, bat }: {
    file: StorageFile;
    footer: Footer;
    header: DynamicHeader;
    shape: BlockShape;
    bat: Uint32Array;
  },
): UsableBatmap {
  const { header: found, bits, fault } = readBatmap(file, footer, header);
  const isPlaceFree = (place: BatmapHeader): boolean =>
    isBatmapPlaceFree({ footer, header, batmap: place }, {
      shape,
      bat,
      spareLocators: place !== found,
    });
  const fresh = newBatmapHeader(header);
  if (found === null) {
    const missing = fault !== null && isPlaceFree(fresh);
    return { batmap: null, fault: missing ? fault : null, reserved: missing ? fresh : null };
  }
  const placed = bits.length > 0;
  // Blocks overlap this place, so the apparent header is data.
  if (placed && !isPlaceFree(found)) return { batmap: null, fault: null, reserved: null };
  const inUse = Math.min(bits.length, batmapBytes(Number(footer.currentSize), header.blockSize));
  const batmap = {
    header: found,
    dirty: placed && fault !== null,
    bits: bits.subarray(0, inUse),
    headerOffsetBytes: batmapHeaderOffset(header),
    offsetBytes: Number(found.batmapOffset),
  };
  return { batmap, fault, reserved: placed ? found : isPlaceFree(fresh) ? fresh : null };
}

function parentOf(header: DynamicHeader): ParentReference {
  return {
    uuid: header.parentUuid,
    raw: isNullUuid(header.parentUuid),
    name: decodeParentName(header.parentName),
    locators: header.locators.filter((locator) => locator.code !== PLAT_CODE_NONE),
  };
}
