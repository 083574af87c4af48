import { Errno, SystemError } from "../../ffi/errno.ts";
import type { SecondarySummary } from "../vbd/statistics.ts";
import { NO_REQUESTS } from "./histogram.ts";
import type { DiskSample, EndedRequests, Histogram, LayerSample } from "./sample.ts";

/** More images than a chain can have, and more pairs than a histogram can have. */
const MOST_LAYERS = 1024;
const MOST_BUCKETS = 256;

/** What the statistics do not say, but the list of the tapdisk. */
export interface ListedDisk {
  readonly pid: number;
  readonly minor: number;
  readonly state: number;
}

/** When and by whom statistics were asked for. */
export interface Asked {
  readonly pid: number;
  /** Milliseconds of the clock of this process. */
  readonly nowMs: number;
}

function broken(what: string): SystemError {
  return new SystemError(Errno.EPROTO, `Cannot read the statistics of a disk (${what})`);
}

type Fields = Readonly<Record<string, unknown>>;

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function fieldsOf(value: unknown, name: string): Fields {
  if (isFields(value)) return value;
  throw broken(`${name} has no fields`);
}

function listOf(value: unknown, name: string, most: number): readonly unknown[] {
  if (!Array.isArray(value)) throw broken(`${name} is no list`);
  if (value.length > most) throw broken(`${name} has ${value.length} entries`);
  return value;
}

/** A count; 0 where the tapdisk does not have it. */
function count(value: unknown, name: string): number {
  if (value === undefined) return 0;
  if (typeof value === "number" && value >= 0 && Number.isFinite(value)) return value;
  throw broken(`${name} is no count`);
}

function text(value: unknown, name: string): string {
  if (typeof value === "string") return value;
  throw broken(`${name} is no text`);
}

function textOrNull(value: unknown, name: string): string | null {
  return value === undefined || value === null ? null : text(value, name);
}

function pair(value: unknown, name: string): readonly [number, number] {
  if (value === undefined) return [0, 0];
  const [first, second] = listOf(value, name, 2);
  return [count(first, name), count(second, name)];
}

function histogram(value: unknown): Histogram {
  if (value === undefined) return NO_REQUESTS;
  const fields = fieldsOf(value, "latency_us");
  const requests = count(fields.requests, "requests");
  let above = -1;
  const buckets = listOf(fields.histogram, "histogram", MOST_BUCKETS).map((entry) => {
    const [belowUs, counted] = pair(entry, "histogram");
    if (belowUs <= above) throw broken("a histogram is out of order");
    above = belowUs;
    return [belowUs, counted] as const;
  });
  return {
    requests,
    // Tapdisks before this field have only the mean.
    sumUs: fields.sum === undefined
      ? count(fields.mean, "mean") * requests
      : count(fields.sum, "sum"),
    highestUs: count(fields.highest, "highest"),
    buckets,
  };
}

function layer(value: unknown): LayerSample {
  const fields = fieldsOf(value, "images");
  const [readSectors, writtenSectors] = pair(fields.hits, "hits");
  const cache = fields.cache === undefined ? null : fieldsOf(fields.cache, "cache");
  return {
    type: text(fieldsOf(fields.driver, "driver").name, "driver"),
    path: text(fields.name, "name"),
    sectors: fields.sectors === undefined ? null : count(fields.sectors, "sectors"),
    readSectors,
    writtenSectors,
    cache: cache === null
      ? null
      : { hits: count(cache.hits, "hits"), misses: count(cache.misses, "misses") },
  };
}

function secondary(value: unknown): SecondarySummary | null {
  if (value === undefined || value === null) return null;
  const fields = fieldsOf(value, "secondary");
  const states = ["standby", "mirror", "alone", "failed"] as const;
  const state = states.find((known) => known === fields.state);
  if (state === undefined) throw broken("the secondary image is in no state");
  const redirected = count(fields.redirected, "redirected");
  return { name: text(fields.name, "secondary"), state, redirected };
}

/** The requests that ended, as far as tapdisks without that field count them. */
function endedOf(fields: Fields): DiskSample["ended"] {
  const none: EndedRequests = { requests: 0, failed: 0 };
  const latency = fieldsOf(fields.latency_us ?? {}, "latency_us");
  const names = fields.ended === undefined ? {} : fieldsOf(fields.ended, "ended");
  const of = (kind: string): EndedRequests => {
    if (fields.ended !== undefined) {
      const [requests, failed] = pair(names[kind], "ended");
      return { requests, failed };
    }
    return latency[kind] === undefined
      ? none
      : { requests: histogram(latency[kind]).requests, failed: 0 };
  };
  return {
    read: of("read"),
    write: of("write"),
    flush: of("flush"),
    discard: of("discard"),
    zero: of("zero"),
    status: of("status"),
  };
}

function timesOf(fields: Fields): DiskSample["times"] {
  const waited = fieldsOf(fields.waited ?? {}, "waited");
  const msOf = (stage: string): number =>
    count(fieldsOf(waited[stage] ?? {}, stage).milliseconds, stage);
  const client = fieldsOf(fields.at_client ?? {}, "at_client");
  return {
    diskMs: count(fields.at_disk_ms, "at_disk_ms"),
    queueMs: msOf("room"),
    pauseMs: msOf("pause"),
    retryMs: msOf("retry"),
    limitMs: msOf("limit"),
    clientMs: count(client.milliseconds, "at_client"),
  };
}

/** The type and path of an image: `vhd:/path`. */
function splitName(name: string): { type: string; path: string } {
  const colon = name.indexOf(":");
  return colon < 0
    ? { type: "", path: name }
    : { type: name.slice(0, colon), path: name.slice(colon + 1) };
}

/** Whether statistics say of which minor they are: those of the original and of older versions do not. */
export function namesMinor(value: unknown): boolean {
  return typeof value === "object" && value !== null && "minor" in value;
}

/** A sample from the statistics that a tapdisk sent of a disk. Throws `SystemError` (EPROTO). */
export function decodeDisk(value: unknown, { pid, nowMs }: Asked, listed?: ListedDisk): DiskSample {
  const fields = fieldsOf(value, "the answer");
  const latency = fieldsOf(fields.latency_us ?? {}, "latency_us");
  const depth = fieldsOf(fields.queue_depth ?? {}, "queue_depth");
  const client = fieldsOf(fields.at_client ?? {}, "at_client");
  const places = fieldsOf(fields.places ?? {}, "places");
  const [readSectors, writtenSectors] = pair(fields.secs, "secs");
  const partial = fields.clock_ms === undefined;
  return {
    pid,
    minor: listed?.minor ?? count(fields.minor, "minor"),
    state: listed?.state ?? count(fields.state, "state"),
    ...splitName(text(fields.name, "name")),
    sectors: fields.sectors === undefined ? null : count(fields.sectors, "sectors"),
    readOnly: fields.read_only === true,
    node: textOrNull(fields.node, "node"),
    atMs: partial ? nowMs : count(fields.clock_ms, "clock_ms"),
    partial,
    chain: listOf(fields.images, "images", MOST_LAYERS).map(layer),
    ended: endedOf(fields),
    readSectors,
    writtenSectors,
    discardedSectors: count(fields.discarded_sectors, "discarded_sectors"),
    zeroedSectors: count(fields.zeroed_sectors, "zeroed_sectors"),
    retries: count(fields.retries, "retries"),
    mediaErrors: count(fields.media_errors, "media_errors"),
    merges: count(fields.merges, "merges"),
    inFlight: count(fields.reqs_outstanding, "reqs_outstanding"),
    retrying: count(fields.retrying, "retrying"),
    retriedError: textOrNull(fields.retried_error, "retried_error"),
    highestDepth: count(depth.highest, "queue_depth"),
    averageDepth: count(depth.average, "queue_depth"),
    atClient: count(client.now, "at_client"),
    placesTaken: count(places.taken, "places"),
    places: count(places.all, "places"),
    unansweredSeconds: count(fields.unanswered_seconds, "unanswered_seconds"),
    latency: {
      read: histogram(latency.read),
      write: histogram(latency.write),
      flush: histogram(latency.flush),
    },
    times: timesOf(fields),
    secondary: secondary(fields.secondary),
    redirectedSectors: count(fields.FIXME_enospc_redirect_count, "FIXME_enospc_redirect_count"),
  };
}
