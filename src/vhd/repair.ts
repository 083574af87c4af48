import { osStorage, type Storage } from "../files/storage.ts";
import { batmapBytes } from "./format/batmap.ts";
import { allSet } from "./format/bitmap.ts";
import { HD_FOOTER_SIZE } from "./format/footer.ts";
import { generateUuid, isNullUuid } from "./format/uuid.ts";
import { clearImpossible, emptyBatmap, noteFull, writeBatmap } from "./image/batmap_writer.ts";
import { isAllocated, readBitmap } from "./image/block.ts";
import { readFooterBytes } from "./image/footer_reader.ts";
import { updateFooters } from "./image/footer_writer.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { writeFooters } from "./write.ts";

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
    // The batmap may be given room behind the old footer: that moves first.
    const grows = image.batmapFault !== null;
    if (image.footerSource === "primary" && !grows) updateFooters(image);
    else writeFooters(image);
    image.file.sync();
    if (image.batmap?.dirty) writeBatmap(image);
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
  if (image.batmapFault !== null) return remakeBatmap(image);
  const cleared = clearImpossible(image);
  return cleared === 0
    ? []
    : [`cleared ${cleared} bits of the batmap, of blocks that are not there`];
}

/** Makes the map anew, and where there is no usable header, that too: behind the BAT. */
function remakeBatmap(image: VhdImage): string[] {
  if (image.header === null) return [];
  const old = image.batmap;
  if (old === null || old.bits.length === 0) {
    const fresh = emptyBatmap(image.header, batmapBytes(image.sizeBytes));
    const { marker, keyhash } = old?.header ?? fresh.header;
    image.batmap = { ...fresh, header: { ...fresh.header, marker, keyhash } };
  }
  for (let block = 0; block < image.blocks; block++) {
    const full = isAllocated(image, block) &&
      allSet(readBitmap(image, block), image.sectorsPerBlock);
    noteFull(image, block, full);
  }
  return ["made the batmap anew from the blocks' bitmaps"];
}
