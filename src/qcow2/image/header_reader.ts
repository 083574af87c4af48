import { decodeName } from "../../../ffi/names.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { ImageFormatError } from "../../files/format_error.ts";
import type { StorageFile } from "../../files/storage.ts";
import {
  decodeExtensions,
  decodeFeatureNames,
  type Extension,
  ExtensionFault,
  ExtensionType,
} from "../format/extensions.ts";
import {
  Compression,
  CryptMethod,
  decodeHeader,
  type Header,
  Incompatible,
  KNOWN_INCOMPATIBLE,
  V3_HEADER_BYTES,
  versionOf,
} from "../format/header.ts";
import {
  type Geometry,
  geometryOf,
  l1EntriesOf,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_HOST_OFFSET,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
  SECTOR_BYTES,
} from "../format/units.ts";

const FORMAT = "QCOW2";
/** The most internal snapshots of an image. */
const MAX_SNAPSHOTS = 65536;

/** What the first cluster of an image says. */
export interface HeaderCluster {
  readonly header: Header;
  readonly geometry: Geometry;
  readonly extensions: readonly Extension[];
  /** The backing file's name as it is stored; null without one. */
  readonly backingName: string | null;
}

/**
 * Reads the header, its extensions and the name of the backing file.
 *
 * @throws {ImageFormatError} for a field that cannot be right.
 * @throws {SystemError} EOPNOTSUPP for an encrypted image and for unknown features.
 */
export function readHeaderCluster(file: StorageFile): HeaderCluster {
  const first = new Uint8Array(SECTOR_BYTES);
  file.readAt(first, 0);
  requireVersion(file.path, first);
  const header = decodeHeader(first);
  const fields = new FieldCheck(file.path, header);
  fields.checkSizes();
  const clusterBytes = 2 ** header.clusterBits;
  const cluster = new Uint8Array(clusterBytes);
  file.readAt(cluster, 0);
  const extensions = readExtensions(file.path, header, cluster);
  requireKnownFeatures(file.path, header, extensions);
  fields.checkFeatures();
  const geometry = geometryOf({
    clusterBits: header.clusterBits,
    refcountOrder: header.refcountOrder,
    hasSubclusters: hasFeature(header, Incompatible.ExtendedL2),
  });
  fields.checkTables(geometry);
  return { header, geometry, extensions, backingName: fields.backingName(cluster) };
}

/** Whether an incompatible feature is set. */
export function hasFeature({ incompatibleFeatures }: Header, bit: number): boolean {
  return (incompatibleFeatures & BigInt(bit)) !== 0n;
}

function requireVersion(path: string, first: Uint8Array<ArrayBuffer>): void {
  const version = versionOf(first);
  if (version === 2 || version === 3) return;
  if (version === null) {
    const value = [...first.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, "0"));
    throw new ImageFormatError(path, FORMAT, {
      field: "header.magic",
      offsetBytes: 0,
      value: `0x${value.join("")}`,
      problem: "is not the magic number 0x514649fb",
    });
  }
  const hint = version === 1 ? "is that of the first QCOW: name it qcow:FILE" : "is not known";
  throw new ImageFormatError(path, FORMAT, {
    field: "header.version",
    offsetBytes: 4,
    value: String(version),
    problem: hint,
  });
}

function readExtensions(
  path: string,
  header: Header,
  cluster: Uint8Array<ArrayBuffer>,
): Extension[] {
  const backing = Number(header.backingFileOffset);
  const end = backing > header.headerLength ? Math.min(backing, cluster.length) : cluster.length;
  try {
    return decodeExtensions(cluster, header.headerLength, end);
  } catch (error) {
    if (!(error instanceof ExtensionFault)) throw error;
    throw new ImageFormatError(path, FORMAT, {
      field: "the header extension",
      offsetBytes: error.offsetBytes,
      value: "a length",
      problem: error.message,
    });
  }
}

/** Throws `SystemError` EOPNOTSUPP for features that must be known, by their names in the image. */
function requireKnownFeatures(
  path: string,
  { incompatibleFeatures }: Header,
  extensions: readonly Extension[],
): void {
  const unknown = incompatibleFeatures & ~KNOWN_INCOMPATIBLE;
  if (unknown === 0n) return;
  const table = extensions.find(({ type }) => type === ExtensionType.FeatureNames);
  const names = table === undefined ? [] : decodeFeatureNames(table.data);
  const described: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((unknown >> BigInt(bit) & 1n) === 0n) continue;
    const known = names.find((feature) => feature.kind === 0 && feature.bit === bit);
    described.push(known === undefined ? `bit ${bit}` : JSON.stringify(known.name));
  }
  throw new SystemError(
    Errno.EOPNOTSUPP,
    `Cannot use ${path}: it has incompatible features that are not supported (${
      described.join(", ")
    })`,
  );
}

/** Checks of the header's fields. */
class FieldCheck {
  readonly #path: string;
  readonly #header: Header;

  constructor(path: string, header: Header) {
    this.#path = path;
    this.#header = header;
  }

  #require(
    isRight: boolean,
    field: string,
    offsetBytes: number,
    value: number | bigint,
    problem: string,
  ): void {
    if (isRight) return;
    const fault = { field: `header.${field}`, offsetBytes, value: String(value), problem };
    throw new ImageFormatError(this.#path, FORMAT, fault);
  }

  checkSizes(): void {
    const { clusterBits, headerLength, version, size, refcountOrder } = this.#header;
    const isCluster = clusterBits >= MIN_CLUSTER_BITS && clusterBits <= MAX_CLUSTER_BITS;
    this.#require(isCluster, "cluster_bits", 20, clusterBits, "is not between 9 and 21");
    if (version >= 3) {
      const fits = headerLength >= V3_HEADER_BYTES && headerLength <= 2 ** clusterBits;
      this.#require(fits, "header_length", 100, headerLength, "is below 104 or beyond the cluster");
    }
    this.#require(size <= 2n ** 53n, "size", 24, size, "is more than 2^53 bytes");
    this.#require(refcountOrder <= 6, "refcount_order", 96, refcountOrder, "is more than 6");
  }

  checkFeatures(): void {
    const header = this.#header;
    const { cryptMethod, clusterBits, compressionType } = header;
    if (cryptMethod === CryptMethod.Aes || cryptMethod === CryptMethod.Luks) {
      const method = cryptMethod === CryptMethod.Aes ? "AES" : "LUKS";
      throw new SystemError(
        Errno.EOPNOTSUPP,
        `Cannot use ${this.#path}: it is encrypted by ${method}`,
        { hint: "decrypt it by qemu-img convert" },
      );
    }
    this.#require(cryptMethod === CryptMethod.None, "crypt_method", 32, cryptMethod, "is unknown");
    const isLarge = clusterBits >= MIN_EXTENDED_CLUSTER_BITS;
    this.#require(
      isLarge || !hasFeature(header, Incompatible.ExtendedL2),
      "cluster_bits",
      20,
      clusterBits,
      "is below 14 in an image with extended L2 entries",
    );
    const isZlib = compressionType === Compression.Zlib;
    this.#require(
      isZlib !== hasFeature(header, Incompatible.Compression),
      "compression_type",
      104,
      compressionType,
      "contradicts the feature bit for the type of compression",
    );
    const isKnown = isZlib || compressionType === Compression.Zstd;
    this.#require(isKnown, "compression_type", 104, compressionType, "is unknown");
  }

  #requirePlace(field: string, offsetBytes: number, value: bigint, clusterBytes: number): void {
    const isAligned = value % BigInt(clusterBytes) === 0n && value <= BigInt(MAX_HOST_OFFSET);
    this.#require(isAligned, field, offsetBytes, value, "is not the offset of a cluster");
  }

  checkTables(geometry: Geometry): void {
    const header = this.#header;
    const { clusterBytes } = geometry;
    this.#requirePlace("l1_table_offset", 40, header.l1TableOffset, clusterBytes);
    this.#requirePlace("refcount_table_offset", 48, header.refcountTableOffset, clusterBytes);
    this.#requirePlace("snapshots_offset", 64, header.snapshotsOffset, clusterBytes);
    const { l1Size, refcountTableClusters, nbSnapshots } = header;
    const needed = l1EntriesOf(Number(header.size), geometry);
    this.#require(l1Size * 8 <= MAX_L1_BYTES, "l1_size", 36, l1Size, "is more than 4194304");
    this.#require(needed <= l1Size, "l1_size", 36, l1Size, `is less than the ${needed} needed`);
    const hasL1 = l1Size === 0 || header.l1TableOffset > 0n;
    this.#require(hasL1, "l1_table_offset", 40, header.l1TableOffset, "leads to the header");
    const hasTable = header.refcountTableOffset > 0n;
    const offset = header.refcountTableOffset;
    this.#require(hasTable, "refcount_table_offset", 48, offset, "leads to the header");
    this.#require(
      refcountTableClusters > 0 && refcountTableClusters * clusterBytes <= MAX_REFCOUNT_TABLE_BYTES,
      "refcount_table_clusters",
      56,
      refcountTableClusters,
      "is 0 or makes a table of more than 8 MiB",
    );
    const few = nbSnapshots <= MAX_SNAPSHOTS;
    this.#require(few, "nb_snapshots", 60, nbSnapshots, `is more than ${MAX_SNAPSHOTS}`);
  }

  backingName(cluster: Uint8Array<ArrayBuffer>): string | null {
    const { backingFileOffset, backingFileSize } = this.#header;
    if (backingFileOffset === 0n) return null;
    const length = backingFileSize;
    const isShort = length > 0 && length <= MAX_BACKING_NAME_BYTES;
    this.#require(isShort, "backing_file_size", 16, length, "is 0 or more than 1023");
    const isInside = backingFileOffset + BigInt(length) <= BigInt(cluster.length);
    const problem = "puts the name beyond the header's cluster";
    this.#require(isInside, "backing_file_offset", 8, backingFileOffset, problem);
    const start = Number(backingFileOffset);
    return decodeName(cluster.subarray(start, start + length));
  }
}
