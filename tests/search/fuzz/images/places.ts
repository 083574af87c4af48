/**
 * Where the structures of a valid image are, so that mutations can hit their fields.
 *
 * @module
 */
import { batmapHeaderOffset } from "../../../../src/vhd/format/layout.ts";
import {
  BATMAP_HEADER_SIZE,
  BATMAP_OFFSETS,
  batmapBytes,
  batmapChecksum,
  decodeBatmapHeader,
  VHD_BATMAP_COOKIE,
} from "../../../../src/vhd/format/batmap.ts";
import {
  decodeFooter,
  FOOTER_OFFSETS,
  footerChecksum,
  footerFault,
  HD_FOOTER_SIZE,
  HD_TYPE_FIXED,
} from "../../../../src/vhd/format/footer.ts";
import {
  DD_HEADER_SIZE,
  decodeHeader,
  HEADER_OFFSETS,
  headerChecksum,
} from "../../../../src/vhd/format/header.ts";
import { LOCATOR_SIZE } from "../../../../src/vhd/format/locator.ts";

/** A structure of an image. */
export type StructureName = "footer" | "backup" | "header" | "batmap";

/** A field: its offset in the structure, and its length. */
export type Field = readonly [offsetBytes: number, lengthBytes: number];

/** The fields of each structure. */
export const FIELDS: Readonly<Record<StructureName, readonly Field[]>> = {
  footer: fieldsOf(FOOTER_OFFSETS, HD_FOOTER_SIZE),
  backup: fieldsOf(FOOTER_OFFSETS, HD_FOOTER_SIZE),
  header: [
    ...fieldsOf(HEADER_OFFSETS, DD_HEADER_SIZE).slice(0, -2),
    ...Array.from({ length: 8 }, (_, i) => locatorFields(i)).flat(),
  ],
  batmap: fieldsOf(BATMAP_OFFSETS, 94),
};

function fieldsOf(offsets: Readonly<Record<string, number>>, end: number): Field[] {
  const starts = [...Object.values(offsets), end];
  return starts.slice(0, -1).map((start, i): Field => [start, starts[i + 1] - start]);
}

/** The fields of a locator: code, space, length, reserved, offset. */
export function locatorFields(index: number): Field[] {
  const start = HEADER_OFFSETS.locators + index * LOCATOR_SIZE;
  return [[start, 4], [start + 4, 4], [start + 8, 4], [start + 12, 4], [start + 16, 8]];
}

/** The places in an image. Offsets are in bytes. */
export interface Places {
  /** The start of each structure that the image has. */
  readonly structures: Readonly<Partial<Record<StructureName, number>>>;
  readonly batAt: number;
  readonly entries: number;
  /** The map that the batmap's header leads to. */
  readonly mapAt: number;
  readonly mapBytes: number;
  /** The names that locators lead to. */
  readonly names: readonly Field[];
  /** Every offset at which something begins or ends. */
  readonly edges: readonly number[];
}

/** Bytes of a file; behind its end, zeros. */
function partOf(bytes: Uint8Array, at: number, length: number): Uint8Array<ArrayBuffer> {
  const part = new Uint8Array(length);
  part.set(bytes.subarray(at, at + length));
  return part;
}

/** The places in a valid image; in any other file, only its edges. */
export function placesOf(bytes: Uint8Array<ArrayBuffer>): Places {
  // A footer of 511 bytes begins on a sector, too.
  const footerAt = Math.floor((bytes.length - 1) / HD_FOOTER_SIZE) * HD_FOOTER_SIZE;
  const none = { structures: {}, batAt: 0, entries: 0, mapAt: 0, mapBytes: 0, names: [] };
  const last = new Uint8Array(HD_FOOTER_SIZE);
  last.set(bytes.subarray(Math.max(0, footerAt)));
  if (footerFault(last) !== null) return { ...none, edges: [0, bytes.length] };
  const footer = decodeFooter(last);
  if (footer.diskType === HD_TYPE_FIXED) {
    return { ...none, structures: { footer: footerAt }, edges: [0, footerAt, bytes.length] };
  }
  const headerAt = Number(footer.dataOffset);
  const header = decodeHeader(partOf(bytes, headerAt, DD_HEADER_SIZE));
  const batAt = Number(header.tableOffset);
  const entries = header.maxBatEntries;
  const mapHeaderAt = batmapHeaderOffset(header);
  const map = decodeBatmapHeader(partOf(bytes, mapHeaderAt, BATMAP_HEADER_SIZE));
  const hasMap = map.cookie === VHD_BATMAP_COOKIE;
  const names = header.locators.filter(({ code }) => code !== 0)
    .map(({ dataOffset, dataLength }): Field => [Number(dataOffset), dataLength]);
  const view = new DataView(bytes.buffer);
  const blocks = Array.from({ length: entries }, (_, i) => view.getUint32(batAt + 4 * i))
    .filter((sector) => sector !== 0xffff_ffff).map((sector) => sector * 512);
  return {
    structures: {
      footer: footerAt,
      backup: 0,
      header: headerAt,
      ...(hasMap ? { batmap: mapHeaderAt } : {}),
    },
    batAt,
    entries,
    mapAt: hasMap ? Number(map.batmapOffset) : 0,
    mapBytes: hasMap ? batmapBytes(Number(footer.currentSize)) : 0,
    names,
    edges: [
      0,
      headerAt,
      batAt,
      batAt + entries * 4,
      mapHeaderAt,
      ...names.map(([start]) => start),
      ...blocks,
      footerAt,
      bytes.length,
    ],
  };
}

/** A part of a file that can be read and written. */
export interface Bytes {
  sizeBytes(): number;
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number;
  writeAt(from: Uint8Array<ArrayBuffer>, offsetBytes: number): void;
}

/** Writes the right checksum of a structure, wherever its fields lead now. */
export function resum(file: Bytes, structure: StructureName, places: Places): void {
  const at = places.structures[structure];
  if (at === undefined) return;
  if (structure === "batmap") return resumMap(file, at, places);
  const isHeader = structure === "header";
  const bytes = new Uint8Array(isHeader ? DD_HEADER_SIZE : HD_FOOTER_SIZE);
  file.readAt(bytes, at);
  const sum = isHeader ? headerChecksum(bytes) : footerChecksum(bytes);
  put32(file, at + (isHeader ? HEADER_OFFSETS.checksum : FOOTER_OFFSETS.checksum), sum);
}

function resumMap(file: Bytes, at: number, { mapAt, mapBytes }: Places): void {
  const bytes = new Uint8Array(BATMAP_HEADER_SIZE);
  file.readAt(bytes, at);
  const { batmapOffset, batmapVersion } = decodeBatmapHeader(bytes);
  const bits = new Uint8Array(mapBytes);
  const inFile = batmapOffset < BigInt(file.sizeBytes());
  file.readAt(bits, inFile ? Number(batmapOffset) : mapAt);
  put32(file, at + BATMAP_OFFSETS.checksum, batmapChecksum(bits, batmapVersion));
}

/** Writes a big-endian number of 32 bits. */
export function put32(file: Bytes, at: number, value: number): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  file.writeAt(bytes, at);
}
