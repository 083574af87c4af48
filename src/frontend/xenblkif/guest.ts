import type { BlkifProtocol } from "../../../ffi/blkif_ring.ts";

/** The block device of a guest. */
export interface GuestDevice {
  /** Number of the domain. */
  readonly domain: number;
  /** Number of the device, such as 51712 for xvda. */
  readonly device: number;
}

/** The ring of a guest's block device, and how it is served. */
export interface GuestRing extends GuestDevice {
  /** The grant references of its pages: 1, 2, 4 or 8. */
  readonly references: readonly number[];
  /** The guest's event channel. */
  readonly port: number;
  readonly protocol: BlkifProtocol;
  /** How long the ring is polled after the last request, microseconds; 0 for never. */
  readonly pollDurationUs: number;
  /** The ring is polled only while more of the processors is idle, percent. */
  readonly pollIdleThreshold: number;
  /** Whether the guest must not write, also where the disk itself can be written. */
  readonly isReadOnly: boolean;
}

/** A ring without a request under way, for another process. */
export interface HandedRing {
  readonly guest: GuestRing;
  /** The descriptor of its event channel, and the number of this end of it. */
  readonly fd: number;
  readonly port: number;
  /** How many requests were taken and answered in all, modulo 2^32. The guest could change that in the ring. */
  readonly taken: number;
  /** Whether its indices made no sense, so that no more requests are taken. */
  readonly isBroken: boolean;
}

/** A guest's device, for messages. */
export function nameOfGuest({ domain, device }: GuestDevice): string {
  return `device ${device} of domain ${domain}`;
}
