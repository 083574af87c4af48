import { between, meanUs, quantileUs, together } from "./histogram.ts";
import type { DiskSample, Histogram, LayerSample, TimesSample } from "./sample.ts";
import { SECTOR_BYTES } from "../driver/driver.ts";

/** How long requests took; null without requests, microseconds. */
export interface LatencyRates {
  readonly meanUs: number | null;
  readonly p50Us: number | null;
  readonly p99Us: number | null;
}

/** What an image of a chain did. */
export interface LayerRates {
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Its part of all that was read, 0 to 1; null when nothing was read. */
  readonly readShare: number | null;
  /** Of a cache: the part of its reads that it had, 0 to 1; null for others, and without reads. */
  readonly hitShare: number | null;
}

/** What a disk did between two samples. */
export interface DiskRates {
  readonly seconds: number;
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly flushesPerSecond: number;
  /** Requests that discard or make zero. */
  readonly discardsPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Requests that ended with an error, and tries after the first. */
  readonly errorsPerSecond: number;
  readonly retriesPerSecond: number;
  /** Of all three kinds together, and of each. */
  readonly latency: LatencyRates;
  readonly read: LatencyRates;
  readonly write: LatencyRates;
  readonly flush: LatencyRates;
  /** How many requests were under way on average, waits included. */
  readonly depth: number;
  /** Where requests spent their time, parts of 1; null when they spent none. */
  readonly shares: Readonly<Record<keyof TimesSample, number>> | null;
  /** Of the images of `chain`, in the same order. */
  readonly layers: readonly LayerRates[];
  /** The part of what was read that no image has, so that zeros were read; null when nothing was read. */
  readonly zeroShare: number | null;
}

/** How much a counter grew. One that is less than before began anew in between. */
function grown(before: number, after: number): number {
  return after < before ? after : after - before;
}

function latencyOf(histogram: Histogram): LatencyRates {
  return {
    meanUs: meanUs(histogram),
    p50Us: quantileUs(histogram, 0.5),
    p99Us: quantileUs(histogram, 0.99),
  };
}

/** Whether two samples are of the same disk in the same process, so that counters go on. */
function goesOn(before: DiskSample, after: DiskSample): boolean {
  return before.pid === after.pid && before.minor === after.minor &&
    before.partial === after.partial && before.atMs < after.atMs;
}

type TimeShares = Readonly<Record<keyof TimesSample, number>>;

function timesBetween(before: TimesSample, after: TimesSample): TimeShares {
  return {
    diskMs: grown(before.diskMs, after.diskMs),
    queueMs: grown(before.queueMs, after.queueMs),
    pauseMs: grown(before.pauseMs, after.pauseMs),
    retryMs: grown(before.retryMs, after.retryMs),
    limitMs: grown(before.limitMs, after.limitMs),
    clientMs: grown(before.clientMs, after.clientMs),
  };
}

function sharesOf(times: TimeShares): TimeShares | null {
  const all = Object.values(times).reduce((sum, ms) => sum + ms, 0);
  if (all <= 0) return null;
  return {
    diskMs: times.diskMs / all,
    queueMs: times.queueMs / all,
    pauseMs: times.pauseMs / all,
    retryMs: times.retryMs / all,
    limitMs: times.limitMs / all,
    clientMs: times.clientMs / all,
  };
}

/** The image in the sample before; one without counts where it was not in the chain then. */
function sameLayer(chain: readonly LayerSample[], { type, path }: LayerSample): LayerSample {
  const same = chain.find((layer) => layer.type === type && layer.path === path);
  return same ?? { type, path, sectors: null, readSectors: 0, writtenSectors: 0, cache: null };
}

function layerRates(
  before: LayerSample,
  after: LayerSample,
  { seconds, readSectors }: { seconds: number; readSectors: number },
): LayerRates {
  const read = grown(before.readSectors, after.readSectors);
  const written = grown(before.writtenSectors, after.writtenSectors);
  const hits = grown(before.cache?.hits ?? 0, after.cache?.hits ?? 0);
  const looked = hits + grown(before.cache?.misses ?? 0, after.cache?.misses ?? 0);
  return {
    readBytesPerSecond: read * SECTOR_BYTES / seconds,
    writtenBytesPerSecond: written * SECTOR_BYTES / seconds,
    readShare: readSectors > 0 ? Math.min(1, read / readSectors) : null,
    hitShare: looked > 0 ? hits / looked : null,
  };
}

/**
 * What a disk did between two samples; null when counters do not go on from one to the other, as when another
 * process has taken the disk over.
 */
export function ratesBetween(before: DiskSample, after: DiskSample): DiskRates | null {
  if (!goesOn(before, after)) return null;
  const seconds = (after.atMs - before.atMs) / 1000;
  const rate = (of: (sample: DiskSample) => number): number =>
    grown(of(before), of(after)) / seconds;
  const histograms = {
    read: between(before.latency.read, after.latency.read),
    write: between(before.latency.write, after.latency.write),
    flush: between(before.latency.flush, after.latency.flush),
  };
  const times = timesBetween(before.times, after.times);
  const { clientMs: _, ...underWay } = times;
  const readSectors = grown(before.readSectors, after.readSectors);
  const layers = after.chain.map((layer) =>
    layerRates(sameLayer(before.chain, layer), layer, { seconds, readSectors })
  );
  const found = layers.reduce((sum, { readShare }) => sum + (readShare ?? 0), 0);
  return {
    seconds,
    readsPerSecond: rate(({ ended }) => ended.read.requests),
    writesPerSecond: rate(({ ended }) => ended.write.requests),
    flushesPerSecond: rate(({ ended }) => ended.flush.requests),
    discardsPerSecond: rate(({ ended }) => ended.discard.requests + ended.zero.requests),
    readBytesPerSecond: readSectors * SECTOR_BYTES / seconds,
    writtenBytesPerSecond: rate(({ writtenSectors }) => writtenSectors) * SECTOR_BYTES,
    errorsPerSecond: rate(failedRequests),
    retriesPerSecond: rate(({ retries }) => retries),
    latency: latencyOf(together(histograms.read, histograms.write, histograms.flush)),
    read: latencyOf(histograms.read),
    write: latencyOf(histograms.write),
    flush: latencyOf(histograms.flush),
    depth: Object.values(underWay).reduce((sum, ms) => sum + ms, 0) / 1000 / seconds,
    shares: sharesOf(times),
    layers,
    zeroShare: readSectors > 0 ? Math.max(0, 1 - found) : null,
  };
}

/** All requests of a disk that ended with an error. */
export function failedRequests({ ended }: DiskSample): number {
  return Object.values(ended).reduce((sum, { failed }) => sum + failed, 0);
}
