import { SECTOR_BYTES } from "../driver/driver.ts";
import type { DiskKey } from "../vhd/key.ts";
import type { RateLimits } from "./rate_limits.ts";
import type { RetryLimits } from "./retry.ts";

/** How a device's image is opened. */
export interface OpenOptions {
  readonly readOnly?: boolean;
  /** Past the page cache where the filesystem can (O_DIRECT); the default. */
  readonly direct?: boolean;
  readonly retry?: Partial<RetryLimits>;
  /** Keep in the image what is read from the images below it. */
  readonly localCache?: boolean;
  /**
   * Names what is read below the image instead of its own parent, each time when images are opened;
   * null for its own parent. Throws `SystemError`.
   */
  readonly findParent?: () => string | null;
  /** The key of an encrypted image; the device wipes it when it is closed. */
  readonly key?: DiskKey;
  /** The file of a log of changed blocks, in which each change is noted. */
  readonly changedBlocks?: string;
  /** Name of a secondary image, to which writes go as well. */
  readonly secondary?: string;
  /** Whether they go there only when the image is full. */
  readonly standby?: boolean;
  /** Whether the device goes on without a secondary image that cannot be opened. */
  readonly mayLackSecondary?: boolean;
  /** What the device does in a second at most; without it, there are no limits. */
  readonly limits?: RateLimits;
}

/** A disk whose images are not open, but known to its users. */
export interface PausedDisk {
  readonly name: string;
  readonly options: OpenOptions;
  /** The size that users know. */
  readonly sectors: number;
}

/** What changes when a device resumes. */
export interface ResumeOptions {
  /** Another log of changed blocks, or null for none; without it, the one that the device had. */
  readonly changedBlocks?: string | null;
  /** Another secondary image, or null for none; without it, the one that the device had. */
  readonly secondary?: string | null;
}

/** What a device looks like to its users. */
export interface VbdGeometry {
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  /** VDISK_* bits of Xen's protocol: 0, or `VDISK_READONLY`. */
  readonly info: number;
}

/** The options of a device that goes on with changed ones. */
export function resumed(
  options: OpenOptions,
  { changedBlocks, secondary }: ResumeOptions,
): OpenOptions {
  return {
    ...options,
    ...(changedBlocks === undefined ? {} : { changedBlocks: changedBlocks ?? undefined }),
    ...(secondary === undefined ? {} : { secondary: secondary ?? undefined }),
  };
}

/** VDISK_READONLY of xen/interface/io/blkif.h. */
const VDISK_READONLY = 4;

/** What a device looks like. */
export function geometryOf(
  { sectors, readOnly }: { readonly sectors: number; readonly readOnly: boolean },
): VbdGeometry {
  return { sectors, sectorSizeBytes: SECTOR_BYTES, info: readOnly ? VDISK_READONLY : 0 };
}
