import type { StorageFile } from "../files/storage.ts";
import { crc32cWithout } from "./crc32c.ts";
import { vhdxFault, vhdxUnknown } from "./errors.ts";
import {
  BAT_REGION,
  decodeHeader,
  FILE_PARAMETERS,
  FILE_SIGNATURE,
  guidAt,
  HEADER_BYTES,
  HEADER_OFFSETS,
  LOGICAL_SECTOR_SIZE,
  METADATA_REGION,
  MIB,
  MOST_TABLE_ENTRIES,
  PAGE_BYTES,
  PARENT_LOCATOR,
  PHYSICAL_SECTOR_SIZE,
  REGION_TABLE_OFFSETS,
  TABLE_BYTES,
  textAt,
  type VhdxHeader,
  VIRTUAL_DISK_ID,
  VIRTUAL_DISK_SIZE,
} from "./format.ts";
import type { LogPages } from "./log.ts";

const ENTRY_BYTES = 32;
/** The longest item of metadata that is read. */
const MOST_ITEM_BYTES = MIB;

/** A part of the file. */
export interface Region {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A file as it is with its log replayed. */
export class ReplayedFile {
  /** @param pages What the log changes. */
  constructor(readonly file: StorageFile, readonly pages: LogPages) {}

  get path(): string {
    return this.file.path;
  }

  /** Reads bytes; returns how many there are. What the log adds behind the end is there too. */
  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    let got = this.file.readAt(into, offsetBytes);
    into.fill(0, got);
    if (this.pages.size === 0) return got;
    const end = offsetBytes + into.length;
    for (let page = Math.floor(offsetBytes / PAGE_BYTES); page * PAGE_BYTES < end; page++) {
      const bytes = this.pages.get(page);
      if (bytes === undefined) continue;
      const from = Math.max(offsetBytes, page * PAGE_BYTES);
      const to = Math.min(end, (page + 1) * PAGE_BYTES);
      const part = into.subarray(from - offsetBytes, to - offsetBytes);
      if (bytes === null) part.fill(0);
      else part.set(bytes.subarray(from - page * PAGE_BYTES, to - page * PAGE_BYTES));
      got = Math.max(got, to - offsetBytes);
    }
    return got;
  }
}

/** Reads the header that is in use: the valid one with the higher sequence number. */
export function readHeader(file: StorageFile): VhdxHeader {
  const { path } = file;
  const start = new Uint8Array(8);
  file.readAt(start, 0);
  const signature = textAt(new DataView(start.buffer), 0, 8);
  if (signature !== FILE_SIGNATURE) {
    const value = JSON.stringify(signature);
    const problem = "is not that of a VHDX image";
    throw vhdxFault(path, { field: "signature", offsetBytes: 0, value, problem });
  }
  let newest: VhdxHeader | null = null;
  let at = 0;
  for (const offsetBytes of HEADER_OFFSETS) {
    const bytes = new Uint8Array(HEADER_BYTES);
    file.readAt(bytes, offsetBytes);
    const view = new DataView(bytes.buffer);
    if (textAt(view, 0, 4) !== "head") continue;
    if (crc32cWithout(bytes, 4) !== view.getUint32(4, true)) continue;
    const header = decodeHeader(view);
    if (newest !== null && header.sequence <= newest.sequence) continue;
    newest = header;
    at = offsetBytes;
  }
  if (newest === null) {
    throw vhdxFault(path, {
      field: "headers",
      offsetBytes: HEADER_OFFSETS[0],
      value: "two headers",
      problem: "both have a wrong checksum",
    });
  }
  if (newest.version === 1) return newest;
  throw vhdxFault(path, {
    field: "header.Version",
    offsetBytes: at + 66,
    value: `${newest.version}`,
    problem: "is not version 1",
  });
}

/** Reads where the block table and the metadata are. */
export function readRegions(file: ReplayedFile): { bat: Region; metadata: Region } {
  const found = new Map<string, Region>();
  const { view, offsetBytes } = readRegionTable(file);
  const entries = view.getUint32(8, true);
  for (let i = 0; i < entries; i++) {
    const at = 16 + i * ENTRY_BYTES;
    const guid = guidAt(view, at);
    const region = {
      offsetBytes: Number(view.getBigUint64(at + 16, true)),
      lengthBytes: view.getUint32(at + 24, true),
    };
    const isKnown = guid === BAT_REGION || guid === METADATA_REGION;
    const isRequired = (view.getUint32(at + 28, true) & 1) !== 0;
    if (!isKnown && isRequired) {
      throw vhdxUnknown(file.path, `a region of the unknown type ${guid}`);
    }
    if (!isKnown) continue;
    const isPlace = region.offsetBytes >= MIB && region.offsetBytes % MIB === 0 &&
      region.offsetBytes <= Number.MAX_SAFE_INTEGER - 2 ** 33 && region.lengthBytes > 0;
    if (!isPlace || found.has(guid)) {
      throw vhdxFault(file.path, {
        field: `region[${i}]`,
        offsetBytes: offsetBytes + at,
        value: `${region.lengthBytes} bytes at ${region.offsetBytes}`,
        problem: found.has(guid) ? "is there twice" : "is no place for a region",
      });
    }
    found.set(guid, region);
  }
  const [bat, metadata] = [found.get(BAT_REGION), found.get(METADATA_REGION)];
  if (bat !== undefined && metadata !== undefined) return { bat, metadata };
  throw vhdxFault(file.path, {
    field: "region table",
    offsetBytes,
    value: `${entries} entries`,
    problem: `lacks the ${bat === undefined ? "block table" : "metadata"}`,
  });
}

/** The first of the two region tables that is valid. */
function readRegionTable(file: ReplayedFile): { view: DataView; offsetBytes: number } {
  for (const offsetBytes of REGION_TABLE_OFFSETS) {
    const bytes = new Uint8Array(TABLE_BYTES);
    file.readAt(bytes, offsetBytes);
    const view = new DataView(bytes.buffer);
    if (textAt(view, 0, 4) !== "regi") continue;
    if (crc32cWithout(bytes, 4) !== view.getUint32(4, true)) continue;
    if (view.getUint32(8, true) <= MOST_TABLE_ENTRIES) return { view, offsetBytes };
  }
  throw vhdxFault(file.path, {
    field: "region tables",
    offsetBytes: REGION_TABLE_OFFSETS[0],
    value: "two tables",
    problem: "both have a wrong checksum or too many entries",
  });
}

const KNOWN_ITEMS = new Set([
  FILE_PARAMETERS,
  VIRTUAL_DISK_SIZE,
  VIRTUAL_DISK_ID,
  LOGICAL_SECTOR_SIZE,
  PHYSICAL_SECTOR_SIZE,
  PARENT_LOCATOR,
]);

/** Items of the metadata, by their GUIDs. */
export type Items = ReadonlyMap<string, { readonly bytes: Uint8Array<ArrayBuffer>; at: number }>;

/** Reads the items of the metadata that are known. */
export function readItems(file: ReplayedFile, region: Region): Items {
  const bytes = new Uint8Array(TABLE_BYTES);
  file.readAt(bytes, region.offsetBytes);
  const view = new DataView(bytes.buffer);
  const fault = (field: string, at: number, value: string, problem: string): Error =>
    vhdxFault(file.path, { field, offsetBytes: region.offsetBytes + at, value, problem });
  const signature = textAt(view, 0, 8);
  if (signature !== "metadata") {
    throw fault("metadata.signature", 0, JSON.stringify(signature), "is not that of metadata");
  }
  const entries = view.getUint16(10, true);
  if (entries > MOST_TABLE_ENTRIES) {
    throw fault("metadata.EntryCount", 10, `${entries}`, `is more than ${MOST_TABLE_ENTRIES}`);
  }
  const items = new Map<string, { bytes: Uint8Array<ArrayBuffer>; at: number }>();
  for (let i = 0; i < entries; i++) {
    const at = 32 + i * ENTRY_BYTES;
    const guid = guidAt(view, at);
    const [isUser, isRequired] = [1, 4].map((bit) => (view.getUint32(at + 24, true) & bit) !== 0);
    if (isUser || !KNOWN_ITEMS.has(guid)) {
      if (isRequired) throw vhdxUnknown(file.path, `metadata of the unknown type ${guid}`);
      continue;
    }
    const offset = view.getUint32(at + 16, true);
    const length = view.getUint32(at + 20, true);
    const isPlace = offset >= TABLE_BYTES && length > 0 && length <= MOST_ITEM_BYTES &&
      offset + length <= region.lengthBytes;
    if (!isPlace || items.has(guid)) {
      const problem = isPlace ? "is there twice" : "is no place for an item";
      throw fault(`metadata[${i}]`, at, `${length} bytes at ${offset}`, problem);
    }
    const item = new Uint8Array(length);
    file.readAt(item, region.offsetBytes + offset);
    items.set(guid, { bytes: item, at: region.offsetBytes + offset });
  }
  return items;
}
