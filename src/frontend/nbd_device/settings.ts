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
 * Bytes of a device's blocks. nbd tells no physical block size apart from the logical one: devices
 * show 512 for both, though 4096 suits the images better.
 */
export const BLOCK_BYTES = 512;
/** The longest read or write of the kernel's client, sectors (drivers/block/nbd.c). */
const KERNEL_MOST_SECTORS = 65_536;

assert(
  KERNEL_MOST_SECTORS * SECTOR_BYTES <= MAXIMUM_BLOCK_BYTES,
  "The kernel's NBD client sends longer requests than are served",
);
assert(BLOCK_BYTES % SECTOR_BYTES === 0, "A block of an nbd device is no whole sectors");

/** What the kernel knows of the transmission flags; it asks for zeroes since 6.11. */
export const KERNEL_FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
  NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN;

/** How devices are made. */
export interface NbdDeviceSettings {
  /** How the driver is spoken to: "auto" is netlink where the driver knows it, else ioctl. */
  readonly interface: "auto" | "netlink" | "ioctl";
  /** Connections of each device. */
  readonly connections: number;
}

/**
 * How long the kernel waits for an answer, seconds. It is to wait for as long as the VBD holds
 * requests back, for what it gives up and sends again by another connection is still under way
 * here, and would be written twice, the second time too late.
 *
 * 0 says so where there is one connection, and then the kernel looks every `io_timeout` whether it
 * has another connection now, and sends again what the old one took along: a device can be taken
 * over. Kernels before 5.10 do not look, and with several connections no kernel waits that does.
 */
export const NO_ANSWER_SECONDS = 0;
/** The same where 0 has another meaning. */
export const LONG_ANSWER_SECONDS = 24 * 3600;
/** How long requests wait for another tapdisk when theirs has died, seconds. */
export const DEAD_CONNECTION_SECONDS = 600;
/** How often the kernel looks at requests that the connection of a dead tapdisk took along. */
export const IO_TIMEOUT_MS = 5000;

/** Whether a device with so many connections outlives its tapdisk on this kernel. */
export function canBeTakenOver(connections: number): boolean {
  return connections === 1 && kernelAtLeast(5, 10);
}

/** Whether a device that was made outlives its tapdisk: what that took along is sent again soon. */
export function isHeldForTakeover({ ioTimeoutMs }: NbdFacts): boolean {
  return kernelAtLeast(5, 10) && ioTimeoutMs !== null && ioTimeoutMs < LONG_ANSWER_SECONDS * 1000;
}
