import { osStorage, type Storage } from "../files/storage.ts";
import { batmapBytes } from "./format/batmap.ts";
import { allSet } from "./format/bitmap.ts";
import { HD_FOOTER_SIZE } from "./format/footer.ts";
import { generateUuid, isNullUuid } from "./format/uuid.ts";
import { clearImpossible, emptyBatmap, noteFull, writeBatmap } from "./image/batmap_writer.ts";
import { isAllocated, readBitmap } from "./image/block.ts";
import { readFooterBytes } from "./image/footer_reader.ts";
import { updateFooters } from "./image/footer_writer.ts";
import { completeHeader } from "./image/header_writer.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { writeFooters } from "./write.ts";

/** Options of a repair. */
export interface RepairOptions {
  readonly storage?: Storage;
  /** Use the backup footer even if the one at the end is valid. */
  readonly useBackupFooter?: boolean;
}

/**
 * Rebuilds metadata from the rest of an image: a footer that is missing, damaged or unlike its
 * copy, a missing UUID, and a batmap with a wrong checksum or with bits of unallocated blocks.
 *
 * A header that was torn by a power cut during a change is completed from its copy, if there is
 * one.
 *
 * @returns A line for each repair.
 * @throws {VhdFormatError} for damage that only a guess could repair, and errors of the file
 * system. The image is unchanged then.
 */
export function repairImage(path: string, options: RepairOptions = {}): string[] {
  const { storage = osStorage, useBackupFooter = false } = options;
  const headerLines = repairHeader(storage, path, useBackupFooter);
  const image = openVhd(path, { storage, readOnly: false, useBackupFooter });
  try {
    const repairs = [...headerLines, ...repairBatmap(image), ...describeFooters(image)];
    if (isNullUuid(image.footer.uuid)) {
      image.footer.uuid = generateUuid();
      repairs.push("set a new UUID");
    }
    // A new batmap may take the place of the footer, so the footer moves first.
    const grows = image.batmapFault !== null;
    if (image.footerSource === "primary" && !grows) updateFooters(image);
    else writeFooters(image);
    image.file.sync();
    if (image.batmap?.dirty) writeBatmap(image);
    image.file.sync();
    return repairs;
  } finally {
    image.close();
  }
}

/**
 * Completes an interrupted change of the header. Without a valid header the image does not open.
 */
function repairHeader(storage: Storage, path: string, useBackupFooter: boolean): string[] {
  const file = storage.open(path, "write");
  try {
    const completed = completeHeader(file, { useBackupFooter });
    return completed ? ["completed a change of the header that was broken off"] : [];
  } finally {
    file.close();
  }
}

function describeFooters(image: VhdImage): string[] {
  const { file, footerSource } = image;
  if (footerSource !== "primary") {
    return [`wrote the footer from the ${footerSource} footer`];
  }
  if (image.type === "fixed") return [];
  const primary = readFooterBytes(file, file.sizeBytes() - HD_FOOTER_SIZE);
  const backup = readFooterBytes(file, 0);
  const same = primary !== null && backup !== null &&
    primary.every((byte, i) => byte === backup[i]);
  return same ? [] : ["wrote the backup footer from the footer at the end"];
}

function repairBatmap(image: VhdImage): string[] {
  if (image.batmapFault !== null) return remakeBatmap(image);
  const cleared = clearImpossible(image);
  return cleared === 0
    ? []
    : [`cleared ${cleared} bits of the batmap, for blocks that are not allocated`];
}

/** Rebuilds the batmap. Its header goes behind the BAT when the old one cannot be used. */
function remakeBatmap(image: VhdImage): string[] {
  if (image.header === null) return [];
  const old = image.batmap;
  if (old === null || old.bits.length === 0) {
    const fresh = emptyBatmap(
      image.header,
      batmapBytes(image.sizeBytes, image.blockSizeBytes),
    );
    const { marker, keyhash } = old?.header ?? fresh.header;
    image.batmap = { ...fresh, header: { ...fresh.header, marker, keyhash } };
  }
  for (let block = 0; block < image.blocks; block++) {
    const full = isAllocated(image, block) &&
      allSet(readBitmap(image, block), image.sectorsPerBlock);
    noteFull(image, block, full);
  }
  return ["rebuilt the batmap from the bitmaps of the blocks"];
}
