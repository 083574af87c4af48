import { DEVICE_KINDS } from "../../frontend/block_device.ts";
import { MessageFlag } from "./message.ts";
import type { DiskKey } from "../../vhd/key.ts";

/** Which block device a disk becomes; numbered by place, as the message has them. */
export const DEVICE_CHOICES = ["none", "auto", ...DEVICE_KINDS] as const;
/** One of `DEVICE_CHOICES`. */
export type DeviceChoice = (typeof DEVICE_CHOICES)[number];

/** Which of the kernel's interfaces moves a disk's bytes; numbered by place. */
export const QUEUE_CHOICES = ["auto", "libaio", "io_uring"] as const;
/** One of `QUEUE_CHOICES`. */
export type QueueChoice = (typeof QUEUE_CHOICES)[number];

const DEVICE_UNIT = 0x1_0000;
const QUEUE_UNIT = 0x8_0000;

/** How an image is opened. */
export interface OpenRequest {
  /** `type:/path` */
  readonly name: string;
  readonly readOnly: boolean;
  /** Past the page cache, where possible. */
  readonly direct: boolean;
  /** Keep what is read in memory, as `bc:` does. */
  readonly readCache?: boolean;
  /** After how long a request fails; 0 for the default. */
  readonly requestTimeoutSeconds: number;
  readonly device: DeviceChoice;
  readonly queue: QueueChoice;
  /** The key of an encrypted image; wiped when the device is closed. */
  readonly key?: DiskKey;
}

/** Bits of a message's flags for the choice of device and queue. */
export function encodeChoices(device: DeviceChoice, queue: QueueChoice): number {
  return DEVICE_CHOICES.indexOf(device) * DEVICE_UNIT + QUEUE_CHOICES.indexOf(queue) * QUEUE_UNIT;
}

/** The choice in a message's flags; undefined for one that this version does not know. */
export function decodeChoices(
  flags: number,
): { device: DeviceChoice | undefined; queue: QueueChoice | undefined } {
  return {
    device: DEVICE_CHOICES[(flags & MessageFlag.DEVICE_MASK) / DEVICE_UNIT],
    queue: QUEUE_CHOICES[(flags & MessageFlag.QUEUE_MASK) / QUEUE_UNIT],
  };
}
