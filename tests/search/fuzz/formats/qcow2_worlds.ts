/**
 * QCOW2 images with everything that the format can have in one of them: clusters of all kinds of sizes,
 * subclusters, a backing file, an internal snapshot, a bitmap, compressed clusters, a data file, the mark
 * of an image that was not closed.
 *
 * @module
 */
import { deflateRawSync } from "node:zlib";
import { checkQcow2 } from "../../../../src/qcow2/check.ts";
import { createQcow2, type CreateQcow2Options } from "../../../../src/qcow2/create.ts";
import { sectorOfEntry } from "../../../../src/qcow2/format/entries.ts";
import {
  decodeExtensions,
  encodeExtensions,
  ExtensionType,
} from "../../../../src/qcow2/format/extensions.ts";
import { setRefcountAt } from "../../../../src/qcow2/format/refcounts.ts";
import { openQcow2, type Qcow2Image } from "../../../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../../../src/qcow2/repair.ts";
import { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { Qcow2Reader } from "../../../support/qcow2_reader.ts";
import { stampedSectors } from "../../../support/sim.ts";
import { putFile } from "../../../support/vhd.ts";
import { DISK_BYTES, DISK_SECTORS, type Field, numbers, type World, written } from "./world.ts";

/** Tables with more entries than this are not checked: that takes seconds, and is no other case. */
const MOST_L1_BYTES = 65536;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
/** Entries of a table that are made hostile. */
const MOST_ENTRIES = 10;

interface Shape extends Omit<CreateQcow2Options, "sizeBytes"> {
  readonly snapshot?: boolean;
  readonly bitmap?: boolean;
  readonly packed?: boolean;
  readonly dirty?: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterBytes: 512 },
  { clusterBytes: 4096, version: 2 },
  { clusterBytes: 65536 },
  { clusterBytes: 16384, extendedL2: true },
  { clusterBytes: 4096, backing: { name: "base.raw", format: "raw" } },
  { clusterBytes: 4096, snapshot: true, bitmap: true },
  { clusterBytes: 65536, snapshot: true, packed: true },
  { clusterBytes: 4096, version: 2, packed: true },
  { clusterBytes: 4096, refcountBits: 1, lazyRefcounts: true, dirty: true },
  { clusterBytes: 4096, dataFile: { name: "data.raw", raw: true } },
  { clusterBytes: 4096, refcountBits: 64 },
];

/** An image whose bytes are changed by hand. */
class Bytes {
  bytes: Uint8Array<ArrayBuffer>;
  readonly image: Qcow2Image;
  readonly #disk = new SimulatedDisk();

  constructor(bytes: Uint8Array<ArrayBuffer>) {
    this.bytes = bytes;
    putFile(this.#disk, "/image", bytes);
    this.image = openQcow2("/image", { storage: this.#disk });
  }

  get view(): DataView<ArrayBuffer> {
    return new DataView(this.bytes.buffer);
  }

  close(): Uint8Array<ArrayBuffer> {
    this.image.close();
    this.#disk.close();
    return this.bytes;
  }

  /** Byte of the refcount block that counts a cluster; every cluster here has one. */
  blockOf(cluster: number): number {
    const { refcountTableOffset } = this.image.header;
    const entry = Math.floor(cluster / this.image.geometry.refcountsPerBlock);
    return Number(this.view.getBigUint64(Number(refcountTableOffset) + 8 * entry));
  }

  count(cluster: number, references: number): void {
    const { refcountsPerBlock, refcountBits } = this.image.geometry;
    const index = cluster % refcountsPerBlock;
    setRefcountAt(this.view, this.blockOf(cluster), index, refcountBits, references);
  }

  /** Adds a cluster at the end. Returns its byte. */
  add(content: Uint8Array): number {
    const { clusterBytes } = this.image.geometry;
    const at = Math.ceil(this.bytes.length / clusterBytes) * clusterBytes;
    const longer = new Uint8Array(at + clusterBytes);
    longer.set(this.bytes);
    longer.set(content, at);
    this.bytes = longer;
    this.count(at / clusterBytes, 1);
    return at;
  }

  /** Bytes of the L1 entries that are in use, and of the L2 entries that name clusters. */
  entries(): { l1: number[]; l2: number[] } {
    const { header, geometry: { l2Entries, l2EntryBytes } } = this.image;
    const l1 = Array.from({ length: header.l1Size }, (_, i) => Number(header.l1TableOffset) + 8 * i)
      .filter((at) => this.offsetAt(at) !== 0);
    const l2 = l1.flatMap((at) =>
      Array.from({ length: l2Entries }, (_, i) => this.offsetAt(at) + i * l2EntryBytes)
    ).filter((at) => this.offsetAt(at) !== 0);
    return { l1, l2 };
  }

  offsetAt(at: number): number {
    return sectorOfEntry(this.view.getUint32(at), this.view.getUint32(at + 4)) * 512;
  }
}

/** Compresses the first clusters in their places. */
function pack(made: Bytes): void {
  const { clusterBits, clusterBytes } = made.image.geometry;
  for (const at of made.entries().l2.slice(0, 4)) {
    const place = made.offsetAt(at);
    const packed = deflateRawSync(made.bytes.slice(place, place + clusterBytes));
    made.bytes.fill(0, place, place + clusterBytes);
    made.bytes.set(packed, place);
    const sectors = BigInt(Math.ceil(packed.length / 512) - 1) << BigInt(62 - (clusterBits - 8));
    made.view.setBigUint64(at, COMPRESSED | sectors | BigInt(place));
  }
}

/** Makes an internal snapshot: both L1 tables share all L2 tables and clusters. */
function addSnapshot(made: Bytes): void {
  const { header, geometry: { clusterBytes } } = made.image;
  const { l1, l2 } = made.entries();
  for (const at of [...l1, ...l2]) {
    made.count(Math.floor(made.offsetAt(at) / clusterBytes), 2);
    made.view.setBigUint64(at, made.view.getBigUint64(at) & ~COPIED);
  }
  const start = Number(header.l1TableOffset);
  const table = made.add(made.bytes.slice(start, start + header.l1Size * 8));
  const entry = new Uint8Array(64);
  const view = new DataView(entry.buffer);
  view.setBigUint64(0, BigInt(table));
  view.setUint32(8, header.l1Size);
  view.setUint16(12, 1);
  view.setUint16(14, 3);
  view.setUint32(36, 16);
  view.setBigUint64(48, BigInt(DISK_BYTES));
  entry.set(new TextEncoder().encode("1old"), 56);
  const at = made.add(entry);
  made.view.setUint32(60, 1);
  made.view.setBigUint64(64, BigInt(at));
}

/** Adds a bitmap of another program, and the extension that names it. */
function addBitmap(made: Bytes): void {
  const { header, geometry: { clusterBytes } } = made.image;
  const bits = made.add(new Uint8Array(clusterBytes).fill(0xff));
  const table = new Uint8Array(8);
  new DataView(table.buffer).setBigUint64(0, BigInt(bits));
  const entry = new Uint8Array(32);
  const view = new DataView(entry.buffer);
  view.setBigUint64(0, BigInt(made.add(table)));
  view.setUint32(8, 1);
  view.setUint32(12, 2);
  view.setUint8(16, 1);
  view.setUint8(17, 16);
  view.setUint16(18, 5);
  entry.set(new TextEncoder().encode("dirty"), 24);
  const directory = made.add(entry);
  const data = new Uint8Array(24);
  const extension = new DataView(data.buffer);
  extension.setUint32(0, 1);
  extension.setBigUint64(8, 32n);
  extension.setBigUint64(16, BigInt(directory));
  const known = decodeExtensions(made.bytes, header.headerLength, clusterBytes);
  const all = encodeExtensions([{ type: ExtensionType.Bitmaps, data }, ...known]);
  made.bytes.set(all, header.headerLength);
  made.view.setBigUint64(88, 1n);
}

/** The numbers of the header, its extensions, and the name behind them. */
function headerFields({ image, bytes }: Bytes): Field[] {
  const { header, geometry: { clusterBytes } } = image;
  const { headerLength, version, backingFileOffset, backingFileSize } = header;
  const field = (name: string, at: number, width: 1 | 2 | 4 | 8): Field[] =>
    numbers(name, at, 1, width);
  const fields = [
    ...[field("magic", 0, 4), field("version", 4, 4), field("backing_file_offset", 8, 8)],
    ...[field("backing_file_size", 16, 4), field("cluster_bits", 20, 4), field("size", 24, 8)],
    ...[field("crypt_method", 32, 4), field("l1_size", 36, 4), field("l1_table_offset", 40, 8)],
    ...[field("refcount_table_offset", 48, 8), field("refcount_table_clusters", 56, 4)],
    ...[field("nb_snapshots", 60, 4), field("snapshots_offset", 64, 8)],
  ].flat();
  if (version < 3) return fields;
  fields.push(
    ...field("incompatible_features", 72, 8),
    ...field("compatible_features", 80, 8),
    ...field("autoclear_features", 88, 8),
    ...field("refcount_order", 96, 4),
    ...field("header_length", 100, 4),
    ...field("compression_type", 104, 1),
  );
  let at = headerLength;
  for (const { type, data } of decodeExtensions(bytes, headerLength, clusterBytes)) {
    const name = `extension 0x${type.toString(16)}`;
    const words = Math.min(6, Math.floor(data.length / 4));
    fields.push(...numbers(`${name} type`, at, 1, 4), ...numbers(`${name} length`, at + 4, 1, 4));
    fields.push(...numbers(name, at + 8, words, 4));
    at += 8 + Math.ceil(data.length / 8) * 8;
  }
  fields.push(...numbers("end of extensions", at, 2, 4));
  return [...fields, ...numbers("name", Number(backingFileOffset), backingFileSize, 1)];
}

/** The entries of all tables that are in use, and a few that are not. */
function tableFields(made: Bytes, l1Offset: number, l1Size: number, of = ""): Field[] {
  const { geometry: { l2Entries, l2EntryBytes, hasSubclusters } } = made.image;
  const fields = numbers(`l1${of}`, l1Offset, Math.min(l1Size, 6), 8);
  const used = fields.filter(({ at }) => made.offsetAt(at) !== 0).slice(0, 3);
  for (const [i, { at }] of used.entries()) {
    const table = made.offsetAt(at);
    const entries = Array.from({ length: l2Entries }, (_, k) => table + k * l2EntryBytes);
    const named = entries.filter((entry) => made.offsetAt(entry) !== 0).slice(0, MOST_ENTRIES);
    const empty = entries.filter((entry) => made.offsetAt(entry) === 0);
    const some = [...named, ...empty.slice(0, 2), ...empty.slice(-1)];
    for (const entry of some) {
      const k = (entry - table) / l2EntryBytes;
      fields.push(...numbers(`l2[${i}][${k}]${of}`, entry, hasSubclusters ? 2 : 1, 8));
    }
  }
  return fields;
}

function countFields(made: Bytes): Field[] {
  const { header, geometry: { refcountBits } } = made.image;
  const table = Number(header.refcountTableOffset);
  const width = refcountBits === 64 ? 8 : refcountBits === 16 ? 2 : 1;
  const fields = numbers("refcount_table", table, 4, 8);
  const blocks = fields.map(({ at }) => made.offsetAt(at)).filter((at) => at !== 0);
  return [...fields, ...blocks.flatMap((at, i) => numbers(`refcounts[${i}]`, at, 16, width))];
}

function moreFields(made: Bytes): Field[] {
  const { snapshotTable, bitmaps } = made.image;
  const fields: Field[] = [];
  for (const { l1Offset, l1Entries } of snapshotTable.snapshots) {
    const at = snapshotTable.offsetBytes;
    fields.push(...numbers("snapshot l1_table_offset", at, 1, 8));
    fields.push(
      ...numbers("snapshot", at + 8, 1, 4),
      ...numbers("snapshot lengths", at + 12, 2, 2),
    );
    fields.push(...numbers("snapshot", at + 16, 12, 4));
    fields.push(...tableFields(made, l1Offset, l1Entries, " of a snapshot"));
  }
  if (bitmaps === null) return fields;
  const at = bitmaps.directoryOffset;
  fields.push(...numbers("bitmap table", at, 1, 8), ...numbers("bitmap", at + 8, 6, 4));
  return [...fields, ...numbers("bitmap clusters", made.offsetAt(at), 2, 8)];
}

function worldOf(folder: string, shape: Shape): World {
  const path = `${folder}/disk.qcow2`;
  const image = `qcow2:${path}`;
  const { backing, dataFile, snapshot, bitmap, packed, dirty } = shape;
  const below = stampedSectors(0, DISK_SECTORS - 100, 3).slice();
  const others = new Map<string, Uint8Array<ArrayBuffer>>();
  if (backing !== undefined) others.set(`${folder}/${backing.name}`, below);
  if (dataFile !== undefined) others.set(`${folder}/${dataFile.name}`, new Uint8Array(DISK_BYTES));
  const made = new Bytes(written(image, path, (disk) => {
    for (const [name, bytes] of others) putFile(disk, name, bytes);
    createQcow2(path, { storage: disk, sizeBytes: DISK_BYTES, ...shape });
  }));
  if (packed) pack(made);
  if (bitmap) addBitmap(made);
  if (snapshot) addSnapshot(made);
  if (dirty) made.view.setBigUint64(72, made.view.getBigUint64(72) | 1n);
  const whole = new Bytes(made.close());
  const { header, geometry: { clusterBytes } } = whole.image;
  const fields = [
    ...headerFields(whole),
    ...tableFields(whole, Number(header.l1TableOffset), header.l1Size),
    ...countFields(whole),
    ...moreFields(whole),
  ];
  const bytes = whole.close();
  const clusters = Array.from({ length: 12 }, (_, i) => i * clusterBytes);
  return {
    name: `qcow2 ${JSON.stringify(shape)}`,
    image,
    path,
    bytes,
    others,
    fields,
    cuts: [...clusters, 104, 112, header.headerLength + 60, bytes.length - 512, bytes.length],
    sealed: [],
    canWrite: true,
    isCompressed: packed === true,
    check: (disk) => firstFault(disk, path),
    repair: (disk) => void repairQcow2(path, { storage: disk }),
    reader: packed || others.size > 0 ? undefined : (disk) => new Qcow2Reader(disk, path),
  };
}

function firstFault(storage: SimulatedDisk, path: string): string | null {
  const image = openQcow2(path, { storage });
  try {
    if (image.l1.byteLength > MOST_L1_BYTES) return "a table of many entries";
    return checkQcow2(image).errors[0] ?? null;
  } finally {
    image.close();
  }
}

/** The worlds, each in a folder of its own. */
export function qcow2Worlds(folder: string): World[] {
  return SHAPES.map((shape, i) => worldOf(`${folder}/qcow2-${i}`, shape));
}
