import { sectorsOf } from "./units.ts";

/** A disk geometry for BIOSes. */
export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

/**
 * The geometry of a disk of `sizeBytes`, by the calculation in the appendix of the VHD
 * specification. It may describe fewer sectors than the disk has, never more.
 */
export function geometryOfSize(sizeBytes: number): Geometry {
  const sectors = Math.min(Math.max(1, sectorsOf(sizeBytes)), 65535 * 16 * 255);
  if (sectors >= 65535 * 16 * 63) return geometry(sectors, 16, 255);
  const perHeadSet = Math.floor(sectors / 17);
  const heads = Math.max(4, Math.floor((perHeadSet + 1023) / 1024));
  if (perHeadSet < heads * 1024 && heads <= 16) return geometry(sectors, heads, 17);
  return Math.floor(sectors / 31) < 16 * 1024
    ? geometry(sectors, 16, 31)
    : geometry(sectors, 16, 63);
}

function geometry(sectors: number, heads: number, sectorsPerTrack: number): Geometry {
  const cylinders = Math.floor(Math.floor(sectors / sectorsPerTrack) / heads);
  return { cylinders, heads, sectorsPerTrack };
}

/** Packs a geometry into the footer's 32-bit field. */
export function packGeometry({ cylinders, heads, sectorsPerTrack }: Geometry): number {
  return ((cylinders << 16) | (heads << 8) | sectorsPerTrack) >>> 0;
}

/** Unpacks the footer's 32-bit field. */
export function unpackGeometry(packed: number): Geometry {
  return {
    cylinders: packed >>> 16,
    heads: (packed >>> 8) & 0xff,
    sectorsPerTrack: packed & 0xff,
  };
}
