import { encodeName } from "../../ffi/names.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { syncFile } from "../files/new_file.ts";
import { type OnStorage, osStorage } from "../files/storage.ts";
import { backingFacts, type BackingImage, type StoredBacking, storedBacking } from "./backing.ts";
import { encodeExtensions, type Extension, ExtensionType } from "./format/extensions.ts";
import { Autoclear, HeaderField } from "./format/header.ts";
import { MAX_BACKING_NAME_BYTES, SECTOR_BYTES } from "./format/units.ts";
import { openQcow2, type Qcow2Image } from "./image/image.ts";

/**
 * Changes which image is below another, whatever they hold. The old name is valid until the header's
 * first sector is written, which leads to the new one. The caller makes sure that the other image does
 * not have this one below it.
 *
 * @throws {SystemError} EOPNOTSUPP for a type that cannot be below, a raw data file, or a header without
 * room; EINVAL for an image that would be below itself; EBUSY when a tapdisk uses the image.
 */
export function setBackingFile(
  path: string,
  { storage = osStorage, parent }: OnStorage & { readonly parent: BackingImage },
): void {
  const stored = storedBacking(storage, { path, doing: "rebase" }, parent);
  backingFacts(storage, parent);
  const image = openQcow2(path, { storage, readOnly: false });
  try {
    image.file.refuseReaders();
    // From now on a flush syncs the image only.
    syncFile(storage, stored.path);
    writeFront(image, stored);
  } finally {
    image.close();
  }
}

/**
 * Refuses an image with snapshots, which show what is below it too.
 *
 * @throws {SystemError} EOPNOTSUPP.
 */
export function refuseSnapshots(path: string, { storage = osStorage }: OnStorage = {}): void {
  const image = openQcow2(path, { storage });
  image.close();
  if (image.header.nbSnapshots === 0) return;
  const what = `Cannot rebase ${path} (its snapshots would read differently)`;
  throw new SystemError(Errno.EOPNOTSUPP, what, { hint: "use -u if the two images read alike" });
}

/** A new first cluster. */
interface Front {
  /** From byte 0 on: the new first sector, and what follows it up to the end of what changes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The first sector that leaves out what the following ones have; null when those stay. */
  readonly interim: Uint8Array<ArrayBuffer> | null;
}

function writeFront(image: Qcow2Image, stored: StoredBacking): void {
  const { file, path, dataFile, geometry: { clusterBytes } } = image;
  const refuse = (why: string): never => {
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot rebase ${path} (${why})`);
  };
  if (dataFile?.raw === true) refuse("a raw data file excludes a backing file");
  const name = encodeName(stored.name);
  if (name.length > MAX_BACKING_NAME_BYTES) refuse("the name of the other image is too long");
  const now = new Uint8Array(clusterBytes);
  file.readAt(now, 0);
  const front = [true, false]
    .map((withNames) => planFront(image, { now, name, format: stored.format, withNames }))
    .find((planned) => planned !== null);
  const { bytes, interim } = front ?? refuse("its header has no room for the name");
  if (interim !== null) {
    file.writeAt(interim, 0);
    file.sync();
  }
  if (bytes.length > SECTOR_BYTES) {
    file.writeAt(bytes.subarray(SECTOR_BYTES), SECTOR_BYTES);
    file.sync();
  }
  file.writeAt(bytes.subarray(0, SECTOR_BYTES), 0);
  file.sync();
}

/** What the extensions are, with another format of what is below. */
function extensionsWith(
  extensions: readonly Extension[],
  { format, withNames }: { format: Extension | null; withNames: boolean },
): Extension[] {
  const { BackingFormat, FeatureNames } = ExtensionType;
  const kept = extensions.filter(({ type }) => type !== BackingFormat && type !== FeatureNames);
  const names = extensions.filter(({ type }) => type === FeatureNames && withNames);
  // The names of features are for messages only. They come last, and may be left out.
  return [...(format === null ? [] : [format]), ...kept, ...names];
}

/**
 * Plans a first cluster. Nothing is written over the old name and the old extensions while the first
 * sector leads to them.
 *
 * @returns Null when there is no room.
 */
function planFront(
  { header, extensions, geometry: { clusterBytes } }: Qcow2Image,
  { now, name, format, withNames }: {
    now: Uint8Array<ArrayBuffer>;
    name: Uint8Array<ArrayBuffer>;
    format: string;
    withNames: boolean;
  },
): Front | null {
  const { headerLength, backingFileOffset, backingFileSize } = header;
  const data = new TextEncoder().encode(format);
  const added = { type: ExtensionType.BackingFormat, data };
  const encoded = encodeExtensions(extensionsWith(extensions, { format: added, withNames }));
  const end = headerLength + encoded.length;
  const old = {
    start: Number(backingFileOffset),
    end: Number(backingFileOffset) + backingFileSize,
  };
  const isWhole = end + name.length <= Math.min(SECTOR_BYTES, clusterBytes);
  const place = isWhole ? end : placeForName(end, name.length, {
    oldName: old,
    oldExtensions: headerLength + encodeExtensions(extensions).length,
  });
  const after = now.slice();
  after.set(encoded, headerLength);
  after.set(name, place);
  setNamePlace(after, place, name.length);
  clearUnknown(after, header.version);
  if (isWhole) return { bytes: after.slice(0, SECTOR_BYTES), interim: null };
  if (place + name.length > clusterBytes) return null;
  const length = Math.ceil((place + name.length) / SECTOR_BYTES) * SECTOR_BYTES;
  const bytes = after.slice(0, length);
  let isSame = true;
  for (let at = SECTOR_BYTES; at < end; at++) isSame &&= after[at] === now[at];
  if (isSame) return { bytes, interim: null };
  // What follows the first sector is exchanged while that does without it.
  const [before] = extensions.filter(({ type }) => type === ExtensionType.BackingFormat);
  const few = extensionsWith(extensions, { format: before ?? null, withNames: false });
  const fewBytes = encodeExtensions(few);
  if (headerLength + fewBytes.length > SECTOR_BYTES) return null;
  const isInTheWay = old.start < Math.max(end, headerLength + fewBytes.length);
  if (old.start > 0 && isInTheWay && old.end > headerLength + fewBytes.length) return null;
  const interim = now.slice(0, SECTOR_BYTES);
  interim.set(fewBytes, headerLength);
  return { bytes, interim };
}

/** A place behind the first sector, and what that leads to now and later. */
function placeForName(
  end: number,
  length: number,
  { oldName, oldExtensions }: {
    oldName: { start: number; end: number };
    oldExtensions: number;
  },
): number {
  const place = Math.max(end, oldExtensions, SECTOR_BYTES);
  const isFree = place + length <= oldName.start || oldName.end <= place;
  return isFree ? place : oldName.end;
}

function setNamePlace(front: Uint8Array<ArrayBuffer>, place: number, length: number): void {
  const view = new DataView(front.buffer);
  view.setBigUint64(HeaderField.BackingFileOffset, BigInt(place), false);
  view.setUint32(HeaderField.BackingFileSize, length, false);
}

/** Features that are unknown are not kept true. */
function clearUnknown(front: Uint8Array<ArrayBuffer>, version: number): void {
  if (version < 3) return;
  const view = new DataView(front.buffer);
  const known = BigInt(Autoclear.Bitmaps | Autoclear.RawDataFile);
  const kept = view.getBigUint64(HeaderField.AutoclearFeatures, false) & known;
  view.setBigUint64(HeaderField.AutoclearFeatures, kept, false);
}
