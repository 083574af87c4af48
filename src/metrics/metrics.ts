/**
 * `src/metrics`: counters of requests in shared memory, which monitoring programs such as xentop read
 * while a disk is served: a file of one page for each disk, and for each way to it, in the folder
 * `/dev/shm/td3-<PID>`.
 *
 * This file has the names of the files and the layout of a page (`struct stats` of blktap's
 * tapdisk-metrics-stats.h, as an x86-64 machine has it in memory): a u32 with the version, four bytes
 * unused, then a u64 each:
 *
 * | offset | field                                                          |
 * | ------ | -------------------------------------------------------------- |
 * | 8      | requests that have not ended, of all kinds                     |
 * | 16     | reads that began                                               |
 * | 24     | reads that ended                                               |
 * | 32     | sectors that were read                                         |
 * | 40     | time that all reads took, from beginning to end, microseconds  |
 * | 48     | the same four of writes                                        |
 * | 80     | requests that ended with an error                              |
 * | 88     | flags, all 0                                                   |
 *
 * Beside it, a guest's ring has the file `statistics` in the folder `/dev/shm/vbd3-<DOM>-<DEV>`, a page
 * with the counters of the kernel's backend (`struct blkback_stats` of blktap's blktap3.h), a u64 each:
 *
 * | offset | field                                                              |
 * | ------ | ------------------------------------------------------------------ |
 * | 0      | discards that began                                                |
 * | 8      | flushes that began                                                 |
 * | 16     | requests for which there was no memory, which is 0                 |
 * | 24     | reads that began                                                   |
 * | 32     | reads that ended                                                   |
 * | 40     | sectors that were read                                             |
 * | 48     | time that all reads took, from beginning to end, microseconds      |
 * | 56     | time that the slowest read took, microseconds                      |
 * | 64     | the same five of writes                                            |
 * | 104    | flags, all 0                                                       |
 *
 * `meter.ts` counts, `metrics_folder.ts` makes the files. This folder must not know disks or requests,
 * and a file that cannot be made must not keep a disk from being served.
 *
 * @module
 */

/** Bytes of a file. */
export const METRICS_BYTES = 4096;
/** Value of the first field. */
export const METRICS_VERSION = 1;

/** Places in a page, in words of 32 bits. A field of 64 bits has its low half first. */
export const MetricsWord = { Version: 0, Outstanding: 2, Reads: 4, Errors: 20 } as const;
/** Places in the fields of reads, and in those of writes behind them; and the words of each. */
export const DirectionWord = {
  Submitted: 0,
  Completed: 2,
  Sectors: 4,
  Ticks: 6,
  Count: 8,
} as const;

/** Places in the page of a ring, in words of 32 bits. */
export const RingWord = { Discards: 0, Flushes: 2, Reads: 6 } as const;
/** Places in the fields of reads of a ring, and in those of writes behind them; and the words of each. */
export const RingDirectionWord = {
  Submitted: 0,
  Completed: 2,
  Sectors: 4,
  Time: 6,
  Longest: 8,
  Count: 10,
} as const;

/** What the requests of a file have in common. */
export type MetricsSubject =
  /** The requests to a disk, from all its clients. */
  | { readonly of: "vdi"; readonly minor: number }
  /** The requests of its NBD clients. */
  | { readonly of: "nbd"; readonly minor: number }
  /** The requests of its block device, whichever driver it is of. */
  | { readonly of: "blktap"; readonly minor: number }
  /** The requests in the ring of a guest. */
  | { readonly of: "vbd"; readonly domain: number; readonly device: number };

/** Name of the file of a subject, such as `vbd-3-51712`. */
export function metricsName(subject: MetricsSubject): string {
  return subject.of === "vbd"
    ? `vbd-${subject.domain}-${subject.device}`
    : `${subject.of}-${subject.minor}`;
}

/** Name of a ring's own file, in the folder of its notice. */
export const RING_STATISTICS = "statistics";

/**
 * Name of the folder, beside those of the tapdisks, by which rrdp-iostat finds out that there is a
 * ring: it looks for the file when the folder is made. Null for what is no ring.
 */
export function noticeName(fileName: string): string | null {
  return fileName.startsWith("vbd-") ? fileName.replace("vbd-", "vbd3-") : null;
}

/** A page of counters. */
export interface MetricsPage {
  readonly words: Uint32Array<ArrayBuffer>;
  /** The second page of a ring. */
  readonly ring?: Uint32Array<ArrayBuffer>;
  /** Removes its file. `words` must not be touched afterwards. */
  close(): void;
}

/** Where pages come from. */
export interface MetricsPages {
  /** A page of zeros. Does not throw: what cannot be shared is private memory. */
  open(subject: MetricsSubject): MetricsPage;
}

/** A page of private memory. */
export function privatePage(): MetricsPage {
  return { words: new Uint32Array(METRICS_BYTES / 4), close: (): void => {} };
}

/** Pages of private memory. */
export const privatePages: MetricsPages = { open: privatePage };
