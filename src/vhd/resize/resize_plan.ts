import { Errno, SystemError } from "../../../ffi/errno.ts";
import { batBytes, DD_BLK_UNUSED } from "../format/bat.ts";
import { BATMAP_HEADER_SIZE, batmapBytes } from "../format/batmap.ts";
import { HD_FOOTER_SIZE } from "../format/footer.ts";
import { DD_HEADER_SIZE } from "../format/header.ts";
import type { VhdImage } from "../image/image.ts";
import { footerOffsetOf } from "./journal.ts";
import type { ByteRange } from "../format/journal_format.ts";
import { placeOfNewBlock } from "../image/allocation.ts";
import { blockEnd, blocksOf } from "../format/layout.ts";
import { locatorSpaceBytes, PLAT_CODE_NONE } from "../format/locator.ts";
import { paddedBytes, sectorsOf, VHD_SECTOR_SIZE } from "../format/units.ts";

/** A block and its new place. */
export interface BlockMove {
  readonly block: number;
  readonly toSector: number;
}

/** The layout of a dynamic or differencing image after the change. */
export interface ResizePlan {
  readonly sizeBytes: number;
  readonly batEntries: number;
  /** Null in an image without a batmap. */
  readonly batmap: { readonly offsetBytes: number; readonly sectors: number } | null;
  /** Byte offset of each of the header's locators, including unused ones. */
  readonly locatorOffsets: readonly number[];
  /** The first byte behind the metadata at the front. */
  readonly endOfHeadersBytes: number;
  readonly moves: readonly BlockMove[];
  /** The new blocks of zeros, and their places behind all others. */
  readonly zeroBlocks: readonly BlockMove[];
  readonly footerOffsetBytes: number;
  /**
   * The ranges that are overwritten, besides the blocks' new places and everything behind the
   * footer.
   */
  readonly overwritten: readonly ByteRange[];
}

/**
 * Plans the change of an image to another size, without changing it. The BAT keeps its start. The
 * metadata behind it moves back, and the blocks behind that move to the end, followed by blocks of zeros.
 *
 * @param options.sizeBytes Whole blocks, or the current size.
 * @param options.zeroBlocks Whole blocks that will hold zeros of their own.
 * @param options.locatorSpaces Space for the name of each of the header's locators; the current
 * space by default.
 * @throws {SystemError} EINVAL when the metadata is not in the usual order; ENOSPC on a block
 * device that is too small.
 */
export function planResize(
  image: VhdImage,
  { sizeBytes, zeroBlocks = [], locatorSpaces }: {
    sizeBytes: number;
    zeroBlocks?: readonly number[];
    locatorSpaces?: readonly number[];
  },
): ResizePlan {
  if (image.batmap !== null && image.batmap.bits.length === 0) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot resize ${image.path}: its batmap is damaged; run vhd-util repair first`,
    );
  }
  const batEntries = Math.max(declaredEntries(image), blocksOf(sizeBytes, image.blockSizeBytes));
  const spaces = locatorSpaces ?? image.header?.locators.map(locatorSpaceBytes) ?? [];
  const layout = layMetadata(image, { sizeBytes, batEntries, spaces });
  const placed = placeBlocks(image, layout.endOfHeadersBytes, zeroBlocks);
  const { endSector } = placed;
  const { file } = image;
  const endBytes = Math.max(endSector * VHD_SECTOR_SIZE, layout.endOfHeadersBytes);
  const footerOffsetBytes = file.isBlockDevice
    ? footerOffsetOf(image)
    : Math.max(footerOffsetOf(image), endBytes);
  if (footerOffsetBytes < endBytes) {
    throw new SystemError(
      Errno.ENOSPC,
      `Cannot resize ${image.path}: the device must have ${
        endBytes + HD_FOOTER_SIZE
      } bytes at least`,
    );
  }
  const lengthBytes = layout.endOfHeadersBytes - image.batOffsetBytes;
  const overwritten = [{ offsetBytes: image.batOffsetBytes, lengthBytes }];
  return { sizeBytes, batEntries, ...layout, ...placed, footerOffsetBytes, overwritten };
}

function declaredEntries({ header }: VhdImage): number {
  return header?.maxBatEntries ?? 0;
}

type Layout = Pick<ResizePlan, "batmap" | "locatorOffsets" | "endOfHeadersBytes">;

function layMetadata(
  image: VhdImage,
  { sizeBytes, batEntries, spaces }: {
    sizeBytes: number;
    batEntries: number;
    spaces: readonly number[];
  },
): Layout {
  const { header, batmap, batOffsetBytes } = image;
  const locators = header?.locators ?? [];
  const oldMapBytes = (batmap?.header.batmapSectors ?? 0) * VHD_SECTOR_SIZE;
  const fits = batBytes(batEntries) === batBytes(declaredEntries(image)) &&
    (batmap === null || batmapBytes(sizeBytes, image.blockSizeBytes) <= oldMapBytes) &&
    locators.every((locator, i) => spaces[i] <= locatorSpaceBytes(locator));
  if (fits) {
    return {
      batmap: batmap && { offsetBytes: batmap.offsetBytes, sectors: oldMapBytes / VHD_SECTOR_SIZE },
      locatorOffsets: locators.map(({ dataOffset }) => Number(dataOffset)),
      endOfHeadersBytes: image.endOfHeadersBytes,
    };
  }
  if (Number(image.footer.dataOffset) + DD_HEADER_SIZE > batOffsetBytes) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot resize ${image.path}: its header lies behind its block table, which must grow`,
    );
  }
  let end = batOffsetBytes + batBytes(batEntries);
  let newMap: Layout["batmap"] = null;
  if (batmap !== null) {
    const mapBytes = Math.max(oldMapBytes, paddedBytes(Math.ceil(batEntries / 8)));
    newMap = { offsetBytes: end + BATMAP_HEADER_SIZE, sectors: mapBytes / VHD_SECTOR_SIZE };
    end += BATMAP_HEADER_SIZE + mapBytes;
  }
  const locatorOffsets = locators.map((locator, i) => {
    const offsetBytes = Number(locator.dataOffset);
    const stays = offsetBytes < batOffsetBytes && spaces[i] <= locatorSpaceBytes(locator);
    if (locator.code === PLAT_CODE_NONE || stays) return offsetBytes;
    const place = end;
    end += spaces[i];
    return place;
  });
  const endOfHeadersBytes = Math.max(end, image.endOfHeadersBytes);
  return { batmap: newMap, locatorOffsets, endOfHeadersBytes };
}

/**
 * Plans places at the end for blocks that start in front of `freeBytes`, in file order, and for new
 * blocks behind them.
 */
function placeBlocks(
  image: VhdImage,
  freeBytes: number,
  newBlocks: readonly number[],
): { moves: BlockMove[]; zeroBlocks: BlockMove[]; endSector: number } {
  const { bat, file } = image;
  const freeSector = sectorsOf(freeBytes);
  const inTheWay: number[] = [];
  for (let block = 0; block < bat.length; block++) {
    if (bat[block] !== DD_BLK_UNUSED && bat[block] < freeSector) inTheWay.push(block);
  }
  inTheWay.sort((a, b) => bat[a] - bat[b]);
  // Data that a file may hold between its last block and its footer is kept.
  const footerSector = Math.floor(footerOffsetOf(image) / VHD_SECTOR_SIZE);
  let endSector = file.isBlockDevice ? image.endOfDataSector : footerSector;
  endSector = Math.max(endSector, freeSector);
  const place = (block: number): BlockMove => {
    const toSector = placeOfNewBlock(image, block, endSector);
    endSector = blockEnd(image, toSector);
    return { block, toSector };
  };
  const moves = inTheWay.map(place);
  const zeroBlocks = newBlocks.map(place);
  return { moves, zeroBlocks, endSector: moves.length + zeroBlocks.length > 0 ? endSector : 0 };
}
