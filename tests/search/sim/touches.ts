/**
 * Which operations of a disk touched the bytes that decide what a sector reads as. A replay ends
 * with them.
 *
 * @module
 */
import {
  describeOperation,
  type DiskOperation,
  type Verdict,
} from "../../../src/testing/disk_operation.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { DD_BLK_UNUSED } from "../../../src/vhd/format/bat.ts";
import { bitmapOffset, dataOffset } from "../../../src/vhd/image/block.ts";
import { openVhd } from "../../../src/vhd/image/image.ts";
import { Qcow2Reader } from "../../support/qcow2_reader.ts";
import { formatNamed } from "./formats/registry.ts";
import type { ImageModel } from "./model.ts";
import { SECTOR_BYTES } from "./stamps.ts";

/** A range of a file that matters. */
interface Place {
  readonly what: string;
  readonly path: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** The operations of a world, in order. */
export class Touches {
  readonly #operations: { readonly operation: DiskOperation; readonly line: string }[] = [];

  add(operation: DiskOperation, verdict: Verdict): void {
    this.#operations.push({ operation, line: describeOperation(operation, verdict) });
  }

  /** The operations that changed a sector of an image, or of those below it, a line each. */
  explain(disk: SimulatedDisk, top: ImageModel, sector: number): string[] {
    const lines: string[] = [];
    for (let image: ImageModel | null = top; image !== null; image = image.parent) {
      for (const place of placesOf(disk, image, sector)) {
        const { what, path, offsetBytes, lengthBytes } = place;
        lines.push(`${what} of sector ${sector}: ${path} ${offsetBytes}+${lengthBytes}`);
        for (const { operation, line } of this.#operations) {
          if (touches(operation, place)) lines.push(`  ${line}`);
        }
      }
    }
    return lines;
  }
}

function touches(operation: DiskOperation, { path, offsetBytes, lengthBytes }: Place): boolean {
  const { kind } = operation;
  if (operation.path !== path || (kind !== "write" && kind !== "punch" && kind !== "truncate")) {
    return false;
  }
  const start = operation.offsetBytes;
  const end = kind === "truncate" ? Infinity : start + operation.lengthBytes;
  return start < offsetBytes + lengthBytes && offsetBytes < end;
}

function placesOf(disk: SimulatedDisk, { path, format }: ImageModel, sector: number): Place[] {
  const flat = {
    what: "data",
    path,
    offsetBytes: sector * SECTOR_BYTES,
    lengthBytes: SECTOR_BYTES,
  };
  const { parentAs } = formatNamed(format);
  if (parentAs === "raw") return [flat];
  if (parentAs === "qcow2") {
    const reader = new Qcow2Reader(disk, path);
    const offsetBytes = reader.placeOf(sector);
    reader.close();
    return offsetBytes < 0 ? [] : [{ ...flat, offsetBytes }];
  }
  // What is wrong with a QCOW is found by its check.
  if (parentAs === "qcow") return [];
  const image = openVhd(path, { storage: disk, lenient: true, ignoreDisabled: true });
  image.close();
  if (image.type === "fixed") return [flat];
  const block = Math.floor(sector / image.sectorsPerBlock);
  const inBlock = sector - block * image.sectorsPerBlock;
  const entry = { path, offsetBytes: image.batOffsetBytes + 4 * block, lengthBytes: 4 };
  const places: Place[] = [{ what: `BAT entry ${block}`, ...entry }];
  if (block >= image.bat.length || image.bat[block] === DD_BLK_UNUSED) return places;
  const bit = { path, offsetBytes: bitmapOffset(image, block) + (inBlock >> 3), lengthBytes: 1 };
  const at = dataOffset(image, block) + inBlock * SECTOR_BYTES;
  return [...places, { what: "bit", ...bit }, { ...flat, offsetBytes: at }];
}
