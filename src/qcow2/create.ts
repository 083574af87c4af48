/**
 * `src/qcow2`: offline operations on QCOW2 images: create, snapshot, check, resize.
 *
 * Each operation works on one image at a time, synchronously, under the image's lock, in the order
 * of writes of docs/on-disk-order.md. This folder must not know the disk queue or tapdisk, and it
 * must not print.
 *
 * This file creates images. An image has the same structures in the same places as one that qemu-img
 * creates without preallocation: the header, the refcount table, one refcount block, the L1 table.
 *
 * @module
 */
import { encodeName } from "../../ffi/names.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { writeNewImage } from "../files/new_file.ts";
import { type FileIdentity, type OnStorage, osStorage } from "../files/storage.ts";
import { highOfSector, lowOfSector } from "./format/entries.ts";
import {
  encodeExtensions,
  encodeFeatureNames,
  type Extension,
  ExtensionType,
  type FeatureName,
} from "./format/extensions.ts";
import {
  Autoclear,
  Compatible,
  Compression,
  encodeHeader,
  FULL_HEADER_BYTES,
  type Header,
  Incompatible,
  V2_HEADER_BYTES,
} from "./format/header.ts";
import { setRefcountAt } from "./format/refcounts.ts";
import {
  type Geometry,
  geometryOf,
  l1EntriesOf,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
  SECTOR_BYTES,
} from "./format/units.ts";

/** The size of a cluster that is chosen without another wish. */
const CLUSTER_BYTES = 65536;

/** Options of a new image. */
export interface CreateQcow2Options {
  /** Size of the virtual disk, bytes; rounded up to sectors. */
  readonly sizeBytes: number;
  /** 3 by default. */
  readonly version?: 2 | 3;
  /** 64 KiB by default; a power of 2 between 512 bytes and 2 MiB. */
  readonly clusterBytes?: number;
  /** Width of reference counts; 16 by default; a power of 2 up to 64. */
  readonly refcountBits?: number;
  readonly lazyRefcounts?: boolean;
  /** With 32 subclusters for each cluster. */
  readonly extendedL2?: boolean;
  /** The refcount table has entries for a file of this length from the start. */
  readonly roomForBytes?: number;
  /** How compressed clusters, if some are added, are compressed. */
  readonly compression?: "zlib" | "zstd";
  /** The backing file's name, as it is stored, and QEMU's name of its format. */
  readonly backing?: { readonly name: string; readonly format: string };
  /** The name of a file for the data, as it is stored. The file is the caller's. */
  readonly dataFile?: { readonly name: string; readonly raw: boolean };
}

/** The features that QEMU names in its images. */
const FEATURE_NAMES: readonly FeatureName[] = [
  { kind: 0, bit: 0, name: "dirty bit" },
  { kind: 0, bit: 1, name: "corrupt bit" },
  { kind: 0, bit: 2, name: "external data file" },
  { kind: 0, bit: 3, name: "compression type" },
  { kind: 0, bit: 4, name: "extended L2 entries" },
  { kind: 1, bit: 0, name: "lazy refcounts" },
  { kind: 2, bit: 0, name: "bitmaps" },
  { kind: 2, bit: 1, name: "raw external data" },
];

/** The places of the structures of a new image, in clusters. */
interface Plan {
  readonly geometry: Geometry;
  readonly sizeBytes: number;
  readonly l1Entries: number;
  readonly l1Clusters: number;
  readonly tableClusters: number;
  readonly blocks: number;
}

/**
 * Creates an image without data.
 *
 * @throws {SystemError} EINVAL for options that contradict each other or the format; EFBIG for a disk
 * that clusters of this size cannot hold; errors of the file system. An incomplete file is removed.
 */
export function createQcow2(
  path: string,
  options: CreateQcow2Options & OnStorage & { readonly same?: FileIdentity },
): void {
  const { storage = osStorage, same } = options;
  const plan = planFor(path, options);
  const header = headerFor(plan, options);
  const front = firstCluster(path, header, plan, options);
  writeNewImage(storage, { path, same }, (file) => {
    const { clusterBytes } = plan.geometry;
    const clusters = 1 + plan.tableClusters + plan.blocks + plan.l1Clusters;
    const empty = new Uint8Array(clusterBytes);
    if (file.isBlockDevice) {
      for (let i = 0; i < clusters; i++) file.writeAt(empty, i * clusterBytes);
    } else file.truncate(clusters * clusterBytes);
    file.writeAt(encodeRefcountTable(plan), clusterBytes);
    file.writeAt(encodeRefcounts(plan, clusters), (1 + plan.tableClusters) * clusterBytes);
    // Nothing else can be found without the header.
    file.sync();
    file.writeAt(front, 0);
  });
}

function refuse(path: string, why: string, errno: number = Errno.EINVAL): never {
  throw new SystemError(errno, `Cannot create ${path} (${why})`);
}

function planFor(path: string, options: CreateQcow2Options): Plan {
  const { clusterBytes = CLUSTER_BYTES, refcountBits = 16, extendedL2 = false } = options;
  const clusterBits = Math.log2(clusterBytes);
  const least = extendedL2 ? MIN_EXTENDED_CLUSTER_BITS : MIN_CLUSTER_BITS;
  if (!Number.isInteger(clusterBits) || clusterBits < least || clusterBits > MAX_CLUSTER_BITS) {
    refuse(path, `a cluster has ${2 ** least} bytes to 2 MiB, a power of 2, not ${clusterBytes}`);
  }
  const refcountOrder = Math.log2(refcountBits);
  if (![0, 1, 2, 3, 4, 5, 6].includes(refcountOrder)) {
    refuse(path, `a reference count has 1 to 64 bits, a power of 2, not ${refcountBits}`);
  }
  if (options.version === 2) refuseNewFeatures(path, options, refcountBits);
  if (options.dataFile?.raw === true && options.backing !== undefined) {
    refuse(path, "a raw data file excludes a backing file");
  }
  const sizeBytes = Math.ceil(options.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) refuse(path, "its size is no size");
  const geometry = geometryOf({ clusterBits, refcountOrder, hasSubclusters: extendedL2 });
  const l1Entries = l1EntriesOf(sizeBytes, geometry);
  if (l1Entries * 8 > MAX_L1_BYTES) {
    refuse(path, `clusters of ${clusterBytes} bytes cannot hold a disk of this size`, Errno.EFBIG);
  }
  const l1Clusters = Math.max(1, Math.ceil(l1Entries * 8 / clusterBytes));
  const counted = refcountClusters(geometry, l1Clusters, options.roomForBytes ?? 0);
  return { geometry, sizeBytes, l1Entries, l1Clusters, ...counted };
}

function refuseNewFeatures(path: string, options: CreateQcow2Options, refcountBits: number): void {
  const { lazyRefcounts, extendedL2, compression, dataFile } = options;
  const isNew = lazyRefcounts === true || extendedL2 === true || compression === "zstd" ||
    dataFile !== undefined || refcountBits !== 16;
  if (isNew) refuse(path, "version 2 has none of the features that were asked for");
}

/**
 * How many refcount blocks and clusters of the refcount table the structures themselves need, with a table
 * for a file of this length.
 */
function refcountClusters(
  { clusterBytes, refcountsPerBlock }: Geometry,
  l1Clusters: number,
  roomForBytes: number,
): { tableClusters: number; blocks: number } {
  let blocks = 1;
  const groups = Math.ceil(roomForBytes / clusterBytes / refcountsPerBlock);
  const most = MAX_REFCOUNT_TABLE_BYTES / clusterBytes;
  let tableClusters = Math.max(1, Math.min(most, Math.ceil(groups * 8 / clusterBytes)));
  for (;;) {
    const clusters = 1 + tableClusters + blocks + l1Clusters;
    const neededBlocks = Math.ceil(clusters / refcountsPerBlock);
    const neededTable = Math.max(tableClusters, Math.ceil(neededBlocks * 8 / clusterBytes));
    if (neededBlocks === blocks && neededTable === tableClusters) return { tableClusters, blocks };
    [blocks, tableClusters] = [neededBlocks, neededTable];
  }
}

function headerFor(plan: Plan, options: CreateQcow2Options): Header {
  const { geometry: { clusterBytes, clusterBits, refcountBits }, tableClusters, blocks } = plan;
  const { version = 3, dataFile, extendedL2 = false, compression, lazyRefcounts } = options;
  const isZstd = compression === "zstd";
  const incompatible = (dataFile === undefined ? 0 : Incompatible.DataFile) +
    (isZstd ? Incompatible.Compression : 0) + (extendedL2 ? Incompatible.ExtendedL2 : 0);
  return {
    version,
    backingFileOffset: 0n,
    backingFileSize: 0,
    clusterBits,
    size: BigInt(plan.sizeBytes),
    cryptMethod: 0,
    l1Size: plan.l1Entries,
    l1TableOffset: BigInt((1 + tableClusters + blocks) * clusterBytes),
    refcountTableOffset: BigInt(clusterBytes),
    refcountTableClusters: tableClusters,
    nbSnapshots: 0,
    snapshotsOffset: 0n,
    incompatibleFeatures: BigInt(incompatible),
    compatibleFeatures: lazyRefcounts === true ? BigInt(Compatible.LazyRefcounts) : 0n,
    autoclearFeatures: dataFile?.raw === true ? BigInt(Autoclear.RawDataFile) : 0n,
    refcountOrder: Math.log2(refcountBits),
    headerLength: version === 2 ? V2_HEADER_BYTES : FULL_HEADER_BYTES,
    compressionType: isZstd ? Compression.Zstd : Compression.Zlib,
  };
}

/** The header, its extensions, and the backing file's name behind them. */
function firstCluster(
  path: string,
  header: Header,
  { geometry: { clusterBytes } }: Plan,
  { backing, dataFile }: CreateQcow2Options,
): Uint8Array<ArrayBuffer> {
  const extensions: Extension[] = [];
  if (backing !== undefined) {
    extensions.push({ type: ExtensionType.BackingFormat, data: encodeName(backing.format) });
  }
  if (dataFile !== undefined) {
    extensions.push({ type: ExtensionType.DataFile, data: encodeName(dataFile.name) });
  }
  const name = encodeName(backing?.name ?? "");
  const withNames = [
    ...extensions,
    { type: ExtensionType.FeatureNames, data: encodeFeatureNames(FEATURE_NAMES) },
  ];
  const spaceFor = (list: readonly Extension[]): number =>
    clusterBytes - header.headerLength - encodeExtensions(list).length - name.length;
  // The names of features are only for messages: a small cluster goes without them.
  const chosen = header.version >= 3 && spaceFor(withNames) >= 0 ? withNames : extensions;
  const encoded = encodeExtensions(chosen);
  if (name.length > MAX_BACKING_NAME_BYTES || spaceFor(chosen) < 0) {
    refuse(path, "the name of its backing file is too long", Errno.ENAMETOOLONG);
  }
  const nameOffset = header.headerLength + encoded.length;
  const bytes = new Uint8Array(nameOffset + name.length);
  bytes.set(encodeHeader({
    ...header,
    backingFileOffset: name.length === 0 ? 0n : BigInt(nameOffset),
    backingFileSize: name.length,
  }));
  bytes.set(encoded, header.headerLength);
  bytes.set(name, nameOffset);
  return bytes;
}

function encodeRefcountTable({ geometry, tableClusters, blocks }: Plan): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(tableClusters * geometry.clusterBytes);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < blocks; i++) {
    const sector = (1 + tableClusters + i) * geometry.clusterSectors;
    view.setUint32(8 * i, highOfSector(sector), false);
    view.setUint32(8 * i + 4, lowOfSector(sector), false);
  }
  return bytes;
}

function encodeRefcounts({ geometry, blocks }: Plan, clusters: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(blocks * geometry.clusterBytes);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < clusters; i++) setRefcountAt(view, 0, i, geometry.refcountBits, 1);
  return bytes;
}
