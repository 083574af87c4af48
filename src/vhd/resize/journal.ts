/**
 * The undo journal of changes that move an image's metadata. It is a file or block device that
 * holds the image's old content until the change is complete. Its layout is the reference's, so
 * that each program can revert the other's journal.
 *
 * The order of writes: the journal, header last, is durable before the image is changed. The image,
 * footers last, is durable before the journal is removed. During the change the footers mark the
 * image as disabled.
 *
 * @module
 */

import { Errno, SystemError } from "../../../ffi/errno.ts";
import { batBytes } from "../format/bat.ts";
import { BATMAP_HEADER_SIZE } from "../format/batmap.ts";
import { encodeFooter, HD_FOOTER_SIZE, VHD_POISON_COOKIE } from "../format/footer.ts";
import { DD_HEADER_SIZE } from "../format/header.ts";
import type { VhdImage } from "../image/image.ts";
import {
  type ByteRange,
  encodeJournalEntry,
  encodeJournalHeader,
  JOURNAL_ENTRY_TYPE,
  JOURNAL_HEADER_SIZE,
  type JournalHeader,
  restoredPart,
  VHD_JOURNAL_HEADER_COOKIE,
} from "../format/journal_format.ts";
import { discardJournal, revertJournal } from "./journal_revert.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "../format/locator.ts";
import { removeOwn, type StorageFile } from "../../files/storage.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

const TYPE = JOURNAL_ENTRY_TYPE;
/** The largest data of one entry: a block's. */
const LARGEST_DATA_BYTES = 2 * 1024 * 1024;

interface Recorded extends ByteRange {
  readonly type: number;
}

/**
 * Writes a journal of an image's current content and makes it durable.
 *
 * @param options.overwritten The ranges of the file, besides the metadata, that will be
 * overwritten; whole sectors.
 * @throws {SystemError} EEXIST when the journal is an existing file; errors of the file system. The
 * image is unchanged then, and an incomplete journal file is removed.
 */
function writeJournal(
  path: string,
  image: VhdImage,
  { overwritten }: { overwritten: readonly ByteRange[] },
): void {
  const { storage } = image;
  const isDevice = storage.exists(path) && storage.status(path).kind === "block";
  const file = storage.open(path, isDevice ? "write" : "create-new");
  try {
    record(file, image, overwritten);
  } catch (error) {
    if (!isDevice) removeOwn(storage, path, file.identity);
    file.close();
    throw error;
  }
  file.close();
}

function record(file: StorageFile, image: VhdImage, overwritten: readonly ByteRange[]): void {
  // A device may hold an earlier journal, which must not be taken for this change's.
  file.writeAt(new Uint8Array(JOURNAL_HEADER_SIZE), 0);
  file.sync();
  const metadata = metadataOf(image);
  const covered = metadata.map((range) => restoredPart(range, image.footer.currentSize));
  let end = JOURNAL_HEADER_SIZE;
  const add = ({ type, offsetBytes, lengthBytes }: Recorded): void => {
    const bytes = new Uint8Array(lengthBytes);
    image.file.readAt(bytes, offsetBytes);
    const entry = encodeJournalEntry({ type, offsetBytes }, bytes);
    file.writeAt(entry, end);
    end += entry.length;
  };
  metadata.forEach(add);
  const dataOffsetBytes = end;
  const footerOffsetBytes = footerOffsetOf(image);
  const data = dataRanges(overwritten, covered, footerOffsetBytes);
  for (const range of data) add({ ...range, type: TYPE.DATA });
  file.sync();
  const header: JournalHeader = {
    cookie: VHD_JOURNAL_HEADER_COOKIE,
    uuid: image.footer.uuid,
    footerOffsetBytes,
    dataEntries: data.length,
    metadataEntries: metadata.length,
    dataOffsetBytes,
    metadataOffsetBytes: JOURNAL_HEADER_SIZE,
    endBytes: end,
  };
  file.writeAt(encodeJournalHeader(header), 0);
  file.sync();
}

/** Offset of the footer at the end of an image's file. */
export function footerOffsetOf({ file }: VhdImage): number {
  return file.sizeBytes() - HD_FOOTER_SIZE;
}

/** All metadata of an image, in the order that the reference requires. */
function metadataOf(image: VhdImage): Recorded[] {
  const { header, footer, batmap } = image;
  const primary = {
    type: TYPE.FOOTER_P,
    offsetBytes: footerOffsetOf(image),
    lengthBytes: HD_FOOTER_SIZE,
  };
  if (header === null) return [primary];
  const ranges: Recorded[] = [
    primary,
    { type: TYPE.FOOTER_C, offsetBytes: 0, lengthBytes: HD_FOOTER_SIZE },
    { type: TYPE.HEADER, offsetBytes: Number(footer.dataOffset), lengthBytes: DD_HEADER_SIZE },
  ];
  for (const locator of header.locators) {
    const lengthBytes = locatorSpaceBytes(locator);
    // A locator without space is a new one, which the change will write.
    if (locator.code === PLAT_CODE_NONE || lengthBytes === 0) continue;
    ranges.push({ type: TYPE.LOCATOR, offsetBytes: Number(locator.dataOffset), lengthBytes });
  }
  const lengthBytes = batBytes(header.maxBatEntries);
  ranges.push({ type: TYPE.BAT, offsetBytes: image.batOffsetBytes, lengthBytes });
  if (batmap !== null) {
    const { headerOffsetBytes, offsetBytes, header: { batmapSectors } } = batmap;
    ranges.push(
      { type: TYPE.BATMAP_H, offsetBytes: headerOffsetBytes, lengthBytes: BATMAP_HEADER_SIZE },
      { type: TYPE.BATMAP_M, offsetBytes, lengthBytes: batmapSectors * VHD_SECTOR_SIZE },
    );
  }
  return ranges;
}

/** The parts of ranges that are within the image and not in the metadata, split into entries. */
function dataRanges(
  ranges: readonly ByteRange[],
  covered: readonly ByteRange[],
  endBytes: number,
): ByteRange[] {
  const sorted = covered.toSorted((a, b) => a.offsetBytes - b.offsetBytes);
  const left: ByteRange[] = [];
  const add = (from: number, to: number): void => {
    for (let at = from; at < to; at += LARGEST_DATA_BYTES) {
      left.push({ offsetBytes: at, lengthBytes: Math.min(LARGEST_DATA_BYTES, to - at) });
    }
  };
  for (const { offsetBytes, lengthBytes } of ranges) {
    const end = Math.min(offsetBytes + lengthBytes, endBytes);
    let at = offsetBytes;
    for (const range of sorted) {
      add(at, Math.min(end, range.offsetBytes));
      at = Math.max(at, Math.min(end, range.offsetBytes + range.lengthBytes));
    }
    add(at, end);
  }
  return left;
}

/**
 * Writes both footers with the cookie of a disabled image, so that no program opens it. The footer
 * at the end comes first, because it is the one that programs read.
 */
export function disableImage(image: VhdImage): void {
  const bytes = encodeFooter({ ...image.footer, cookie: VHD_POISON_COOKIE });
  image.file.writeAt(bytes, footerOffsetOf(image));
  image.file.sync();
  if (image.type === "fixed") return;
  image.file.writeAt(bytes, 0);
  image.file.sync();
}

/** The journal of a change. */
export interface JournalOptions {
  /** A file that does not exist yet, or a block device. */
  readonly journal: string;
}

/** A change failed and could not be reverted. The journal still exists. */
export class RevertError extends SystemError {
  constructor(path: string, journal: string, readonly failure: SystemError) {
    super(
      failure.errno,
      `Cannot undo what was begun on ${path}; revert it with ${journal} once this is mended`,
    );
  }
}

/**
 * Refuses an image that has no footer at its end.
 *
 * @throws {SystemError} EINVAL.
 */
export function requireGoodEnd({ path, footerSource }: VhdImage): void {
  if (footerSource === "primary") return;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot change ${path}: it has no good footer at its end, repair it first`,
  );
}

/**
 * Makes a change under a journal. A failed change is reverted; a complete one ends the journal.
 *
 * @param options.overwritten The ranges of the file, besides the metadata, that the change
 * overwrites.
 * @throws {SystemError} EINVAL when the image has no footer at its end; errors of
 * {@linkcode writeJournal} and of the change; {@linkcode RevertError}.
 */
export function changeJournaled(
  image: VhdImage,
  { journal, overwritten }: JournalOptions & { overwritten: readonly ByteRange[] },
  change: () => void,
): void {
  const { path, storage } = image;
  requireGoodEnd(image);
  image.file.refuseReaders();
  writeJournal(journal, image, { overwritten });
  try {
    change();
  } catch (error) {
    try {
      revertJournal(path, { storage, journal, lockedBy: image.file.identity });
    } catch (failure) {
      if (!(failure instanceof SystemError)) throw failure;
      throw new RevertError(path, journal, failure);
    }
    throw error;
  }
  discardJournal(journal, { storage });
}
