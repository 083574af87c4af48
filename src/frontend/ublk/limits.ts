import { assert } from "../../../ffi/assert.ts";
import { PAGE_BYTES } from "../../../ffi/memory.ts";
import { type DeviceInfo, UBLK_MAX_QUEUE_DEPTH } from "../../../ffi/ublk.ts";
import { REQUEST_SECTORS, SECTOR_BYTES } from "../../driver/driver.ts";
import { SLOT_BYTES, SLOTS } from "../../vbd/slots.ts";

/** Queues of a new device. The kernel creates fewer when there are fewer processors. */
export const QUEUES = 2;
/** Requests in flight of each queue. */
export const DEPTH = 32;
/** The longest read or write of a device, sectors. */
export const MOST_SECTORS = REQUEST_SECTORS;
/** The same in bytes. The kernel copies up to this many to the memory of a tag's slot. */
export const MOST_BYTES = MOST_SECTORS * SECTOR_BYTES;

assert(MOST_BYTES <= SLOT_BYTES, "A ublk request has more bytes than a slot");
assert(MOST_BYTES % PAGE_BYTES === 0, "ublk takes whole pages only as the longest request");
assert(QUEUES * DEPTH <= SLOTS, "The tags of a ublk device are more than a disk has slots");
assert(DEPTH <= UBLK_MAX_QUEUE_DEPTH, "A ublk queue is deeper than its descriptors");

/**
 * Why a device cannot be served; empty when it can. This decides for a new device, whose properties
 * the kernel may have changed, and for a device that is taken over.
 *
 * @param freeSlots Free slots of the VBD: each tag takes one.
 */
export function whyNotServed(
  { mostBytes, queues, depth }: Pick<DeviceInfo, "mostBytes" | "queues" | "depth">,
  freeSlots: number,
): string {
  if (mostBytes > MOST_BYTES) return `its requests have up to ${mostBytes} bytes`;
  const tags = queues * depth;
  return tags > freeSlots ? `it has ${tags} requests at once, and ${freeSlots} slots are free` : "";
}
