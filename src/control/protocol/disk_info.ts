import { startMessage, viewOf } from "./message.ts";

/** The disk of an open image. */
export interface DiskInfo {
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  /** Bits of the Xen block interface's VDISK_* flags. */
  readonly info: number;
}

/** What a tapdisk can do with a guest's ring; the original sends 0. */
export const RingFeature = {
  /** Go on with a ring that another tapdisk served, or refuse to when that is not safe. */
  CONTINUES: 1,
  FLUSH: 2,
  DISCARD: 4,
  /** Requests of up to 256 segments. */
  INDIRECT: 8,
} as const;

/** All of `RingFeature`: those of this tapdisk. */
export const RING_FEATURES = RingFeature.CONTINUES | RingFeature.FLUSH | RingFeature.DISCARD |
  RingFeature.INDIRECT;

// The original's image ends before this field, which is zero in its messages.
const RING_FEATURES_AT = 24;

/** The union of `RingFeature` in the answer to `disk info`. */
export function decodeRingFeatures(message: Uint8Array): number {
  return viewOf(message).getUint32(RING_FEATURES_AT, true);
}

/**
 * The answer to `open` or `disk info`.
 *
 * @param ringFeatures A union of `RingFeature`, for `disk info`.
 */
export function encodeDiskInfo(
  type: number,
  cookie: number,
  info: DiskInfo,
  ringFeatures = 0,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(type, cookie);
  view.setBigUint64(8, BigInt(info.sectors), true);
  view.setUint32(16, info.sectorSizeBytes, true);
  view.setUint32(20, info.info, true);
  view.setUint32(RING_FEATURES_AT, ringFeatures, true);
  return message;
}

/** The disk in the answer to `open` or `disk info`. */
export function decodeDiskInfo(message: Uint8Array): DiskInfo {
  const view = viewOf(message);
  return {
    sectors: Number(view.getBigUint64(8, true)),
    sectorSizeBytes: view.getUint32(16, true),
    info: view.getUint32(20, true),
  };
}
