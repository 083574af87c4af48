import type { DiskInfo } from "../control/protocol/disk_info.ts";
import type { GuestDevice, GuestRing } from "../control/protocol/guest_ring.ts";
import type { DeviceSeen, WantedDisk } from "./observation.ts";

/** A tapdisk that has a minor. */
export interface Tapdisk {
  readonly pid: number;
  readonly minor: number;
}

/** A tapdisk and its disk. */
export interface FoundDisk extends Tapdisk {
  readonly info: DiskInfo;
  /** A union of `RingFeature`. */
  readonly ringFeatures: number;
  /** Tells the minor from a later one that got the same number; empty when that is not known. */
  readonly file: string;
  /** The process that was asked for, when that one has handed its disks and rings over to this one. */
  readonly successorOf?: number;
}

/** What happened. */
export type DeviceEvent =
  /** Xenstore was read; null when the device does not exist. */
  | { readonly kind: "seen"; readonly seen: DeviceSeen | null }
  /** The answer to `find`; an error number when there is no disk. */
  | { readonly kind: "found"; readonly disk: WantedDisk; readonly found: FoundDisk | number }
  /** The answer to `connect`: 0, or an error number. */
  | { readonly kind: "connected"; readonly errno: number }
  /** The answer to `disconnect`: 0, or an error number. */
  | { readonly kind: "disconnected"; readonly errno: number }
  /** The time of `retry` has passed. */
  | { readonly kind: "retried" }
  /** The disk may have another size, and its tapdisk may have died. */
  | { readonly kind: "doubted" };

/** What is to be done. */
export type DeviceAction =
  /**
   * Ask a tapdisk for its disk; when it does not exist, the one that has the minor now. `file` is that
   * of the minor, as `FoundDisk` has it, as far as it is known.
   */
  | { readonly kind: "find"; readonly disk: WantedDisk; readonly file: string }
  | { readonly kind: "connect"; readonly tapdisk: Tapdisk; readonly ring: GuestRing }
  | { readonly kind: "disconnect"; readonly tapdisk: Tapdisk; readonly guest: GuestDevice }
  /** Write nodes at once, unless xenstore has changed since it was read. */
  | {
    readonly kind: "write";
    readonly nodes: Readonly<Record<string, string>>;
    readonly seen: DeviceSeen;
  }
  /** Send `retried` after some time. */
  | { readonly kind: "retry"; readonly delayMs: number }
  | { readonly kind: "log"; readonly level: "info" | "warn"; readonly text: string }
  /** The device is over: forget this machine. */
  | { readonly kind: "forget" };
