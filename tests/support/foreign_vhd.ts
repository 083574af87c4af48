/**
 * VHD images in the layout of other programs: no batmap, no gaps between the structures, any block
 * size, arbitrary locators.
 *
 * @module
 */

import { newFooter } from "../../src/vhd/create.ts";
import {
  encodeFooter,
  type Footer,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
} from "../../src/vhd/format/footer.ts";
import { type DynamicHeader, emptyHeader, encodeHeader } from "../../src/vhd/format/header.ts";
import { encodeLocation, encodeParentName, NO_LOCATOR } from "../../src/vhd/format/locator.ts";
import { paddedBytes } from "../../src/vhd/format/units.ts";
import type { Storage } from "../../src/files/storage.ts";
import { putFile } from "./vhd.ts";

const SECTOR = 512;
const BAT_OFFSET = 1536;

/** A locator of a foreign image. */
export interface ForeignLocator {
  readonly code: number;
  /** A path with slashes; `bytes` for a name that a path cannot express. */
  readonly path?: string;
  readonly bytes?: Uint8Array;
  /** The value in the entry, where it is to be wrong. */
  readonly dataSpace?: number;
  readonly dataLength?: number;
  readonly dataOffset?: bigint;
}

/** The parts of a foreign image. */
export interface ForeignImage {
  readonly sizeBytes?: number;
  readonly blockSizeBytes?: number;
  /** The letter that fills each allocated block. */
  readonly blocks?: Readonly<Record<number, string>>;
  readonly parent?: { readonly uuid: Uint8Array; readonly name: string };
  readonly locators?: readonly ForeignLocator[];
  /** Changes the header before its checksum is computed. */
  readonly header?: (header: DynamicHeader) => unknown;
  readonly footer?: (footer: Footer) => void;
  readonly batEntries?: number;
  /** Unused room in front of the footer. */
  readonly slackSectors?: number;
}

/** Writes a foreign image; returns its UUID. */
export function putForeignImage(
  storage: Storage,
  path: string,
  wanted: ForeignImage,
): Uint8Array<ArrayBuffer> {
  const { sizeBytes = 4 << 20, blockSizeBytes = 65536, blocks = {}, parent } = wanted;
  const footer = newFooter(parent === undefined ? HD_TYPE_DYNAMIC : HD_TYPE_DIFF, sizeBytes);
  footer.creatorApplication = "win ";
  footer.creatorVersion = 0x000a_0000;
  wanted.footer?.(footer);
  const header = emptyHeader();
  header.tableOffset = BigInt(BAT_OFFSET);
  header.maxBatEntries = wanted.batEntries ?? sizeBytes / blockSizeBytes;
  header.blockSize = blockSizeBytes;
  if (parent !== undefined) {
    header.parentUuid = parent.uuid;
    header.parentName = encodeParentName(parent.name);
  }
  const parts: [number, Uint8Array][] = [];
  let end = BAT_OFFSET + paddedBytes(header.maxBatEntries * 4);
  header.locators = Array.from({ length: 8 }, (_, i) => {
    const locator = wanted.locators?.[i];
    if (locator === undefined) return NO_LOCATOR;
    const bytes = locator.bytes ?? encodeLocation(locator.code, locator.path ?? "./none");
    const dataOffset = BigInt(end);
    parts.push([end, bytes]);
    end += paddedBytes(bytes.length);
    const space = paddedBytes(bytes.length);
    return {
      dataSpace: space,
      dataLength: bytes.length,
      reserved: 0,
      dataOffset,
      ...pick(locator),
      code: locator.code,
    };
  });
  wanted.header?.(header);
  const bat = new Uint8Array(paddedBytes(header.maxBatEntries * 4)).fill(0xff);
  const view = new DataView(bat.buffer);
  const bitmapBytes = paddedBytes(blockSizeBytes / SECTOR / 8);
  for (const [block, letter] of Object.entries(blocks)) {
    view.setUint32(Number(block) * 4, end / SECTOR);
    const bytes = new Uint8Array(bitmapBytes + blockSizeBytes).fill(letter.charCodeAt(0));
    bytes.fill(0, 0, bitmapBytes);
    bytes.fill(0xff, 0, Math.ceil(blockSizeBytes / SECTOR / 8));
    parts.push([end, bytes]);
    end += bytes.length;
  }
  end += (wanted.slackSectors ?? 0) * SECTOR;
  const file = new Uint8Array(end + SECTOR);
  file.set(encodeFooter(footer));
  file.set(encodeHeader(header), SECTOR);
  file.set(bat, BAT_OFFSET);
  for (const [at, bytes] of parts) file.set(bytes, at);
  file.set(encodeFooter(footer), end);
  putFile(storage, path, file);
  return new Uint8Array(footer.uuid);
}

function pick(locator: ForeignLocator): Partial<ForeignLocator> {
  const { dataSpace, dataLength, dataOffset } = locator;
  return {
    ...(dataSpace === undefined ? {} : { dataSpace }),
    ...(dataLength === undefined ? {} : { dataLength }),
    ...(dataOffset === undefined ? {} : { dataOffset }),
  };
}
