/**
 * `src/vhd/image`: open images and chains of them. Metadata is read, compared with the file and kept
 * in a `VhdImage`; parents are found, confined and identified; data is read through a chain. The parts
 * of an image that all writers share are here too: the place of a new block, the batmap, the footers.
 *
 * Everything is synchronous, one call at a time. This folder must not know the disk queue, tapdisk or
 * the commands, and it must not change what an image holds on its own: `src/vhd` and the live driver
 * decide that.
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
 * A batmap: which blocks are full. It is a hint for other programs. Reads and writes use the blocks'
 * own bitmaps; bits that contradict them are cleared when the map is written.
 */
export interface Batmap {
  header: BatmapHeader;
  /** Whether `bits` differ from those in the file. Bits may be set late, never too early. */
  dirty: boolean;
  /** One bit a block, most significant first. Blocks past its end are not in it. */
  bits: Uint8Array<ArrayBuffer>;
  /** Byte offset of the batmap's header. */
  readonly headerOffsetBytes: number;
  /** Byte offset of the bits. */
  readonly offsetBytes: number;
}

/** What a differencing image says of its parent. */
export interface ParentReference {
  /** 16 bytes, zero for a raw parent. */
  readonly uuid: Uint8Array;
  /** Whether the parent is a raw image. */
  readonly raw: boolean;
  /** The file name in the header. */
  readonly name: string;
  /** The locators in use, in their order. */
  readonly locators: readonly ParentLocator[];
}

/** An open image whose metadata was read and found to make sense. */
export interface VhdImage {
  readonly path: string;
  readonly file: StorageFile;
  readonly storage: Storage;
  /** Where its parents, and theirs, may be. */
  readonly confinement: Confinement;
  footer: Footer;
  /** Where the footer was read: `backup` when the one at the end is missing or broken. */
  readonly footerSource: FooterSource;
  /** Null in a fixed image. */
  header: DynamicHeader | null;
  /** The header's locators that are not used as they stand in the file, and why. */
  readonly locatorFaults: readonly LocatorFault[];
  readonly type: VhdType;
  /** Size of the virtual disk. */
  sizeBytes: number;
  /** 0 in a fixed image, as are the next two. */
  readonly blockSizeBytes: number;
  readonly sectorsPerBlock: number;
  readonly bitmapSectors: number;
  /** Blocks that the virtual disk has; the BAT may have room for more. */
  blocks: number;
  /**
   * Sector of each block's bitmap, 0xffffffff for none; an entry for each of `blocks`. The header may
   * declare more entries. Those belong to no block and are never read.
   */
  bat: Uint32Array;
  /** What the file has behind the BAT's last entry, up to the end of the sector. */
  batPadding: Uint32Array;
  readonly batOffsetBytes: number;
  batmap: Batmap | null;
  /**
   * What is wrong with the batmap; null when all is well. With a wrong checksum there is a batmap all
   * the same, with no bit set; one without a usable place for the map has no bits; null is one whose
   * header is not there.
   */
  readonly batmapFault: VhdFormatError | null;
  /** First byte behind the metadata at the front. */
  endOfHeadersBytes: number;
  /** First sector behind all metadata and blocks: where the next block may start. */
  endOfDataSector: number;
  hidden: boolean;
  savedState: boolean;
  /** Null in all but differencing images. */
  readonly parent: ParentReference | null;
  close(): void;
}

/** How an image is opened. */
export interface OpenOptions {
  /** Where the file is. */
  readonly storage?: Storage;
  /** True by default. */
  readonly readOnly?: boolean;
  /** Also accept images that were put out of use (cookie `v_poison`). */
  readonly ignoreDisabled?: boolean;
  /**
   * Do not stop at BAT entries that make no sense: for looking at damaged images, never
   * for writing.
   */
  readonly lenient?: boolean;
  /** Use the backup footer even if the one at the end is good. */
  readonly useBackupFooter?: boolean;
  /**
   * Where its parents may be: that of the child, for an image further down a chain. Without it, the
   * image is the top of a chain.
   */
  readonly confinement?: Confinement;
  /** The file must be this one, which was looked at before (ESTALE). */
  readonly same?: FileIdentity;
  /** For writing: the caller holds the lock of this file already, which the name must lead to. */
  readonly lockedBy?: FileIdentity;
  /** For writing: open it also while a tapdisk serves it; see `StorageFile.isShared`. */
  readonly besideTapdisk?: boolean;
}

/**
 * Opens an image and reads its metadata. A broken footer at the end of the file is replaced by the
 * backup at its start, as after a crash. Opening it for writing takes the lock that a tapdisk holds too.
 *
 * @throws {VhdFormatError} for content that is no VHD or contradicts itself or the file's size.
 * @throws {SystemError} when the file cannot be read; EBUSY when somebody else may write to it.
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
 * A tapdisk may be writing the image meanwhile: one that grows between our reading its footer and
 * its BAT contradicts itself, but not twice.
 */
function readSettledImage(file: StorageFile, storage: Storage, options: OpenOptions): VhdImage {
  try {
    return readImage(file, storage, options);
  } catch (error) {
    if (!(error instanceof VhdFormatError)) throw error;
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
  const blockBytes = (sectors + shape.bitmapSectors) * VHD_SECTOR_SIZE;
  const batEnd = batmapHeaderOffset(header);
  const buried = dropBuriedLocators(file, header, {
    headerOffsetBytes: Number(footer.dataOffset),
    // An entry that points into the BAT itself is wrong, and says nothing about the locators.
    isInBlock: (from, to) =>
      bat.some((sector) => {
        const start = sector * VHD_SECTOR_SIZE;
        return sector !== DD_BLK_UNUSED && start < to && start + blockBytes > from &&
          (start >= batEnd || start + blockBytes <= Number(header.tableOffset));
      }),
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

/** Entries of a BAT that are read at once. */
const BAT_ENTRIES_AT_ONCE = 256 * 1024;

/** Reads the first `entries` entries of the BAT: those that the blocks of the disk have. */
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

/** Reads what is behind those entries in their last sector. */
function readBatPadding(file: StorageFile, header: DynamicHeader, entries: number): Uint32Array {
  const bytes = new Uint8Array(batBytes(entries) - entries * 4);
  file.readAt(bytes, Number(header.tableOffset) + entries * 4);
  return decodeBat(bytes, bytes.length / 4);
}

interface UsableBatmap {
  readonly batmap: Batmap | null;
  readonly fault: VhdFormatError | null;
  /** The batmap's room: no block may go there, also while a map is missing and could be remade. */
  readonly reserved: BatmapHeader | null;
}

/** The batmap as far as it can be used. One that overlaps other structures does not count. */
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
  // Blocks lie there: what looks like a header is data.
  if (placed && !isPlaceFree(found)) return { batmap: null, fault: null, reserved: null };
  const inUse = Math.min(bits.length, batmapBytes(Number(footer.currentSize)));
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
