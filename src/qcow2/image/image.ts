/**
 * `src/qcow2/image`: open QCOW2 images. This folder reads the metadata that an open image keeps in
 * memory, checks it against the format, and finds the files that an image names: its backing file
 * and its data file.
 *
 * Everything is synchronous. This folder must not know the disk queue, tapdisk or the commands, and
 * it must not decide to change an image; `src/qcow2` and the live driver do that.
 *
 * This file opens an image.
 *
 * @module
 */
import { decodeName } from "../../../ffi/names.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type Confinement, confinementOf } from "../../files/confinement.ts";
import {
  type FileIdentity,
  osStorage,
  type Storage,
  type StorageFile,
} from "../../files/storage.ts";
import {
  type BitmapsExtension,
  decodeBitmapsExtension,
  type Extension,
  ExtensionType,
} from "../format/extensions.ts";
import { Autoclear, type Header, Incompatible } from "../format/header.ts";
import type { Geometry } from "../format/units.ts";
import { hasFeature, readHeaderCluster } from "./header_reader.ts";
import { readTable } from "./read_table.ts";
import { readSnapshotTable, type SnapshotTable } from "./snapshot_table.ts";

/** An open image whose metadata was read and is valid. */
export interface Qcow2Image {
  readonly path: string;
  readonly file: StorageFile;
  readonly storage: Storage;
  /** The folders in which its backing files may be. */
  readonly confinement: Confinement;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly extensions: readonly Extension[];
  /** Size of the virtual disk, bytes. */
  readonly sizeBytes: number;
  /** The active L1 table as it is in the file. */
  readonly l1: DataView<ArrayBuffer>;
  /** The refcount table as it is in the file. */
  readonly refcountTable: DataView<ArrayBuffer>;
  readonly snapshotTable: SnapshotTable;
  /** The bitmaps extension; null without one, and when a program has changed the disk without it. */
  readonly bitmaps: BitmapsExtension | null;
  /** The backing file's name and its format, as they are stored; null without one. */
  readonly backing: { readonly name: string; readonly format: string | null } | null;
  /** Whether its data is in a file of its own, and that file's name if the image has it. */
  readonly dataFile: { readonly name: string | null; readonly raw: boolean } | null;
  close(): void;
}

/** How an image is opened. */
export interface Qcow2OpenOptions {
  /** The storage of the file; the system's by default. */
  readonly storage?: Storage;
  /** True by default. */
  readonly readOnly?: boolean;
  /** The file must be this one, which was located before (ESTALE). */
  readonly same?: FileIdentity;
  /** For writing: the caller already holds the lock of this file, and the name must lead to it. */
  readonly lockedBy?: FileIdentity;
  /** For an image further down a chain: the child's confinement. */
  readonly confinement?: Confinement;
  /** Open it for writing also when it is marked as corrupt, to mend it. */
  readonly mending?: boolean;
}

/**
 * Opens an image and reads its metadata.
 *
 * @throws {ImageFormatError} for a file that does not follow the format.
 * @throws {SystemError} when the file cannot be read; EBUSY when another process may write to it;
 * EOPNOTSUPP for features that are not supported; EROFS for writing to an image that is marked as
 * corrupt.
 */
export function openQcow2(path: string, options: Qcow2OpenOptions = {}): Qcow2Image {
  const { storage = osStorage, readOnly = true, same, lockedBy } = options;
  const file = storage.open(path, readOnly ? "read" : "write", { same, lockedBy });
  try {
    const image = readImage(file, storage, options);
    if (!readOnly && options.mending !== true) refuseCorrupt(image);
    return image;
  } catch (error) {
    file.close();
    throw error;
  }
}

function refuseCorrupt({ path, header }: Qcow2Image): void {
  if (!hasFeature(header, Incompatible.Corrupt)) return;
  throw new SystemError(Errno.EROFS, `Cannot write to ${path}: it is marked as corrupt`, {
    hint: "mend it by qemu-img check -r all, or open it for reading",
  });
}

function readImage(file: StorageFile, storage: Storage, options: Qcow2OpenOptions): Qcow2Image {
  const { header, geometry, extensions, backingName } = readHeaderCluster(file);
  const l1 = readTable(file, {
    field: "header.l1_table_offset",
    fieldOffset: 40,
    offsetBytes: Number(header.l1TableOffset),
    lengthBytes: header.l1Size * 8,
  });
  const refcountTable = readTable(file, {
    field: "header.refcount_table_offset",
    fieldOffset: 48,
    offsetBytes: Number(header.refcountTableOffset),
    lengthBytes: header.refcountTableClusters * geometry.clusterBytes,
  });
  return {
    path: file.path,
    file,
    storage,
    confinement: options.confinement ?? confinementOf(storage, file.path),
    header,
    geometry,
    extensions,
    sizeBytes: Number(header.size),
    l1: new DataView(l1.buffer),
    refcountTable: new DataView(refcountTable.buffer),
    snapshotTable: readSnapshotTable(file, header),
    bitmaps: bitmapsOf(header, extensions),
    backing: backingName === null
      ? null
      : { name: backingName, format: textOf(extensions, ExtensionType.BackingFormat) },
    dataFile: dataFileOf(header, extensions),
    close: (): void => file.close(),
  };
}

function textOf(extensions: readonly Extension[], wanted: number): string | null {
  const found = extensions.find(({ type }) => type === wanted);
  return found === undefined ? null : decodeName(found.data);
}

function bitmapsOf(header: Header, extensions: readonly Extension[]): BitmapsExtension | null {
  if ((header.autoclearFeatures & BigInt(Autoclear.Bitmaps)) === 0n) return null;
  const found = extensions.find(({ type }) => type === ExtensionType.Bitmaps);
  return found === undefined ? null : decodeBitmapsExtension(found.data);
}

function dataFileOf(header: Header, extensions: readonly Extension[]): Qcow2Image["dataFile"] {
  if (!hasFeature(header, Incompatible.DataFile)) return null;
  const raw = (header.autoclearFeatures & BigInt(Autoclear.RawDataFile)) !== 0n;
  return { name: textOf(extensions, ExtensionType.DataFile), raw };
}
