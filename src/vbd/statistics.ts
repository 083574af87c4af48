import type { ImageDriver } from "../driver/driver.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";
import { driverOfType } from "../driver/registry.ts";
import type { TimesSummary } from "./request_times.ts";
import { RequestKind } from "./slots.ts";

/** What `tap-ctl stats` shows of a device: the reference's fields, and more behind them. */
export interface VbdStatistics extends TimesSummary {
  /** `type:path` */
  name: string;
  /** Sectors read and written by users of the device. */
  secs: [number, number];
  images: {
    name: string;
    /** Sectors that this image itself read and wrote. */
    hits: [number, number];
    fail: [number, number];
    driver: { type: number; name: string; status: string | null };
    /** Of a cache: sectors of reads that it had, and that it had to read below. */
    cache?: { hits: number; misses: number };
    /** Bytes of requests that this image itself answered, and took in, since it was opened. */
    read_bytes: number;
    written_bytes: number;
  }[];
  FIXME_enospc_redirect_count: number;
  nbd_mirror_failed: number;
  /** Requests that have not ended. */
  reqs_outstanding: number;
  read_caching: string;
  /** Tries of requests after their first. */
  retries: number;
  /** Requests that failed and wait to be tried again. */
  retrying: number;
  /** For how many whole seconds the disk has owed an answer: more than a few mean that it hangs. */
  unanswered_seconds: number;
  /** Operations that went to the disk together with a neighbour. */
  merges: number;
}

function cacheCounts(
  { counts: { readSectors, missedSectors } }: ImageDriver,
): Pick<VbdStatistics["images"][number], "cache"> {
  return missedSectors === undefined ? {} : { cache: { hits: readSectors, misses: missedSectors } };
}

/** Counts of a device since it was made. */
export class VbdCounts {
  readSectors = 0;
  writtenSectors = 0;
  failedReads = 0;
  failedWrites = 0;
  retries = 0;

  /** Notes the end of a request. */
  note(kind: RequestKind, sectors: number, errno: number): void {
    if (kind === RequestKind.Read) {
      if (errno === 0) this.readSectors += sectors;
      else this.failedReads++;
    } else if (kind === RequestKind.Write) {
      if (errno === 0) this.writtenSectors += sectors;
      else this.failedWrites++;
    }
  }

  /** The counts, and what the device looks like just now, for people and programs. */
  describe(
    { name, images, outstanding, retrying, unansweredMs, direct, merges, times }: {
      name: string;
      images: readonly ImageDriver[];
      outstanding: number;
      retrying: number;
      unansweredMs: number;
      direct: boolean;
      merges: number;
      times: TimesSummary;
    },
  ): VbdStatistics {
    return {
      name,
      secs: [this.readSectors, this.writtenSectors],
      images: images.map((image, index) => ({
        name: image.spec.path,
        hits: [image.counts.readSectors, image.counts.writtenSectors],
        fail: index === 0 ? [this.failedReads, this.failedWrites] : [0, 0],
        driver: { type: driverOfType(image.spec.type).number, name: image.spec.type, status: null },
        ...cacheCounts(image),
        read_bytes: image.counts.readSectors * SECTOR_BYTES,
        written_bytes: image.counts.writtenSectors * SECTOR_BYTES,
      })),
      FIXME_enospc_redirect_count: 0,
      nbd_mirror_failed: 0,
      reqs_outstanding: outstanding,
      read_caching: String(!direct),
      retries: this.retries,
      retrying,
      unanswered_seconds: Math.floor(unansweredMs / 1000),
      merges,
      ...times,
    };
  }
}
