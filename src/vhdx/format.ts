/**
 * `src/vhdx`: images of VHDX, as Hyper-V and QEMU write them, for reading: their structures, their log,
 * how they are opened. It must not write to an image, know the disk queue or the drivers, or print.
 *
 * The layout is that of the open specification MS-VHDX. All numbers are little-endian, and the bytes of
 * a GUID are as Microsoft orders them.
 *
 * This file has the structures.
 *
 * @module
 */
export const SECTOR_BYTES = 512;
export const MIB = 1 << 20;
/** The unit of the log, and of what it changes. */
export const PAGE_BYTES = 4096;
export const FILE_SIGNATURE = "vhdxfile";
/** The two headers, and the two region tables. */
export const HEADER_OFFSETS = [65536, 131072] as const;
export const HEADER_BYTES = 4096;
export const REGION_TABLE_OFFSETS = [196608, 262144] as const;
export const TABLE_BYTES = 65536;
export const MOST_TABLE_ENTRIES = 2047;

export const BAT_REGION = "2dc27766-f623-4200-9d64-115e9bfd4a08";
export const METADATA_REGION = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

export const FILE_PARAMETERS = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
export const VIRTUAL_DISK_SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
export const VIRTUAL_DISK_ID = "beca12ab-b2e6-4523-93ef-c309e000c746";
export const LOGICAL_SECTOR_SIZE = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
export const PHYSICAL_SECTOR_SIZE = "cda348c7-445d-4471-9cc9-e9885251c556";
export const PARENT_LOCATOR = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
/** The type of the only parent locator that is known: names of VHDX files. */
export const VHDX_LOCATOR = "b04aefb7-d19e-4a81-b789-25b8e9445913";

export const HAS_PARENT = 2;
export const MOST_DISK_BYTES = 64 * 1024 ** 4;

/** What an entry of the block table says of a block. */
export const BlockState = {
  NotPresent: 0,
  Undefined: 1,
  Zero: 2,
  Unmapped: 3,
  /** The same in the first edition of the specification. */
  OldUnmapped: 5,
  Full: 6,
  Partial: 7,
} as const;

/** One of the two headers. */
export interface VhdxHeader {
  readonly sequence: bigint;
  /** Changes whenever data of the disk changes: what a child knows its parent by. */
  readonly dataWriteGuid: string;
  /** All zeros: the log is empty. */
  readonly logGuid: string;
  readonly logVersion: number;
  readonly version: number;
  readonly logLengthBytes: number;
  readonly logOffsetBytes: number;
}

/** Decodes a header. */
export function decodeHeader(view: DataView): VhdxHeader {
  return {
    sequence: view.getBigUint64(8, true),
    dataWriteGuid: guidAt(view, 32),
    logGuid: guidAt(view, 48),
    logVersion: view.getUint16(64, true),
    version: view.getUint16(66, true),
    logLengthBytes: view.getUint32(68, true),
    logOffsetBytes: Number(view.getBigUint64(72, true)),
  };
}

/** The text of a GUID. */
export function guidAt(view: DataView, at: number): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");
  const bytes = Array.from({ length: 8 }, (_, i) => hex(view.getUint8(at + 8 + i), 2)).join("");
  return `${hex(view.getUint32(at, true), 8)}-${hex(view.getUint16(at + 4, true), 4)}-` +
    `${hex(view.getUint16(at + 6, true), 4)}-${bytes.slice(0, 4)}-${bytes.slice(4)}`;
}

/** A GUID of zeros. */
export const NO_GUID = "00000000-0000-0000-0000-000000000000";

/** Text of four or eight bytes, such as a signature. */
export function textAt(view: DataView, at: number, length: number): string {
  return String.fromCharCode(...Array.from({ length }, (_, i) => view.getUint8(at + i)));
}

/** UTF-16 text. */
export function wideTextAt(bytes: Uint8Array, at: number, length: number): string {
  return new TextDecoder("utf-16le").decode(bytes.subarray(at, at + length));
}
