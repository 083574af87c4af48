/**
 * `src/observe`: what the disks of this host do: samples of all tapdisks, and rates between two of them.
 * Only `gather.ts` asks tapdisks; `decode.ts` checks what they say; the other files are pure functions on
 * samples. The folder must not print, must not change a disk, and must not wait for a tapdisk that hangs
 * longer than the caller says.
 *
 * This file has the types.
 *
 * @module
 */
import type { EndedKind, SecondarySummary } from "../vbd/statistics.ts";

/** How long requests of one kind took, since the disk was opened. */
export interface Histogram {
  /** How many requests there were, how long all took together, and the slowest; microseconds. */
  readonly requests: number;
  readonly sumUs: number;
  readonly highestUs: number;
  /**
   * Pairs in ascending order: an upper bound, microseconds, and the requests between the bound of the
   * pair before and this one. There are four bounds to each power of two, and no pairs without requests.
   */
  readonly buckets: readonly (readonly [belowUs: number, requests: number])[];
}

/** An image of a chain, and what it served itself. */
export interface LayerSample {
  readonly type: string;
  readonly path: string;
  /** The size that its disk has; null where the tapdisk does not say. */
  readonly sectors: number | null;
  /** Sectors that it read and wrote itself, and not the images below it. */
  readonly readSectors: number;
  readonly writtenSectors: number;
  /** Of a cache: sectors that it had, and that it read from the image below. */
  readonly cache: { readonly hits: number; readonly misses: number } | null;
}

/** Where requests spent their time since the disk was opened, milliseconds summed over all requests. */
export interface TimesSample {
  /** At the images and at the disks below them. */
  readonly diskMs: number;
  /** Waiting for room in the disk queue. */
  readonly queueMs: number;
  readonly pauseMs: number;
  readonly retryMs: number;
  readonly limitMs: number;
  /** Waiting for the client: for the data of a write, or until it takes an answer. */
  readonly clientMs: number;
}

/** Requests of one kind that ended, and how many of those failed. */
export interface EndedRequests {
  readonly requests: number;
  readonly failed: number;
}

/** A disk at one moment. Counters begin at 0 when its tapdisk begins to serve it. */
export interface DiskSample {
  readonly pid: number;
  readonly minor: number;
  /** A union of TD_VBD_* bits; `stateOf` names them. */
  readonly state: number;
  /** Type and path of its image; empty without one. */
  readonly type: string;
  readonly path: string;
  /** Size, sectors; null where the tapdisk does not say. */
  readonly sectors: number | null;
  readonly readOnly: boolean;
  /** The node of its block device; null without one. */
  readonly node: string | null;
  /** When it was sampled, milliseconds of the tapdisk's clock, or of this process for `partial`. */
  readonly atMs: number;
  /**
   * Whether the tapdisk is one that counts less, such as the original: `ended`, `latency`, `times` and what
   * it does not say otherwise are 0 then.
   */
  readonly partial: boolean;
  /** The images, the top one first; none while it is paused. */
  readonly chain: readonly LayerSample[];
  readonly ended: Readonly<Record<EndedKind, EndedRequests>>;
  readonly readSectors: number;
  readonly writtenSectors: number;
  readonly discardedSectors: number;
  readonly zeroedSectors: number;
  /** Tries after the first, and errors of single places that were handed up. */
  readonly retries: number;
  readonly mediaErrors: number;
  /** Operations that were merged with a neighbour. */
  readonly merges: number;
  /** Requests that have not ended; those of them that wait for their next try. */
  readonly inFlight: number;
  readonly retrying: number;
  /** The error that those failed with, such as ENOSPC; null without any. */
  readonly retriedError: string | null;
  /** The most requests that there were at once, and how many a new request found on average. */
  readonly highestDepth: number;
  readonly averageDepth: number;
  /** Places of requests that wait for a client now; all that are taken, and all that there are. */
  readonly atClient: number;
  readonly placesTaken: number;
  readonly places: number;
  /** Age of the oldest request at the disk, whole seconds. */
  readonly unansweredSeconds: number;
  readonly latency: {
    readonly read: Histogram;
    readonly write: Histogram;
    readonly flush: Histogram;
  };
  readonly times: TimesSample;
  readonly secondary: SecondarySummary | null;
  /** Sectors that only its secondary image has, as the image is full. */
  readonly redirectedSectors: number;
}

/** A tapdisk that does not answer, or says what cannot be. */
export interface SilentTapdisk {
  readonly pid: number;
  /** The minors that its sockets and locks show. */
  readonly minors: readonly number[];
  /** What happened, for people. */
  readonly why: string;
}

/** A minor that no tapdisk has. */
export interface UnservedMinor {
  readonly minor: number;
  /** `type:path` of the disk that a tapdisk which died had there; null when it left no record. */
  readonly image: string | null;
}

/** All disks of this host at one moment. */
export interface HostSample {
  /** When it was begun: milliseconds of this process's clock, and of the calendar. */
  readonly atMs: number;
  readonly timeMs: number;
  /** How long it took, milliseconds. */
  readonly tookMs: number;
  /** In ascending order of minors. */
  readonly disks: readonly DiskSample[];
  /** The tapdisks that answered. */
  readonly pids: readonly number[];
  readonly silent: readonly SilentTapdisk[];
  /** Processes that died, and left their sockets. */
  readonly dead: readonly number[];
  readonly unserved: readonly UnservedMinor[];
}
