import type { Done } from "../../ffi/errno.ts";
import type { ImageDriver } from "../driver/driver.ts";
import type { RequestKind } from "./slots.ts";

/** Is told of the ends of requests to the secondary image. */
export interface SecondSink {
  /** @param slot The slot of the device. */
  secondDone(slot: number, errno: number): void;
}

/** The secondary image of a device, as its mirror uses it. */
export interface Second {
  readonly name: string;
  readonly sectors: number;
  /** Images that are not in the stack of the device, the top one first. */
  readonly images: readonly ImageDriver[];
  /**
   * Whether the leaf is read through it, so that the disk needs it: it cannot be left, and its errors
   * are those of the disk.
   */
  readonly isNeeded: boolean;
  readonly zeroSectors: number;
  readonly fillSectors: number;
  /** Operations at the disk queue that a step needs, beside those of the leaf. */
  operationsFor(sectors: number): number;
  /**
   * Starts a request. Each slot of the device has at most one. It may end before this returns.
   *
   * @param count Sectors; 0 for a flush.
   */
  start(slot: number, kind: RequestKind, sector: number, count: number, memorySector: number): void;
  /** Whether a request of this slot is under way. */
  has(slot: number): boolean;
  /** The end of a request is not told any more. */
  forget(slot: number): void;
  /** Ends at once what waits for others, such as servers. */
  hurry(): void;
  /** Closes it, when it has ended what it was asked. */
  close(done: Done): void;
}
