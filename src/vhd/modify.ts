/**
 * Changes to an image that only the storage manager has reason to make: another parent, no data,
 * another place for the footer. They leave an image that opens, wherever they are broken off.
 *
 * @module
 */

import { Errno, SystemError } from "../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "./format/bat.ts";
import type { ParentToWrite } from "./create.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "./format/footer.ts";
import { type DynamicHeader, encodeHeader } from "./format/header.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { changeJournaled } from "./resize/journal.ts";
import { endOfDataSector } from "./format/layout.ts";
import { locatorSpaceBytes, NO_LOCATOR, type ParentLocator } from "./format/locator.ts";
import { canonicalPath } from "../files/paths.ts";
import { carryOut, readLocators } from "./resize/resize.ts";
import { planResize } from "./resize/resize_plan.ts";
import { parentToWrite } from "./snapshot.ts";
import { osStorage, type Storage } from "../files/storage.ts";
import { paddedBytes, VHD_SECTOR_SIZE } from "./format/units.ts";
import { writeBat, writeBatmap, writeFooters } from "./write.ts";

/** What becomes the parent. */
export interface ReparentOptions {
  readonly storage?: Storage;
  readonly parent: string;
  readonly rawParent?: boolean;
  /** Where to keep what was, so that longer names can have more room; see `revertJournal`. */
  readonly journal?: string;
}

/**
 * Makes a differencing image refer to another parent. What the image holds stays as it is.
 *
 * @throws {SystemError} EINVAL when the image is not a differencing one or its own parent;
 * ENAMETOOLONG when the parent's name needs more room than the old one has and there is no journal;
 * what opening the parent and the file system say.
 */
export function changeParent(path: string, options: ReparentOptions): void {
  const { storage = osStorage, rawParent = false, journal } = options;
  const image = openVhd(path, { storage, readOnly: false });
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
    const parent = parentToWrite(storage, { childPath, parentPath, parent: { uuid } });
    if (journal === undefined) changeInPlace(image, image.header, parent);
    else changeUnderJournal(image, { parent, journal });
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

/** The new name as each locator has it, by the locator's index; null for those that stay. */
function newNames(header: DynamicHeader, parent: ParentToWrite): (Uint8Array | null)[] {
  return header.locators.map(({ code }) =>
    parent.locators.find((locator) => locator.code === code)?.bytes ?? null
  );
}

function setParent(header: DynamicHeader, { uuid, timestamp, name }: ParentToWrite): void {
  header.parentUuid = uuid;
  header.parentTimestamp = timestamp;
  header.parentName = name;
}

/**
 * Writes the names where the old ones are. A locator is not in the header while its name is being
 * written, and there is another then that is whole: that of the old parent until the header has the
 * new one, that of the new parent from then on.
 */
function changeInPlace(image: VhdImage, header: DynamicHeader, parent: ParentToWrite): void {
  const { file, path } = image;
  const names = newNames(header, parent);
  const ours = names.flatMap((name, index) => (name === null ? [] : [index]));
  for (const index of ours) {
    if ((names[index]?.length ?? 0) <= locatorSpaceBytes(header.locators[index])) continue;
    throw new SystemError(
      Errno.ENAMETOOLONG,
      `Cannot change the parent of ${path}: the new name needs more room than there is; ` +
        `give a journal, so that it can be made`,
    );
  }
  if (ours.length === 0) {
    throw new SystemError(Errno.EINVAL, `Cannot change the parent of ${path}: it has no locator`);
  }
  const old = header.locators;
  const renewed = old.map((locator, i): ParentLocator => {
    const name = names[i];
    return name === null ? locator : { ...locator, dataLength: name.length, reserved: 0 };
  });
  const without = (locators: ParentLocator[], indices: readonly number[]): ParentLocator[] =>
    locators.map((locator, i) => (indices.includes(i) ? NO_LOCATOR : locator));
  const writeHeader = (locators: ParentLocator[]): void => {
    header.locators = locators;
    file.sync();
    file.writeAt(encodeHeader(header), Number(image.footer.dataOffset));
    file.sync();
  };
  const writeName = (index: number): void => {
    const bytes = new Uint8Array(locatorSpaceBytes(old[index]));
    bytes.set(names[index] ?? bytes);
    file.writeAt(bytes, Number(old[index].dataOffset));
  };
  const [first, ...others] = ours;
  if (others.length > 0) writeHeader(without(old, [first]));
  writeName(first);
  setParent(header, parent);
  if (others.length > 0) writeHeader(without(renewed, others));
  for (const index of others) writeName(index);
  writeHeader(renewed);
}

function changeUnderJournal(
  image: VhdImage,
  { parent, journal }: { parent: ParentToWrite; journal: string },
): void {
  const { header } = image;
  if (header === null) return;
  const names = newNames(header, parent);
  const spaces = header.locators.map((locator, i) =>
    Math.max(locatorSpaceBytes(locator), paddedBytes(names[i]?.length ?? 0))
  );
  const plan = planResize(image, { sizeBytes: image.sizeBytes, locatorSpaces: spaces });
  const stored = readLocators(image);
  const bytes = names.map((name, i) => {
    if (name === null) return stored[i];
    const padded = new Uint8Array(spaces[i]);
    padded.set(name);
    return padded;
  });
  changeJournaled(image, { journal, overwritten: plan.overwritten }, () => {
    setParent(header, parent);
    header.locators = header.locators.map((locator, i) => {
      const name = names[i];
      if (name === null) return locator;
      const grown = spaces[i] > locatorSpaceBytes(locator);
      const dataSpace = grown ? spaces[i] : locator.dataSpace;
      return { ...locator, dataSpace, dataLength: name.length, reserved: 0 };
    });
    carryOut(image, plan, { locators: bytes });
  });
}

/**
 * Forgets all that an image holds; it reads as its parent or as zeros then. A file is cut behind its
 * metadata.
 *
 * @throws {SystemError} ENOSYS for a fixed image, which cannot forget; what the file system says.
 */
export function killData(path: string, { storage = osStorage }: { storage?: Storage } = {}): void {
  const image = openVhd(path, { storage, readOnly: false });
  try {
    if (image.type === "fixed") {
      throw new SystemError(Errno.ENOSYS, `Cannot forget the data of ${path}, which is fixed`);
    }
    // The batmap first: a block that it has as full must be there.
    image.batmap?.bits.fill(0);
    writeBatmap(image);
    image.file.sync();
    image.bat.fill(DD_BLK_UNUSED);
    writeBat(image);
    image.file.sync();
    image.endOfDataSector = endOfDataSector(image);
    writeFooters(image);
    image.file.sync();
  } finally {
    image.close();
  }
}

/**
 * Writes the footer to the end of a given number of bytes, for an image on a volume that is about to
 * get that size.
 *
 * @throws {SystemError} EINVAL for less than the image takes up or no whole sectors; what the file
 * system says.
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
