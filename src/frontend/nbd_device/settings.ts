import { assert } from "../../../ffi/assert.ts";
import {
  MAXIMUM_BLOCK_BYTES,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from "../../nbd/protocol.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import { kernelAtLeast, type NbdFacts } from "./kernel_facts.ts";

/**
 * The block size of devices, bytes. nbd has one size for physical and logical blocks, so devices
 * show 512 for both, though physical blocks of 4096 would fit the images better.
 */
export const BLOCK_BYTES = 512;
/** The longest read or write of the kernel's client, sectors (drivers/block/nbd.c). */
const KERNEL_MOST_SECTORS = 65_536;

assert(
  KERNEL_MOST_SECTORS * SECTOR_BYTES <= MAXIMUM_BLOCK_BYTES,
  "The kernel's NBD client sends longer requests than are served",
);
assert(BLOCK_BYTES % SECTOR_BYTES === 0, "A block of an nbd device is no whole sectors");

/** The transmission flags that the kernel knows. It sends NBD_CMD_WRITE_ZEROES since 6.11. */
export const KERNEL_FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN;

/** Settings of new devices. */
export interface NbdDeviceSettings {
  /** The interface of the driver. "auto" is netlink if the driver has it, else ioctl. */
  readonly interface: "auto" | "netlink" | "ioctl";
  /** Connections of each device. */
  readonly connections: number;
}

/**
 * The timeout of the kernel for a reply, seconds; 0 is none. The kernel must wait as long as the
 * VBD holds requests. After a timeout it would send a request again by another connection while the
 * first one is in flight here, and the late write would overwrite newer data.
 *
 * With one connection and timeout 0 the kernel checks every `io_timeout` whether the connection was
 * replaced, and then sends the requests of the old one again. So a device can be taken over.
 * Kernels before 5.10 do not check. With several connections no kernel both waits and checks.
 */
export const NO_ANSWER_SECONDS = 0;
/** The timeout for devices where 0 has another meaning. */
export const LONG_ANSWER_SECONDS = 24 * 3600;
/** How long requests wait for another tapdisk after theirs has died, seconds. */
export const DEAD_CONNECTION_SECONDS = 600;
/** How often the kernel checks unanswered requests, which those of a dead tapdisk are. */
export const IO_TIMEOUT_MS = 5000;

/** Whether a device with this many connections outlives its tapdisk on this kernel. */
export function canBeTakenOver(connections: number): boolean {
  return connections === 1 && kernelAtLeast(5, 10);
}

/**
 * Whether an existing device can be taken over: the kernel sends unanswered requests again soon.
 */
export function isHeldForTakeover({ ioTimeoutMs }: NbdFacts): boolean {
  return kernelAtLeast(5, 10) && ioTimeoutMs !== null && ioTimeoutMs < LONG_ANSWER_SECONDS * 1000;
}
