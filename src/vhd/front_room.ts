import { DD_BLK_UNUSED } from "./format/bat.ts";
import { encodeFooter, HD_FOOTER_SIZE } from "./format/footer.ts";
import { blockEnd } from "./format/layout.ts";
import { PublishOrder } from "./format/publish_order.ts";
import { sectorsOf, VHD_SECTOR_SIZE } from "./format/units.ts";
import type { VhdImage } from "./image/image.ts";
import { placeOfNewBlock, requireRoom } from "./image/allocation.ts";
import { publishBlocks, syncBlocks } from "./write.ts";

interface Move {
  readonly block: number;
  readonly toSector: number;
}

/**
 * Frees space behind the metadata of an image, for more metadata. Blocks in that space are copied
 * behind the end of the file first, with a new footer behind them. The old footer stays in its
 * place until then, so the image opens after an interruption at any moment, and a full disk changes
 * nothing.
 *
 * @returns Byte offset of the space.
 * @throws {SystemError} ENOSPC, EFBIG, or errors of the file system. The image is unchanged then.
 */
export function makeFrontRoom(image: VhdImage, lengthBytes: number): number {
  const { file } = image;
  const start = sectorsOf(image.endOfHeadersBytes);
  const end = start + sectorsOf(lengthBytes);
  const oldBytes = file.sizeBytes();
  const isDevice = file.isBlockDevice;
  const behind = Math.max(end, image.endOfDataSector, isDevice ? 0 : sectorsOf(oldBytes));
  const { moves, endSector } = planMoves(image, { start, end, behind });
  if (moves.length > 0) file.refuseReaders();
  requireRoom(image, endSector);
  const footerSector = sectorsOf(oldBytes - HD_FOOTER_SIZE);
  const order = new PublishOrder();
  const copied = new Map<number, number>();
  try {
    copyBlocks(image, moves);
    for (const { block } of moves) copied.set(block, order.written());
    if (!isDevice && (moves.length > 0 || end > footerSector)) {
      file.writeAt(encodeFooter(image.footer), endSector * VHD_SECTOR_SIZE);
    }
    syncBlocks(image, order);
  } catch (error) {
    if (!isDevice && file.sizeBytes() > oldBytes) file.truncate(oldBytes);
    throw error;
  }
  for (const { block, toSector } of moves) image.bat[block] = toSector;
  publishBlocks(image, order, copied);
  file.sync();
  image.endOfHeadersBytes = end * VHD_SECTOR_SIZE;
  image.endOfDataSector = Math.max(image.endOfDataSector, endSector);
  return start * VHD_SECTOR_SIZE;
}

/**
 * Lists the blocks that overlap a range of sectors, with their new places behind the end of the
 * file.
 */
function planMoves(
  image: VhdImage,
  { start, end, behind }: { start: number; end: number; behind: number },
): { moves: Move[]; endSector: number } {
  const { bat } = image;
  const moves: Move[] = [];
  let endSector = behind;
  for (let block = 0; block < bat.length; block++) {
    const sector = bat[block];
    if (sector === DD_BLK_UNUSED || sector >= end || blockEnd(image, sector) <= start) continue;
    const toSector = placeOfNewBlock(image, block, endSector);
    endSector = blockEnd(image, toSector);
    moves.push({ block, toSector });
  }
  return { moves, endSector };
}

function copyBlocks(image: VhdImage, moves: readonly Move[]): void {
  const { bat, bitmapSectors, file, sectorsPerBlock } = image;
  const bytes = new Uint8Array((bitmapSectors + sectorsPerBlock) * VHD_SECTOR_SIZE);
  for (const { block, toSector } of moves) {
    bytes.fill(0, file.readAt(bytes, bat[block] * VHD_SECTOR_SIZE));
    file.writeAt(bytes, toSector * VHD_SECTOR_SIZE);
  }
}
