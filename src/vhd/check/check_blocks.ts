import { BATMAP_OFFSETS } from "../format/batmap.ts";
import { allSet, runEnd, testBit } from "../format/bitmap.ts";
import {
  bitmapOffset,
  isAllocated,
  isMarkedFull,
  readBitmap,
  readBlockData,
} from "../image/block.ts";
import type { Findings } from "./findings.ts";
import { HD_FOOTER_SIZE } from "../format/footer.ts";
import type { VhdImage } from "../image/image.ts";
import type { ProgressListener } from "../../files/progress.ts";
import { endOfBlocksSector } from "../format/layout.ts";
import { eachBatFault } from "../image/validate.ts";
import { VHD_SECTOR_SIZE } from "../format/units.ts";

/** Checks the BAT: no block may overlap the metadata or another block, or reach past the end. */
export function checkBat(
  image: VhdImage,
  findings: Findings,
  { checkOverlaps }: { checkOverlaps: boolean },
): void {
  let unlisted = 0;
  let hasRoom = true;
  eachBatFault(image, (block, kind, other) => {
    hasRoom &&= findings.hasRoom("bat");
    if (!hasRoom) {
      unlisted++;
      return true;
    }
    const what = kind === "clobbers block" ? `${kind} ${other} (offset ${at(image, other)})` : kind;
    findings.error(
      `block ${block} (offset ${at(image, block)}) ${what}`,
      `bat[${block}]`,
      image.batOffsetBytes + block * 4,
    );
    return true;
  }, { checkOverlaps });
  findings.countErrors("bat", unlisted);
}

function at(image: VhdImage, block: number): string {
  return shortHex(image.bat[block]);
}

/**
 * Warns of unused bytes between the last block and the footer of a file, and of a file without a
 * footer that ends within its last block.
 */
export function checkSlack(image: VhdImage, findings: Findings): void {
  const endBytes = image.endOfDataSector * VHD_SECTOR_SIZE;
  const missingBytes = endOfBlocksSector(image) * VHD_SECTOR_SIZE - image.file.sizeBytes();
  if (missingBytes > 0) {
    const text = `the file ends ${missingBytes} bytes before the end of its last block; ` +
      "what is missing reads as zeros";
    findings.warning(text, "data", image.file.sizeBytes());
  }
  if (image.file.isBlockDevice || image.footerSource !== "primary") return;
  const slackBytes = image.file.sizeBytes() - HD_FOOTER_SIZE - endBytes;
  if (slackBytes <= 0) return;
  findings.warning(`${slackBytes} bytes past the end of data belong to nothing`, "data", endBytes);
}

/** Checks the batmap against the BAT. */
export function checkBatmap(image: VhdImage, findings: Findings): void {
  const { batmap, batmapFault } = image;
  if (batmapFault !== null) {
    const { field, offsetBytes, value, problem } = batmapFault.fault;
    // An image without a batmap header is valid: it has no map.
    if (batmap === null) {
      findings.warning("there is no batmap; repair makes one", field, offsetBytes);
    } else findings.error(`batmap is invalid: ${value} ${problem}`, field, offsetBytes);
  }
  if (batmap === null) return;
  if (batmap.header.batmapSectors * VHD_SECTOR_SIZE * 8 < (image.header?.maxBatEntries ?? 0)) {
    findings.error(
      "batmap is invalid: batmap-BAT size mismatch",
      "batmap.batmapSectors",
      batmap.headerOffsetBytes + BATMAP_OFFSETS.batmapSectors,
    );
  }
  for (let block = 0; block < image.blocks; block++) {
    if (!isMarkedFull(image, block) || isAllocated(image, block)) continue;
    if (!findings.hasRoom("batmap.bits")) {
      findings.countErrors("batmap.bits", 1);
      continue;
    }
    findings.error(
      `batmap shows unallocated block ${block} full`,
      `batmap.bits[${block}]`,
      batmap.offsetBytes + (block >>> 3),
    );
  }
}

/**
 * Reads every bitmap. A block that the batmap marks as full must have all bits. Data in a sector
 * without a bit is a warning: a power cut, or an error, between a write of data and that of its bit
 * leaves it. It is not read.
 */
export function checkBitmaps(
  image: VhdImage,
  findings: Findings,
  { onProgress }: { onProgress?: ProgressListener } = {},
): void {
  const data = new Uint8Array(image.blockSizeBytes);
  for (let block = 0; block < image.blocks; block++) {
    onProgress?.(block, image.blocks);
    if (!isAllocated(image, block)) continue;
    const bitmap = readBitmap(image, block);
    if (allSet(bitmap, image.sectorsPerBlock)) continue;
    if (isMarkedFull(image, block)) {
      findings.error(
        `batmap shows block ${block} full, its bitmap does not`,
        `bitmap[${block}]`,
        bitmapOffset(image, block),
      );
    }
    // On a block device, sectors without a bit hold what the device held before.
    if (!image.file.isBlockDevice) checkClearSectors(image, findings, { block, bitmap, data });
  }
}

function checkClearSectors(
  image: VhdImage,
  findings: Findings,
  { block, bitmap, data }: { block: number; bitmap: Uint8Array; data: Uint8Array<ArrayBuffer> },
): void {
  const words = new Int32Array(data.buffer);
  for (let sector = 0; sector < image.sectorsPerBlock;) {
    const first = sector;
    const end = runEnd(bitmap, sector, image.sectorsPerBlock);
    sector = end;
    if (testBit(bitmap, first)) continue;
    const clear = data.subarray(0, (end - first) * VHD_SECTOR_SIZE);
    readBlockData(image, clear, { block, sector: first });
    for (let i = 0; i < end - first; i++) {
      if (isZeroSector(words, i)) continue;
      if (!findings.hasRoom("data")) {
        findings.countWarning("data");
        continue;
      }
      const at = first + i;
      findings.warning(
        `sector ${shortHex(at)} of block ${shortHex(block)} has data where bitmap is clear`,
        `data[${block}]`,
        bitmapOffset(image, block) + (image.bitmapSectors + at) * VHD_SECTOR_SIZE,
      );
    }
  }
}

function isZeroSector(words: Int32Array, sector: number): boolean {
  const end = (sector + 1) * 128;
  for (let i = sector * 128; i < end; i++) if (words[i] !== 0) return false;
  return true;
}

function shortHex(value: number): string {
  return `0x${value.toString(16)}`;
}
