import { Errno, SystemError } from "../../../ffi/errno.ts";
import {
  decodeFooter,
  encodeFooter,
  type Footer,
  footerFault,
  HD_COOKIE,
  HD_FOOTER_SIZE,
  HD_TYPE_FIXED,
  VHD_POISON_COOKIE,
} from "../format/footer.ts";
import { placeFooter } from "../image/allocation.ts";
import { VhdFormatError } from "../image/errors.ts";
import { readFooterBytes } from "../image/footer_reader.ts";
import { openVhd, type VhdImage } from "../image/image.ts";
import {
  decodeJournalEntry,
  decodeJournalHeader,
  isJournalEntry,
  JOURNAL_ENTRY_SIZE,
  JOURNAL_ENTRY_TYPE,
  JOURNAL_HEADER_SIZE,
  journalChecksum,
  type JournalEntry,
  type JournalHeader,
  restoredPart,
  VHD_JOURNAL_HEADER_COOKIE,
} from "../format/journal_format.ts";
import {
  type FileIdentity,
  osStorage,
  type Storage,
  type StorageFile,
} from "../../files/storage.ts";
import { VHD_MAX_SIZE } from "../format/units.ts";
import { equalUuids } from "../format/uuid.ts";

const TYPE = JOURNAL_ENTRY_TYPE;

/**
 * Ends a journal: marks it as ended, and removes it if it is a file. Both are durable on return,
 * because a journal that came back after a power cut would revert later writes to the image.
 */
export function discardJournal(path: string, { storage }: { storage: Storage }): void {
  const isDevice = storage.status(path).kind === "block";
  try {
    markEnded(storage, path);
  } catch (error) {
    // A full file system may refuse even this write. The removal alone is enough then.
    if (isDevice || !(error instanceof SystemError)) throw error;
  }
  if (!isDevice) storage.remove(path);
}

function markEnded(storage: Storage, path: string): void {
  const file = storage.open(path, "write");
  try {
    file.writeAt(new Uint8Array(JOURNAL_HEADER_SIZE), 0);
    file.sync();
  } finally {
    file.close();
  }
}

/** Options of a revert. */
export interface RevertOptions {
  readonly storage?: Storage;
  readonly journal: string;
  /**
   * The caller already holds the lock of this file, which is the image. The revert is
   * unconditional.
   */
  readonly lockedBy?: FileIdentity;
}

/**
 * Restores an image to its state before an interrupted change, and ends the journal. An image that
 * was not changed yet, or whose change was complete, stays as it is. An interrupted revert can be
 * repeated.
 *
 * @throws {SystemError} EINVAL when the journal is damaged or belongs to another image, in which
 * case nothing is changed; EBUSY when another process may write to the image; errors of the file
 * system.
 */
export function revertJournal(path: string, options: RevertOptions): void {
  const { storage = osStorage, journal, lockedBy } = options;
  const journalFile = storage.open(journal, "read");
  try {
    const imageFile = storage.open(path, "write", { lockedBy });
    try {
      if (lockedBy === undefined) imageFile.refuseReaders();
      revertFrom(journalFile, imageFile, { force: lockedBy !== undefined });
      imageFile.sync();
      if (lockedBy === undefined) completeEnd(imageFile, storage);
    } finally {
      imageFile.close();
    }
  } finally {
    journalFile.close();
  }
  discardJournal(journal, { storage });
}

function revertFrom(
  journal: StorageFile,
  image: StorageFile,
  { force }: { force: boolean },
): void {
  const bytes = new Uint8Array(JOURNAL_HEADER_SIZE);
  const got = journal.readAt(bytes, 0);
  if (got === 0 || (got === JOURNAL_HEADER_SIZE && bytes.every((byte) => byte === 0))) return;
  const header = decodeJournalHeader(bytes);
  if (got < JOURNAL_HEADER_SIZE || header.cookie !== VHD_JOURNAL_HEADER_COOKIE) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot revert ${image.path}: ${journal.path} is no journal`,
    );
  }
  if (header.metadataEntries === 0) return enableImage(image, header);
  const entries = readEntries(journal, header);
  if (entries === null) return;
  const footer = decodeFooter(readBytes(journal, entries[0].bytesAt, HD_FOOTER_SIZE));
  const isFixed = footer.diskType === HD_TYPE_FIXED;
  verifyOwner(journal, image, { header, isFixed });
  if (!force && isInUse(image, header, isFixed)) {
    return restoreEnd(journal, image, { header, entries });
  }
  restore(journal, image, { header, entries, footer });
}

/**
 * Refuses a journal of another image, if a valid footer shows that it is another. A fixed image has
 * data at offset 0, so its backup footer is not read.
 */
function verifyOwner(
  journal: StorageFile,
  image: StorageFile,
  { header, isFixed }: { header: JournalHeader; isFixed: boolean },
): void {
  const ends = [header.footerOffsetBytes, image.sizeBytes() - HD_FOOTER_SIZE];
  const found = (isFixed ? ends : [0, ...ends])
    .map((offsetBytes) => readFooterBytes(image, offsetBytes))
    .filter((bytes) => bytes !== null && footerFault(bytes) === null);
  if (found.length === 0) return;
  if (found.some((bytes) => bytes !== null && equalUuids(decodeFooter(bytes).uuid, header.uuid))) {
    return;
  }
  throw new SystemError(
    Errno.EINVAL,
    `Cannot revert ${image.path}: ${journal.path} is the journal of another image`,
  );
}

/**
 * Whether the change of a journal has not begun or is complete. After a complete change, data may
 * have been written to the image, which a revert would undo.
 *
 * A change writes the cookie of a disabled image to the footer at the end, then to the backup. When
 * all else is durable it writes the new backup, then the footer at the end. So a backup with the
 * normal cookie says that nothing is half done, unless the footer at the end is disabled: then nobody
 * could open the image. Without any footer at the end the image opens by the backup. A fixed image
 * has no backup.
 */
function isInUse(image: StorageFile, { uuid }: JournalHeader, isFixed: boolean): boolean {
  const end = validFooterAt(image, image.sizeBytes() - HD_FOOTER_SIZE);
  const backup = isFixed ? end : validFooterAt(image, 0);
  if (backup?.cookie !== HD_COOKIE || !equalUuids(backup.uuid, uuid)) return false;
  return end?.cookie !== VHD_POISON_COOKIE;
}

/**
 * Writes the footer at the end of an image whose revert was broken off in front of it: all else is
 * as the journal has it.
 */
function restoreEnd(
  journal: StorageFile,
  image: StorageFile,
  { header, entries }: { header: JournalHeader; entries: readonly FoundEntry[] },
): void {
  const [primary] = entries;
  const backup = entries.find(({ type }) => type === TYPE.FOOTER_C);
  if (backup === undefined || image.sizeBytes() !== header.footerOffsetBytes + HD_FOOTER_SIZE) {
    return;
  }
  if (validFooterAt(image, header.footerOffsetBytes) !== null) return;
  const old = readBytes(journal, backup.bytesAt, HD_FOOTER_SIZE);
  const now = readBytes(image, 0, HD_FOOTER_SIZE);
  if (now.some((byte, i) => byte !== old[i])) return;
  image.writeAt(readBytes(journal, primary.bytesAt, HD_FOOTER_SIZE), header.footerOffsetBytes);
}

/** Writes the footer at the end of an image that opens by its backup: its change was complete. */
function completeEnd({ path, identity }: StorageFile, storage: Storage): void {
  const image = openIfPossible(path, { storage, lockedBy: identity });
  if (image === null) return;
  try {
    if (image.footerSource !== "backup") return;
    placeFooter(image);
    image.file.sync();
  } finally {
    image.close();
  }
}

/** Opens an image; null if something else is wrong with it. */
function openIfPossible(
  path: string,
  { storage, lockedBy }: { storage: Storage; lockedBy: FileIdentity },
): VhdImage | null {
  try {
    return openVhd(path, { storage, readOnly: false, lockedBy });
  } catch (error) {
    if (error instanceof VhdFormatError) return null;
    throw error;
  }
}

function validFooterAt(image: StorageFile, offsetBytes: number): Footer | null {
  const bytes = readFooterBytes(image, offsetBytes);
  return bytes === null || footerFault(bytes) !== null ? null : decodeFooter(bytes);
}

/**
 * Restores the cookie in the footers. The change was complete otherwise: the reference ends its
 * journal before it writes the footers.
 */
function enableImage(image: StorageFile, { uuid }: JournalHeader): void {
  for (const offsetBytes of [0, image.sizeBytes() - HD_FOOTER_SIZE]) {
    const bytes = readFooterBytes(image, offsetBytes);
    if (bytes === null || footerFault(bytes) !== null) continue;
    const footer = decodeFooter(bytes);
    if (footer.cookie !== VHD_POISON_COOKIE || !equalUuids(footer.uuid, uuid)) continue;
    image.writeAt(encodeFooter({ ...footer, cookie: HD_COOKIE }), offsetBytes);
    image.sync();
  }
}

interface FoundEntry extends JournalEntry {
  /** Offset of the entry's data in the journal. */
  readonly bytesAt: number;
}

/**
 * Reads and checks all entries, so that a damaged journal changes nothing. Returns null for an
 * incomplete journal, whose image was not changed.
 */
function readEntries(journal: StorageFile, header: JournalHeader): FoundEntry[] | null {
  const entries: FoundEntry[] = [];
  const front = new Uint8Array(JOURNAL_ENTRY_SIZE);
  const damaged = (at: number, problem: string): SystemError =>
    new SystemError(Errno.EINVAL, `Cannot revert: ${journal.path} ${problem} at byte ${at}`);
  let at = JOURNAL_HEADER_SIZE;
  for (let i = 0; i < header.metadataEntries + header.dataEntries; i++) {
    if (i === header.metadataEntries) at = header.dataOffsetBytes;
    if (journal.readAt(front, at) < JOURNAL_ENTRY_SIZE) throw damaged(at, "ends");
    const entry = decodeJournalEntry(front);
    if (!isJournalEntry(entry)) throw damaged(at, "has no entry");
    const bytesAt = at + JOURNAL_ENTRY_SIZE;
    if (bytesAt + entry.sizeBytes > journal.sizeBytes()) throw damaged(at, "ends in the entry");
    const bytes = readBytes(journal, bytesAt, entry.sizeBytes);
    if (journalChecksum(front, bytes) !== entry.checksum) {
      throw damaged(at, "has an entry with a wrong checksum");
    }
    if ((entry.type === TYPE.FOOTER_P) !== (i === 0) || !isInImage(entry, header)) {
      throw damaged(at, "has an entry out of place");
    }
    if (i === 0 && (footerFault(bytes) !== null || !hasUuid(bytes, header))) {
      throw damaged(at, "has another image's footer");
    }
    if (i === 0 && header.dataOffsetBytes === 0) {
      if (decodeFooter(bytes).diskType !== HD_TYPE_FIXED) return null;
    }
    entries.push({ ...entry, bytesAt });
    at = bytesAt + entry.sizeBytes;
  }
  return entries;
}

/** The last byte that a file of a VHD can have: its table points to at most 2 TiB. */
const MOST_FILE_BYTES = 2 * VHD_MAX_SIZE;

/** Whether the bytes of an entry have their place in the image as it was before the change. */
function isInImage({ type, offsetBytes, sizeBytes }: JournalEntry, header: JournalHeader): boolean {
  const { footerOffsetBytes } = header;
  if (footerOffsetBytes > MOST_FILE_BYTES) return false;
  if (type === TYPE.FOOTER_P || type === TYPE.FOOTER_C) {
    const place = type === TYPE.FOOTER_P ? footerOffsetBytes : 0;
    return offsetBytes === place && sizeBytes === HD_FOOTER_SIZE;
  }
  return offsetBytes + sizeBytes <= footerOffsetBytes + HD_FOOTER_SIZE;
}

function hasUuid(footer: Uint8Array, { uuid }: JournalHeader): boolean {
  return equalUuids(decodeFooter(footer).uuid, uuid);
}

function readBytes(
  file: StorageFile,
  offsetBytes: number,
  length: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  file.readAt(bytes, offsetBytes);
  return bytes;
}

function isFooter({ type }: JournalEntry): boolean {
  return type === TYPE.FOOTER_P || type === TYPE.FOOTER_C;
}

/** Writes back all entries. The footers come last, because they make the image valid. */
function restore(
  journal: StorageFile,
  image: StorageFile,
  { header, entries, footer }: {
    header: JournalHeader;
    entries: readonly FoundEntry[];
    footer: Footer;
  },
): void {
  const { currentSize } = footer;
  const put = ({ type, offsetBytes, sizeBytes, bytesAt }: FoundEntry): void => {
    const part = restoredPart({ type, offsetBytes, lengthBytes: sizeBytes }, currentSize);
    image.writeAt(readBytes(journal, bytesAt, part.lengthBytes), offsetBytes);
  };
  for (const entry of entries) if (!isFooter(entry)) put(entry);
  if (!image.isBlockDevice) image.truncate(header.footerOffsetBytes + HD_FOOTER_SIZE);
  image.sync();
  // The footer at the end comes last, because programs open the image by it.
  for (const entry of entries) if (entry.type === TYPE.FOOTER_C) put(entry);
  image.sync();
  for (const entry of entries) if (entry.type === TYPE.FOOTER_P) put(entry);
}
