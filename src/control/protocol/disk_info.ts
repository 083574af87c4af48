import { startMessage, viewOf } from "./message.ts";

/** The disk of an open image. */
export interface DiskInfo {
  readonly sectors: number;
  readonly sectorSizeBytes: number;
  /** Bits of the Xen block interface's VDISK_* flags. */
  readonly info: number;
}

/** The answer to `open` or `disk info`. */
export function encodeDiskInfo(
  type: number,
  cookie: number,
  info: DiskInfo,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(type, cookie);
  view.setBigUint64(8, BigInt(info.sectors), true);
  view.setUint32(16, info.sectorSizeBytes, true);
  view.setUint32(20, info.info, true);
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
