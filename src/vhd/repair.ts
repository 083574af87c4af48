import { DD_BLK_UNUSED } from "./format/bat.ts";
import { allSet, clearBit, setBit, testBit } from "./format/bitmap.ts";
import { isAllocated, readBitmap } from "./image/block.ts";
import { updateFooters } from "./image/footer_writer.ts";
import { HD_FOOTER_SIZE } from "./format/footer.ts";
import { readFooterBytes } from "./image/footer_reader.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { osStorage, type Storage } from "../files/storage.ts";
import { generateUuid, isNullUuid } from "./format/uuid.ts";
import { writeBatmap, writeFooters } from "./write.ts";

/** How an image is repaired. */
export interface RepairOptions {
  readonly storage?: Storage;
  /** Go by the backup footer even if the one at the end is good. */
  readonly useBackupFooter?: boolean;
}

/**
 * Mends what follows from the rest of an image: a footer that is missing, broken or unlike its copy,
 * a missing UUID, a batmap whose checksum is wrong or that has blocks as full that are not there.
 *
 * @returns A line for each thing that was mended.
 * @throws {VhdFormatError} for damage that only a guess could mend; what the file system says. The
 * image has not been touched then.
 */
export function repairImage(path: string, options: RepairOptions = {}): string[] {
  const { storage = osStorage, useBackupFooter = false } = options;
  const image = openVhd(path, { storage, readOnly: false, useBackupFooter });
  try {
    const mended = [...repairBatmap(image), ...describeFooters(image)];
    if (isNullUuid(image.footer.uuid)) {
      image.footer.uuid = generateUuid();
      mended.push("gave the image a UUID");
    }
    if (image.batmap?.dirty) writeBatmap(image);
    image.file.sync();
    if (image.footerSource === "primary") updateFooters(image);
    else writeFooters(image);
    image.file.sync();
    return mended;
  } finally {
    image.close();
  }
}

function describeFooters(image: VhdImage): string[] {
  const { file, footerSource } = image;
  if (footerSource !== "primary") {
    return [`wrote the footer anew, as the ${footerSource} one has it`];
  }
  if (image.type === "fixed") return [];
  const primary = readFooterBytes(file, file.sizeBytes() - HD_FOOTER_SIZE);
  const backup = readFooterBytes(file, 0);
  const same = primary !== null && backup !== null &&
    primary.every((byte, i) => byte === backup[i]);
  return same ? [] : ["wrote the backup footer anew, as the one at the end has it"];
}

function repairBatmap(image: VhdImage): string[] {
  const { batmap } = image;
  if (batmap === null) return [];
  if (image.batmapFault !== null) {
    for (let block = 0; block < image.blocks && block < batmap.bits.length * 8; block++) {
      if (!isAllocated(image, block)) continue;
      if (allSet(readBitmap(image, block), image.sectorsPerBlock)) setBit(batmap.bits, block);
    }
    batmap.dirty = true;
    return ["made the batmap anew from the blocks' bitmaps"];
  }
  let cleared = 0;
  for (let block = 0; block < batmap.bits.length * 8; block++) {
    if (!testBit(batmap.bits, block)) continue;
    if (block < image.blocks && image.bat[block] !== DD_BLK_UNUSED) continue;
    clearBit(batmap.bits, block);
    cleared++;
  }
  if (cleared === 0) return [];
  batmap.dirty = true;
  return [`cleared ${cleared} bits of the batmap, of blocks that are not there`];
}
