import { errnoName } from "../../ffi/errno.ts";
import type { ImageDriver } from "../driver/driver.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";
import { driverOfType } from "../driver/registry.ts";
import { type RateLimits, type RateLimitsSummary, summaryOfLimits } from "./rate_limits.ts";
import type { TimesSummary } from "./request_times.ts";
import type { RetryPolicy } from "./retry.ts";
import { RequestKind, SLOTS } from "./slots.ts";

/** What writes do with a secondary image. */
export interface SecondarySummary {
  /** `type:path` */
  name: string;
  /**
   * `standby`: it takes over when the image is full; `mirror`: writes go to both; `alone`: the image is
   * full, and writes go to the secondary one; `failed`: it is not used any more.
   */
  state: "standby" | "mirror" | "alone" | "failed";
  /** Sectors that were written to it alone. */
  redirected: number;
}

/** What `tap-ctl stats` shows of a device: the fields of the reference, and more behind them. */
export interface VbdStatistics extends TimesSummary {
  /** `type:path` */
  name: string;
  /** Sectors read and written by users of the device. */
  secs: [number, number];
  images: {
    name: string;
    /** Its size, sectors. */
    sectors: number;
    /** Sectors that this image itself read and wrote. */
    hits: [number, number];
    fail: [number, number];
    driver: { type: number; name: string; status: string | null };
    /** Of a cache: sectors that it read from memory, and from the image below. */
    cache?: { hits: number; misses: number };
    /** Bytes that this image itself read and wrote since it was opened. */
    read_bytes: number;
    written_bytes: number;
  }[];
  /** Sectors that were written to the secondary image alone, because the image is full. */
  FIXME_enospc_redirect_count: number;
  /** 1 when the secondary image has failed, and the device goes on without it. */
  nbd_mirror_failed: number;
  /** The secondary image; null without one. */
  secondary: SecondarySummary | null;
  /** Open requests. */
  reqs_outstanding: number;
  read_caching: string;
  /** Tries of requests after the first. */
  retries: number;
  /** Which errors are tried again. */
  retry_policy: RetryPolicy;
  /** Errors that were handed up because a single place of a disk that works is at fault. */
  media_errors: number;
  /** Requests that failed and wait for their next try. */
  retrying: number;
  /** The error that they failed with, such as ENOSPC; null without any. */
  retried_error: string | null;
  /** Age of the oldest request at the disk, whole seconds. After a few the disk hangs. */
  unanswered_seconds: number;
  /** Operations that were merged with a neighbour. */
  merges: number;
  /** What the device does in a second at most; null without limits. */
  limits: RateLimitsSummary | null;
  /** The file of the log of changed blocks; null without one. */
  changed_blocks: string | null;
  minor: number;
  /** A union of TD_VBD_* bits. */
  state: number;
  /** Size of the disk, sectors. */
  sectors: number;
  read_only: boolean;
  /** When this was counted, milliseconds of a clock that never goes back; times end then. */
  clock_ms: number;
  /** Requests that ended, by kind, and how many of them failed. */
  ended: Record<EndedKind, [requests: number, failed: number]>;
  /** Sectors that users discarded, and made zero. */
  discarded_sectors: number;
  zeroed_sectors: number;
  /** Places for requests: how many are taken, and how many there are. */
  places: { taken: number; all: number };
}

/** The kinds of requests, as statistics name them; `fill` is a kind of `zero`. */
export type EndedKind = "read" | "write" | "flush" | "discard" | "zero" | "status";

const KINDS = Object.keys(RequestKind).length;

function cacheCounts(
  { counts: { readSectors, missedSectors } }: ImageDriver,
): Pick<VbdStatistics["images"][number], "cache"> {
  return missedSectors === undefined ? {} : { cache: { hits: readSectors, misses: missedSectors } };
}

/** A device, as its statistics describe it. */
interface DescribedDevice {
  readonly minor: number;
  readonly state: number;
  readonly name: string;
  readonly sectors: number;
  readonly readOnly: boolean;
  readonly images: readonly ImageDriver[];
  readonly requests: {
    readonly outstanding: number;
    readonly retrying: { readonly size: number; readonly error: number };
    readonly unansweredMs: number;
    readonly times: { readonly clockMs: number; summary(): TimesSummary };
    readonly limits: RateLimits;
    readonly freeSlots: number;
  };
}

/** What is known of a device besides. */
interface DescribedOptions {
  readonly secondary: SecondarySummary | null;
  readonly direct: boolean;
  readonly policy: RetryPolicy;
  readonly merges: number;
  readonly changedBlocks: string | null;
}

/** Counts of a device since it was made. */
export class VbdCounts {
  readSectors = 0;
  writtenSectors = 0;
  failedReads = 0;
  failedWrites = 0;
  retries = 0;
  mediaErrors = 0;
  /** By `RequestKind`: requests that ended, those of them that failed, and sectors of the others. */
  readonly #ended = new Float64Array(KINDS);
  readonly #failed = new Float64Array(KINDS);
  readonly #sectors = new Float64Array(KINDS);

  /** Counts a request that ended. */
  note(kind: RequestKind, sectors: number, errno: number): void {
    if (kind === RequestKind.Read) {
      if (errno === 0) this.readSectors += sectors;
      else this.failedReads++;
    } else if (kind === RequestKind.Write) {
      if (errno === 0) this.writtenSectors += sectors;
      else this.failedWrites++;
    }
    this.#ended[kind]++;
    if (errno === 0) this.#sectors[kind] += sectors;
    else this.#failed[kind]++;
  }

  /** Requests that ended, and those of them that failed. */
  #endedByKind(): VbdStatistics["ended"] {
    const counts = (kind: RequestKind): [number, number] => [this.#ended[kind], this.#failed[kind]];
    const [zeroed, filled] = [counts(RequestKind.Zero), counts(RequestKind.Fill)];
    return {
      read: counts(RequestKind.Read),
      write: counts(RequestKind.Write),
      flush: counts(RequestKind.Flush),
      discard: counts(RequestKind.Discard),
      zero: [zeroed[0] + filled[0], zeroed[1] + filled[1]],
      status: counts(RequestKind.Status),
    };
  }

  /** The counts, and the present state of the device. */
  describe(
    { minor, state, name, sectors, readOnly, images, requests }: DescribedDevice,
    { secondary, direct, policy, merges, changedBlocks }: DescribedOptions,
  ): VbdStatistics {
    const { outstanding, retrying, unansweredMs, times, limits, freeSlots } = requests;
    return {
      name,
      secs: [this.readSectors, this.writtenSectors],
      images: images.map((image, index) => ({
        name: image.spec.path,
        sectors: image.sectors,
        hits: [image.counts.readSectors, image.counts.writtenSectors],
        fail: index === 0 ? [this.failedReads, this.failedWrites] : [0, 0],
        driver: {
          type: image.typeNumber ?? driverOfType(image.spec.type).number ?? -1,
          name: image.spec.type,
          status: null,
        },
        ...cacheCounts(image),
        read_bytes: image.counts.readSectors * SECTOR_BYTES,
        written_bytes: image.counts.writtenSectors * SECTOR_BYTES,
      })),
      FIXME_enospc_redirect_count: secondary?.redirected ?? 0,
      nbd_mirror_failed: secondary?.state === "failed" ? 1 : 0,
      secondary,
      reqs_outstanding: outstanding,
      read_caching: String(!direct),
      retries: this.retries,
      retry_policy: policy,
      media_errors: this.mediaErrors,
      retrying: retrying.size,
      retried_error: retrying.error === 0 ? null : errnoName(retrying.error),
      unanswered_seconds: Math.floor(unansweredMs / 1000),
      merges,
      limits: summaryOfLimits(limits),
      changed_blocks: changedBlocks,
      minor,
      state,
      sectors,
      read_only: readOnly,
      clock_ms: Math.round(times.clockMs * 1000) / 1000,
      ended: this.#endedByKind(),
      discarded_sectors: this.#sectors[RequestKind.Discard],
      zeroed_sectors: this.#sectors[RequestKind.Zero] + this.#sectors[RequestKind.Fill],
      places: { taken: SLOTS - freeSlots, all: SLOTS },
      ...times.summary(),
    };
  }
}
