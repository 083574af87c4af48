import {
  type DiskParameters,
  UBLK_ATTR_FUA,
  UBLK_ATTR_READ_ONLY,
  UBLK_ATTR_VOLATILE_CACHE,
} from "../../../ffi/ublk.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { MOST_SECTORS } from "./limits.ts";

const PHYSICAL_BLOCK_BYTES = 4096;
/** The longest discard and zeroing: 2 GiB. The VBD does them in steps. */
const MOST_DISCARD_SECTORS = 1 << 22;

/** The parameters of a VBD's disk. */
export function diskParameters(
  { sectors, readOnly }: Pick<Vbd, "sectors" | "readOnly">,
): DiskParameters {
  const mostDiscardSectors = readOnly ? 0 : MOST_DISCARD_SECTORS;
  const cache = UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA;
  return {
    attributes: readOnly ? cache | UBLK_ATTR_READ_ONLY : cache,
    logicalBlockBytes: SECTOR_BYTES,
    physicalBlockBytes: PHYSICAL_BLOCK_BYTES,
    sectors,
    mostSectors: MOST_SECTORS,
    discardGranularityBytes: PHYSICAL_BLOCK_BYTES,
    mostDiscardSectors,
    mostZeroSectors: mostDiscardSectors,
  };
}
