/**
 * What a disk reads as, by each of the ways that read it.
 *
 * @module
 */
import { SystemError } from "../../../../ffi/errno.ts";
import type { Storage } from "../../../../src/files/storage.ts";
import { isEncrypted } from "../../../../src/bulk/layers.ts";
import { openChain } from "../../../../src/vhd/image/chain.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { chainExtents } from "../../../../src/vhd/image/extents.ts";
import { readRange } from "../../../../src/vhd/image/read.ts";
import type { SimulatedDevice } from "../../../support/sim.ts";
import { attempt, hold } from "./finding.ts";
import type { Stage } from "./stage.ts";

const SECTOR = 512;
/** A disk up to this size is read whole. */
const WHOLE_BYTES = 512 * 1024;
const PART_BYTES = 64 * 1024;

/** A part of a disk that is read. */
interface Part {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** The parts of a disk that are read: all of a small one; start, middle and end of a large one. */
export function partsOf(sizeBytes: number): Part[] {
  if (sizeBytes <= WHOLE_BYTES) return [{ offsetBytes: 0, lengthBytes: sizeBytes }];
  const middle = Math.floor(sizeBytes / 2 / SECTOR) * SECTOR;
  return [
    { offsetBytes: 0, lengthBytes: 4 * PART_BYTES },
    { offsetBytes: middle, lengthBytes: PART_BYTES },
    { offsetBytes: sizeBytes - PART_BYTES, lengthBytes: PART_BYTES },
  ];
}

/** What was read of a disk. */
export interface Content {
  readonly sizeBytes: number;
  /** The parts, one behind the other. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Whether an image of the chain is encrypted: the bytes are as they are in the files. */
  readonly isEncrypted: boolean;
}

/**
 * Reads a disk with the offline reader; returns the refusal of an image that it does not open.
 *
 * @param sizeBytes The parts to read are those of a disk of this size; by default, of its own.
 */
export function readOffline(
  storage: Storage,
  path: string,
  sizeBytes?: number,
): Content | SystemError {
  const chain = attempt(() => openChain(path, { storage }));
  if (chain instanceof SystemError) return chain;
  try {
    const own = chain.images[0].sizeBytes;
    const parts = partsOf(sizeBytes ?? own);
    const bytes = joined(parts, (into, { offsetBytes }) => {
      const lengthBytes = Math.max(0, Math.min(into.length, own - offsetBytes));
      if (lengthBytes > 0) readRange(chain, into.subarray(0, lengthBytes), offsetBytes);
    });
    return {
      sizeBytes: own,
      bytes,
      isEncrypted: chain.images.some(isEncrypted),
    };
  } finally {
    chain.close();
  }
}

/** What an image holds itself, without its parents; null for one that is not opened. */
export function readAlone(storage: Storage, path: string): Uint8Array<ArrayBuffer> | null {
  const image = attempt(() => openVhd(path, { storage }));
  if (image instanceof SystemError) return null;
  const alone = { images: [image], raw: null, depth: 1, close: () => image.close() };
  try {
    const parts = partsOf(image.sizeBytes);
    return joined(parts, (into, { offsetBytes }) => readRange(alone, into, offsetBytes));
  } finally {
    alone.close();
  }
}

function joined(
  parts: readonly Part[],
  read: (into: Uint8Array<ArrayBuffer>, part: Part) => void,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0));
  let at = 0;
  for (const part of parts) {
    read(bytes.subarray(at, at + part.lengthBytes), part);
    at += part.lengthBytes;
  }
  return bytes;
}

/** The largest request, in bytes. */
const REQUEST_BYTES = 512 * SECTOR;

/** Reads the parts of a disk that is being served. */
export function readServed(device: SimulatedDevice): Uint8Array<ArrayBuffer> {
  return joined(partsOf(device.vbd.sectors * SECTOR), (into, { offsetBytes, lengthBytes }) => {
    const reads: ReturnType<SimulatedDevice["read"]>[] = [];
    for (let at = 0; at < lengthBytes; at += REQUEST_BYTES) {
      const count = Math.min(REQUEST_BYTES, lengthBytes - at) / SECTOR;
      reads.push(device.read((offsetBytes + at) / SECTOR, count));
    }
    device.settle();
    for (const [i, { errno, data }] of reads.entries()) {
      hold(errno === 0 && data !== null, () => `A read at ${offsetBytes} ends with error ${errno}`);
      into.set(data, i * REQUEST_BYTES);
    }
  });
}

/** Requires that both are the same bytes, as far as both go and up to `lengthBytes`. */
export function requireSame(
  got: Uint8Array,
  wanted: Uint8Array,
  what: string,
  lengthBytes = Infinity,
): void {
  const length = Math.min(got.length, wanted.length, lengthBytes);
  const left = new Uint32Array(got.buffer, got.byteOffset, length / 4);
  const right = new Uint32Array(wanted.buffer, wanted.byteOffset, length / 4);
  for (let i = 0; i < left.length; i++) {
    if (left[i] !== right[i]) hold(false, `${what}: sector ${Math.floor(i / 128)} is another`);
  }
}

/** Requires that what a status request calls a hole reads as zeros. */
export function requireHolesAreZeros(device: SimulatedDevice, content: Content): void {
  if (content.sizeBytes > WHOLE_BYTES) return;
  const { sectors } = device.vbd;
  const outcome = device.status(0, sectors);
  device.settle();
  hold(outcome.errno === 0, () => `A status request ends with error ${outcome.errno}`);
  let sector = 0;
  for (const extent of outcome.extents ?? []) {
    const end = sector + Math.abs(extent);
    hold(end <= sectors, "An extent ends beyond the disk");
    if (extent < 0) requireZeros(content.bytes, sector, end, "a hole");
    sector = end;
  }
  hold(sector > 0, "A status request gives no extent");
}

/** Requires that the offline extents that no layer holds read as zeros. */
export function requireExtentsFit(storage: Storage, path: string, content: Content): void {
  if (content.sizeBytes > WHOLE_BYTES) return;
  const chain = openChain(path, { storage });
  try {
    let next = 0;
    for (const { sector, lengthSectors, layer } of chainExtents(chain)) {
      hold(sector === next && lengthSectors > 0, "Extents do not follow each other");
      next += lengthSectors;
      if (layer < 0) requireZeros(content.bytes, sector, next, "no layer's");
    }
    hold(next * SECTOR === content.sizeBytes, "Extents do not cover the disk");
  } finally {
    chain.close();
  }
}

function requireZeros(bytes: Uint8Array, sector: number, end: number, what: string): void {
  const words = new Uint32Array(bytes.buffer, sector * SECTOR, (end - sector) * SECTOR / 4);
  for (let i = 0; i < words.length; i++) {
    if (words[i] !== 0) hold(false, `Sectors ${sector} to ${end} are ${what}, not zeros`);
  }
}

/** The disk that is served, for reading; the refusal of an image that is not served. */
export function readLive(
  stage: Stage,
  path: string,
  offline: Content | null,
): Content | SystemError {
  const device = attempt(() => stage.serve(path, { readOnly: true }));
  if (device instanceof SystemError) return device;
  const bytes = readServed(device);
  if (offline !== null) requireHolesAreZeros(device, offline);
  const sizeBytes = device.vbd.sectors * SECTOR;
  const errno = stage.endService();
  hold(errno === 0, () => `Closing what was only read ends with error ${errno}`);
  return { sizeBytes, bytes, isEncrypted: false };
}
