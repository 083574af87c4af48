/**
 * Samples of disks that no tapdisk serves, for tests of what is computed from them.
 *
 * @module
 */
import { NO_REQUESTS } from "../../src/observe/histogram.ts";
import type { DiskSample, Histogram, HostSample, LayerSample } from "../../src/observe/sample.ts";

const NONE = { requests: 0, failed: 0 };

/** A disk that runs and has done nothing, with changes. */
export function diskSample(changes: Partial<DiskSample> = {}): DiskSample {
  return {
    pid: 100,
    minor: 0,
    state: 0,
    type: "vhd",
    path: "/a.vhd",
    sectors: 2048,
    readOnly: false,
    node: null,
    atMs: 0,
    partial: false,
    chain: [layerSample()],
    ended: { read: NONE, write: NONE, flush: NONE, discard: NONE, zero: NONE, status: NONE },
    readSectors: 0,
    writtenSectors: 0,
    discardedSectors: 0,
    zeroedSectors: 0,
    retries: 0,
    mediaErrors: 0,
    merges: 0,
    inFlight: 0,
    retrying: 0,
    retriedError: null,
    highestDepth: 0,
    averageDepth: 0,
    atClient: 0,
    placesTaken: 0,
    places: 128,
    unansweredSeconds: 0,
    latency: { read: NO_REQUESTS, write: NO_REQUESTS, flush: NO_REQUESTS },
    times: { diskMs: 0, queueMs: 0, pauseMs: 0, retryMs: 0, limitMs: 0, clientMs: 0 },
    secondary: null,
    redirectedSectors: 0,
    ...changes,
  };
}

/** An image of a chain that has served nothing, with changes. */
export function layerSample(changes: Partial<LayerSample> = {}): LayerSample {
  const counts = { readSectors: 0, writtenSectors: 0, cache: null };
  return { type: "vhd", path: "/a.vhd", sectors: 2048, ...counts, ...changes };
}

/** A histogram of so many requests below each bound, each of which took half of it. */
export function histogramOf(...buckets: [belowUs: number, requests: number][]): Histogram {
  return {
    requests: buckets.reduce((sum, [, requests]) => sum + requests, 0),
    sumUs: buckets.reduce((sum, [belowUs, requests]) => sum + requests * belowUs / 2, 0),
    highestUs: (buckets.at(-1)?.[0] ?? 0) - 1,
    buckets,
  };
}

/** A host with these disks, and nothing else. */
export function hostSample(
  disks: readonly DiskSample[],
  changes: Partial<HostSample> = {},
): HostSample {
  const pids = [...new Set(disks.map(({ pid }) => pid))];
  const none = { silent: [], dead: [], unserved: [] };
  return { atMs: 0, timeMs: 0, tookMs: 1, disks, pids, ...none, ...changes };
}
