/**
 * Changes to an image for the storage manager: another parent, no data, another place for the
 * footer. The image opens after an interruption at any moment.
 *
 * @module
 */

import { assert } from "../../ffi/assert.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { batBytes, DD_BLK_UNUSED } from "./format/bat.ts";
import { BATMAP_HEADER_SIZE, batmapBytes, mustHaveBatmap } from "./format/batmap.ts";
import type { ParentToWrite } from "./create.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "./format/footer.ts";
import { DD_HEADER_SIZE, type DynamicHeader } from "./format/header.ts";
import { requireFitsBelow } from "./image/chain.ts";
import { makeFrontRoom } from "./front_room.ts";
import { rewriteHeader } from "./image/header_writer.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { readLocatorName } from "./image/locator_reader.ts";
import { findParent } from "./image/parent.ts";
import { changeJournaled } from "./resize/journal.ts";
import { endOfDataSector, endOfHeaders, isBatmapPlaceFree } from "./format/layout.ts";
import {
  locatorSpaceBytes,
  NO_LOCATOR,
  type ParentLocator,
  PLAT_CODE_NONE,
} from "./format/locator.ts";
import { canonicalPath } from "../files/paths.ts";
import { carryOut, readLocators } from "./resize/resize.ts";
import { planResize } from "./resize/resize_plan.ts";
import { parentToWrite } from "./snapshot.ts";
import { osStorage, type Storage } from "../files/storage.ts";
import { paddedBytes, VHD_SECTOR_SIZE } from "./format/units.ts";
import { emptyBatmap, writeBatmap } from "./image/batmap_writer.ts";
import { writeBat, writeFooters } from "./write.ts";

/** The new parent. */
export interface ReparentOptions {
  readonly storage?: Storage;
  readonly parent: string;
  readonly rawParent?: boolean;
  /**
   * The journal for the old metadata. With it, longer names can get more space; see
   * `revertJournal`.
   */
  readonly journal?: string;
}

/**
 * Changes the parent of a differencing image. The image's data is unchanged. An image without
 * locators that we write gets new ones; blocks in their place move to the end.
 *
 * Without a journal this also works while a tapdisk serves the image. XenServer's storage manager
 * merges an image into its parent below a running disk, relinks the disk's image, and then pauses
 * and resumes the disk, which uses the old parent until then. Only the header and the space of
 * locators are written, which a tapdisk never writes.
 *
 * @returns Whether a tapdisk serves the image.
 * @throws {SystemError} EINVAL for an image that is not differencing or would be its own parent;
 * ENAMETOOLONG when the parent's name needs more space than the old one has and there is no
 * journal; errors of opening the parent and of the file system.
 */
export function changeParent(path: string, options: ReparentOptions): boolean {
  const { storage = osStorage, rawParent = false, journal } = options;
  const besideTapdisk = journal === undefined;
  const image = openVhd(path, { storage, readOnly: false, besideTapdisk });
  try {
    if (image.header === null || image.type !== "differencing") {
      throw new SystemError(Errno.EINVAL, `Cannot change the parent of ${path}, which has none`);
    }
    const parentPath = canonicalPath(storage, options.parent);
    const childPath = canonicalPath(storage, path);
    if (parentPath === childPath) {
      throw new SystemError(Errno.EINVAL, `Cannot make ${path} its own parent`);
    }
    const uuid = parentUuid(storage, parentPath, rawParent);
    requireFitsBelow(storage, { parentPath, rawParent, childPath });
    const parent = parentToWrite(storage, { childPath, parentPath, parent: { uuid } });
    if (journal === undefined) changeInPlace(image, image.header, parent);
    else changeUnderJournal(image, image.header, { parent, journal });
    return image.file.isShared;
  } finally {
    image.close();
  }
}

function parentUuid(storage: Storage, path: string, raw: boolean): Uint8Array {
  const { kind } = storage.status(path);
  if (kind !== "file" && kind !== "block") {
    throw new SystemError(Errno.EINVAL, `Cannot use ${path} as a parent, as it is no file`);
  }
  if (raw) return new Uint8Array(16);
  const image = openVhd(path, { storage });
  image.close();
  return image.footer.uuid;
}

function setParent(header: DynamicHeader, { uuid, timestamp, name }: ParentToWrite): void {
  header.parentUuid = uuid;
  header.parentTimestamp = timestamp;
  header.parentName = name;
}

/** A locator of the new parent. */
interface NewLocator {
  /** The index of the locator in the header. */
  readonly index: number;
  readonly code: number;
  /** The name of the parent, encoded for the platform. */
  readonly bytes: Uint8Array;
}

/**
 * Chooses the header's locators for the new names. These are the locators of a platform that we
 * write whose space no other structure shares. Other locators of these platforms are removed from
 * the header in memory, as they would lead to the old parent. Without two suitable locators, unused
 * entries of the header, then entries of other platforms, get new locators, which have no space
 * yet: while the name of a single locator is written, nothing would lead to a parent.
 */
function chooseLocators(
  image: VhdImage,
  header: DynamicHeader,
  { locators }: ParentToWrite,
): NewLocator[] {
  const kept: NewLocator[] = [];
  header.locators = header.locators.map((locator, index) => {
    const named = locators.find(({ code }) => code === locator.code);
    if (named === undefined) return locator;
    if (!ownsItsRoom(image, index)) return NO_LOCATOR;
    kept.push({ index, code: locator.code, bytes: named.bytes });
    return locator;
  });
  if (kept.length > 1) return kept;
  for (const { index } of kept) header.locators[index] = NO_LOCATOR;
  const free = header.locators.flatMap(({ code }, i) => (code === PLAT_CODE_NONE ? [i] : []));
  const unread = header.locators.flatMap(({ code }, i) => (code === PLAT_CODE_NONE ? [] : [i]));
  const places = [...free, ...unread.reverse()];
  return locators.map(({ code, bytes }, i): NewLocator => {
    header.locators[places[i]] = { ...NO_LOCATOR, code };
    return { index: places[i], code, bytes };
  });
}

/**
 * Whether no other structure of the image overlaps the space of a locator, so that it can be
 * written.
 */
function ownsItsRoom({ footer, header, batmap, locatorFaults }: VhdImage, index: number): boolean {
  if (header === null || locatorFaults.some((fault) => fault.index === index)) return false;
  const start = Number(header.locators[index].dataOffset);
  const end = start + locatorSpaceBytes(header.locators[index]);
  const others: [number, number][] = [
    [0, HD_FOOTER_SIZE],
    [Number(footer.dataOffset), DD_HEADER_SIZE],
    [Number(header.tableOffset), batBytes(header.maxBatEntries)],
  ];
  if (batmap !== null) {
    others.push([batmap.headerOffsetBytes, BATMAP_HEADER_SIZE]);
    others.push([batmap.offsetBytes, batmap.header.batmapSectors * VHD_SECTOR_SIZE]);
  }
  header.locators.forEach((locator, i) => {
    if (locator.code === PLAT_CODE_NONE || i === index) return;
    others.push([Number(locator.dataOffset), locatorSpaceBytes(locator)]);
  });
  return others.every(([at, lengthBytes]) => at >= end || at + lengthBytes <= start);
}

/**
 * Changes the parent without a journal. The names go to the old locators' space, or to new space.
 */
function changeInPlace(image: VhdImage, header: DynamicHeader, parent: ParentToWrite): void {
  const present = header.locators;
  const chosen = chooseLocators(image, header, parent);
  const isNew = chosen.every(({ index }) => locatorSpaceBytes(header.locators[index]) === 0);
  if (isNew) return addLocators(image, header, { parent, chosen });
  for (const { index, bytes } of chosen) {
    if (bytes.length <= locatorSpaceBytes(header.locators[index])) continue;
    throw new SystemError(
      Errno.ENAMETOOLONG,
      `Cannot change the parent of ${image.path}: the new name needs more room than there is; ` +
        `give a journal, so that it can be made`,
    );
  }
  replaceNames(image, header, { parent, chosen, present });
}

interface Change {
  readonly parent: ParentToWrite;
  readonly chosen: readonly NewLocator[];
}

function writeName({ file }: VhdImage, bytes: Uint8Array, locator: ParentLocator): void {
  const room = new Uint8Array(locatorSpaceBytes(locator));
  room.set(bytes);
  file.writeAt(room, Number(locator.dataOffset));
}

/** Writes new locators to unused space. One write of the header then makes all of them valid. */
function addLocators(image: VhdImage, header: DynamicHeader, { parent, chosen }: Change): void {
  if (image.file.isShared) image.file.refuseReaders();
  let at = makeFrontRoom(
    image,
    chosen.reduce((sum, { bytes }) => sum + paddedBytes(bytes.length), 0),
  );
  for (const { index, code, bytes } of chosen) {
    const dataSpace = paddedBytes(bytes.length);
    const dataOffset = BigInt(at);
    const locator = { code, dataSpace, dataLength: bytes.length, reserved: 0, dataOffset };
    writeName(image, bytes, locator);
    header.locators[index] = locator;
    at += dataSpace;
  }
  setParent(header, parent);
  rewriteHeader(image, header);
}

/**
 * Writes the new names over the old ones, of which there are at least two. A locator is not in the
 * header while its name is being written. At every moment another locator is valid: one of the old
 * parent until the header has the new parent, one of the new parent afterwards. The one of the old
 * parent may be one whose space cannot be written to; it is removed with the old parent.
 *
 * @param change.present All locators that the header has had.
 */
function replaceNames(
  image: VhdImage,
  header: DynamicHeader,
  { parent, chosen, present }: Change & { readonly present: readonly ParentLocator[] },
): void {
  const old = header.locators;
  const renewed = [...old];
  for (const { index, bytes } of chosen) {
    renewed[index] = { ...old[index], dataLength: bytes.length, reserved: 0 };
  }
  const without = (
    locators: readonly ParentLocator[],
    left: readonly NewLocator[],
  ): ParentLocator[] =>
    locators.map((locator, i) => (left.some(({ index }) => index === i) ? NO_LOCATOR : locator));
  const putHeader = (locators: ParentLocator[]): void => {
    header.locators = locators;
    rewriteHeader(image, header);
  };
  // A locator of another program may lead nowhere. It is the first to go.
  const leads = ({ index }: NewLocator): boolean => {
    const name = readLocatorName(image.file, old[index]);
    return name !== null && findParent(image, name).found !== null;
  };
  const [first, ...others] = [...chosen.filter((each) => !leads(each)), ...chosen.filter(leads)];
  assert(others.length > 0, "While a name is written, another one leads to a parent");
  putHeader(without(present, [first]));
  writeName(image, first.bytes, old[first.index]);
  setParent(header, parent);
  putHeader(without(renewed, others));
  for (const { index, bytes } of others) writeName(image, bytes, old[index]);
  putHeader(renewed);
}

function changeUnderJournal(
  image: VhdImage,
  header: DynamicHeader,
  { parent, journal }: { parent: ParentToWrite; journal: string },
): void {
  const chosen = chooseLocators(image, header, parent);
  const spaces = header.locators.map(locatorSpaceBytes);
  for (const { index, bytes } of chosen) {
    spaces[index] = Math.max(spaces[index], paddedBytes(bytes.length));
  }
  const plan = planResize(image, { sizeBytes: image.sizeBytes, locatorSpaces: spaces });
  const names = readLocators(image);
  for (const { index, bytes } of chosen) {
    const padded = new Uint8Array(spaces[index]);
    padded.set(bytes);
    names[index] = padded;
  }
  changeJournaled(image, { journal, overwritten: plan.overwritten }, () => {
    setParent(header, parent);
    for (const { index, bytes } of chosen) {
      const locator = header.locators[index];
      const grown = spaces[index] > locatorSpaceBytes(locator);
      const dataSpace = grown ? spaces[index] : locator.dataSpace;
      header.locators[index] = { ...locator, dataSpace, dataLength: bytes.length, reserved: 0 };
    }
    carryOut(image, plan, { locators: names });
  });
}

/**
 * Discards all data of an image. It then reads as its parent or as zeros. A file is cut behind its
 * metadata.
 *
 * @throws {SystemError} ENOSYS for a fixed image; EBUSY when a tapdisk uses the image; errors of
 * the file system.
 */
export function killData(path: string, { storage = osStorage }: { storage?: Storage } = {}): void {
  const image = openVhd(path, { storage, readOnly: false });
  try {
    if (image.type === "fixed") {
      throw new SystemError(Errno.ENOSYS, `Cannot forget the data of ${path}, which is fixed`);
    }
    image.file.refuseReaders();
    // The batmap comes first: a block that it marks as full must be allocated.
    image.batmap?.bits.fill(0);
    writeBatmap(image);
    image.file.sync();
    image.bat.fill(DD_BLK_UNUSED);
    writeBat(image);
    image.file.sync();
    makeMissingBatmap(image);
    image.endOfDataSector = endOfDataSector(image);
    writeFooters(image);
    image.file.sync();
  } finally {
    image.close();
  }
}

/**
 * Makes a batmap for an empty image that must have one and had none that could be used: blocks lay
 * over it, and what they left there is no map.
 */
function makeMissingBatmap(image: VhdImage): void {
  const { footer, header, bat } = image;
  if (image.batmap !== null || header === null || !mustHaveBatmap(footer)) return;
  const fresh = emptyBatmap(header, batmapBytes(image.sizeBytes, image.blockSizeBytes));
  const metadata = { footer, header, batmap: fresh.header };
  if (!isBatmapPlaceFree(metadata, { shape: image, bat, spareLocators: true })) return;
  image.batmap = fresh;
  image.endOfHeadersBytes = endOfHeaders(metadata);
  writeBatmap(image);
}

/**
 * Writes the footer for a volume that will get the given size. The footer goes to the end of that
 * size.
 *
 * @throws {SystemError} EINVAL for a size below the image's own or not in whole sectors; errors of
 * the file system.
 */
export function setPhysicalSize(
  path: string,
  { storage = osStorage, sizeBytes }: { storage?: Storage; sizeBytes: number },
): void {
  const image = openVhd(path, { storage, readOnly: false });
  try {
    const leastBytes = image.endOfDataSector * VHD_SECTOR_SIZE + HD_FOOTER_SIZE;
    if (sizeBytes < leastBytes || sizeBytes % VHD_SECTOR_SIZE !== 0) {
      throw new SystemError(
        Errno.EINVAL,
        `Cannot end ${path} at byte ${sizeBytes}: it takes whole sectors, ${leastBytes} at least`,
      );
    }
    image.file.writeAt(encodeFooter(image.footer), sizeBytes - HD_FOOTER_SIZE);
    image.file.sync();
  } finally {
    image.close();
  }
}
