import { SECTOR_BYTES } from "../driver/driver.ts";
import { plainText } from "../log/plain_text.ts";
import type { FileSamples } from "./files.ts";
import { cumulative } from "./histogram.ts";
import type { DiskSample, Histogram, HostSample, LayerSample } from "./sample.ts";
import { DISK_STATES, stateOf } from "./state.ts";

/** The media type of the text. */
export const METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Bounds of histograms, microseconds: powers of 2, which are bounds of the buckets, from 16 µs to 17 s. */
const BOUNDS_US: readonly number[] = Array.from({ length: 21 }, (_, index) => 2 ** (index + 4));
const BOUNDS_TEXT = BOUNDS_US.map((boundUs) => String(boundUs / 1e6));

type Labels = Readonly<Record<string, string | number>>;

/**
 * A label's value, with what would end it escaped. Names have control characters as `plainText` shows them: the
 * text is one for terminals, too, and its format has no other way to write them.
 */
function escaped(value: string | number): string {
  return typeof value === "number"
    ? String(value)
    : plainText(value).replaceAll("\\", "\\\\").replaceAll('"', '\\"');
}

function labelsText(labels: Labels): string {
  const entries = Object.entries(labels);
  if (entries.length === 0) return "";
  return `{${entries.map(([name, value]) => `${name}="${escaped(value)}"`).join(",")}}`;
}

/** The text, a family of metrics after the other. */
class Exposition {
  #text = "";

  /** A family: its name without the prefix, its type, and what it is. */
  family(name: string, type: "counter" | "gauge" | "histogram", help: string): Family {
    const full = `blktap_${name}`;
    const head = `# HELP ${full} ${help}\n# TYPE ${full} ${type}\n`;
    let hasSamples = false;
    const add = (suffix: string, labels: string, value: number | string): void => {
      if (!hasSamples) this.#text += head;
      hasSamples = true;
      this.#text += `${full}${suffix}${labels} ${value}\n`;
    };
    return {
      add: (labels, value) => add("", labelsText(labels), value),
      histogram(labels, histogram): void {
        // The labels of all but the bucket's bound are made once: this is most of the text.
        const own = labelsText(labels);
        const open = own === "" ? "{" : `${own.slice(0, -1)},`;
        const counts = cumulative(histogram, BOUNDS_US);
        const all = histogram.buckets.reduce((sum, [, requests]) => sum + requests, 0);
        counts.forEach((count, index) =>
          add("_bucket", `${open}le="${BOUNDS_TEXT[index]}"}`, count)
        );
        add("_bucket", `${open}le="+Inf"}`, all);
        add("_sum", own, histogram.sumUs / 1e6);
        add("_count", own, all);
      },
    };
  }

  get text(): string {
    return this.#text;
  }
}

interface Family {
  add(labels: Labels, value: number): void;
  histogram(labels: Labels, histogram: Histogram): void;
}

function addTapdisks(out: Exposition, { pids, silent, dead, unserved, tookMs }: HostSample): void {
  const up = out.family(
    "tapdisk_up",
    "gauge",
    "Whether a tapdisk answers: 1, or 0 for one that hangs.",
  );
  for (const pid of pids) up.add({ pid }, 1);
  for (const { pid } of silent) up.add({ pid }, 0);
  out.family(
    "dead_tapdisks",
    "gauge",
    "Tapdisks that were killed, or died, and left their sockets.",
  )
    .add({}, dead.length);
  const left = unserved.filter(({ image }) => image !== null).length;
  const minors = out.family(
    "unserved_minors",
    "gauge",
    "Minors that no tapdisk has; tap-ctl recover brings those back that are recoverable.",
  );
  minors.add({ recoverable: "true" }, left);
  minors.add({ recoverable: "false" }, unserved.length - left);
  out.family("gather_duration_seconds", "gauge", "How long it took to ask all tapdisks.")
    .add({}, tookMs / 1000);
}

function addIdentity(out: Exposition, disks: readonly DiskSample[]): void {
  const info = out.family(
    "disk_info",
    "gauge",
    "A disk, its tapdisk, its image and its block device; always 1.",
  );
  for (const { minor, pid, type, path, node } of disks) {
    info.add({ minor, pid, type, path, node: node ?? "" }, 1);
  }
  const states = out.family(
    "disk_state",
    "gauge",
    "What a disk does: 1 for its state, 0 for others.",
  );
  for (const disk of disks) {
    const present = stateOf(disk);
    for (const state of DISK_STATES) {
      states.add({ minor: disk.minor, state }, state === present ? 1 : 0);
    }
  }
}

/** A gauge or a counter with one value for each disk; null where the tapdisk does not count it. */
interface DiskMetric {
  readonly name: string;
  readonly type: "counter" | "gauge";
  readonly help: string;
  readonly value: (disk: DiskSample) => number | null;
}

/** The value of a metric that only tapdisks have which count all. */
function full(value: (disk: DiskSample) => number): (disk: DiskSample) => number | null {
  return (disk) => disk.partial ? null : value(disk);
}

const DISK_METRICS: readonly DiskMetric[] = [
  {
    name: "disk_size_bytes",
    type: "gauge",
    help: "Size of a disk.",
    value: ({ sectors }) => sectors === null ? null : sectors * SECTOR_BYTES,
  },
  {
    name: "disk_read_bytes_total",
    type: "counter",
    help: "Bytes that users of a disk read.",
    value: ({ readSectors }) => readSectors * SECTOR_BYTES,
  },
  {
    name: "disk_written_bytes_total",
    type: "counter",
    help: "Bytes that users of a disk wrote.",
    value: ({ writtenSectors }) => writtenSectors * SECTOR_BYTES,
  },
  {
    name: "disk_discarded_bytes_total",
    type: "counter",
    help: "Bytes that users of a disk discarded.",
    value: full(({ discardedSectors }) => discardedSectors * SECTOR_BYTES),
  },
  {
    name: "disk_zeroed_bytes_total",
    type: "counter",
    help: "Bytes that users of a disk made zero.",
    value: full(({ zeroedSectors }) => zeroedSectors * SECTOR_BYTES),
  },
  {
    name: "disk_retries_total",
    type: "counter",
    help: "Tries of requests after the first.",
    value: full(({ retries }) => retries),
  },
  {
    name: "disk_media_errors_total",
    type: "counter",
    help: "Errors of single places of a disk below that works otherwise.",
    value: full(({ mediaErrors }) => mediaErrors),
  },
  {
    name: "disk_merged_operations_total",
    type: "counter",
    help: "Operations that were merged with a neighbour.",
    value: full(({ merges }) => merges),
  },
  {
    name: "disk_requests_in_flight",
    type: "gauge",
    help: "Requests that have not ended, of all kinds.",
    value: ({ inFlight }) => inFlight,
  },
  {
    name: "disk_oldest_request_seconds",
    type: "gauge",
    help: "Age of the oldest request at the disk below, in whole seconds.",
    value: full(({ unansweredSeconds }) => unansweredSeconds),
  },
  {
    name: "disk_places_taken",
    type: "gauge",
    help: "Places for requests that are taken; when all are, clients wait.",
    value: full(({ placesTaken }) => placesTaken),
  },
  {
    name: "disk_places",
    type: "gauge",
    help: "Places for requests that a disk has.",
    value: full(({ places }) => places),
  },
  {
    name: "disk_chain_images",
    type: "gauge",
    help: "Images of the chain; none while a disk is paused.",
    value: ({ chain }) => chain.length,
  },
  {
    name: "disk_redirected_bytes_total",
    type: "counter",
    help: "Bytes that only the secondary image has, as the image is full.",
    value: ({ redirectedSectors }) => redirectedSectors * SECTOR_BYTES,
  },
];

function addDisks(out: Exposition, disks: readonly DiskSample[]): void {
  for (const { name, type, help, value } of DISK_METRICS) {
    const family = out.family(name, type, help);
    for (const disk of disks) {
      const number = value(disk);
      if (number !== null) family.add({ minor: disk.minor }, number);
    }
  }
}

const PLACES = [
  ["disk", "diskMs"],
  ["queue", "queueMs"],
  ["pause", "pauseMs"],
  ["retry", "retryMs"],
  ["limit", "limitMs"],
  ["client", "clientMs"],
] as const;

function addRequests(out: Exposition, disks: readonly DiskSample[]): void {
  const counting = disks.filter(({ partial }) => !partial);
  const kinds = (disk: DiskSample) => Object.entries(disk.ended);
  const ended = out.family("disk_requests_total", "counter", "Requests that ended, by kind.");
  for (const disk of counting) {
    for (const [kind, { requests }] of kinds(disk)) {
      ended.add({ minor: disk.minor, kind }, requests);
    }
  }
  const failed = out.family(
    "disk_failed_requests_total",
    "counter",
    "Requests that ended with an error, by kind.",
  );
  for (const disk of counting) {
    for (const [kind, each] of kinds(disk)) failed.add({ minor: disk.minor, kind }, each.failed);
  }
  const retrying = out.family(
    "disk_requests_retrying",
    "gauge",
    "Requests that failed and wait for their next try, with the error.",
  );
  for (const { minor, retrying: waiting, retriedError } of counting) {
    retrying.add({ minor, error: retriedError ?? "" }, waiting);
  }
  const spent = out.family(
    "disk_request_time_seconds_total",
    "counter",
    "Time that requests spent, summed over all of them, by where they were.",
  );
  for (const { minor, times } of counting) {
    for (const [place, field] of PLACES) spent.add({ minor, place }, times[field] / 1000);
  }
  const durations = out.family(
    "disk_request_duration_seconds",
    "histogram",
    "From the start of a request to its end, waits included.",
  );
  for (const { minor, latency } of counting) {
    for (const [kind, histogram] of Object.entries(latency)) {
      durations.histogram({ minor, kind }, histogram);
    }
  }
}

function addSecondaries(out: Exposition, disks: readonly DiskSample[]): void {
  const failed = out.family(
    "disk_secondary_failed",
    "gauge",
    "Whether the secondary image of a disk has failed: 1, or 0 for one that works.",
  );
  for (const { minor, secondary } of disks) {
    if (secondary !== null) failed.add({ minor }, secondary.state === "failed" ? 1 : 0);
  }
}

interface PlacedLayer {
  readonly labels: { readonly minor: number; readonly layer: number };
  readonly layer: LayerSample;
}

function addChains(out: Exposition, disks: readonly DiskSample[]): void {
  const layers: PlacedLayer[] = disks.flatMap(({ minor, chain }) =>
    chain.map((layer, index) => ({ labels: { minor, layer: index }, layer }))
  );
  const info = out.family(
    "image_info",
    "gauge",
    "An image of a chain; layer 0 is the top. Always 1.",
  );
  for (const { labels, layer: { type, path } } of layers) info.add({ ...labels, type, path }, 1);
  const read = out.family("image_read_bytes_total", "counter", "Bytes that an image itself read.");
  for (const { labels, layer } of layers) read.add(labels, layer.readSectors * SECTOR_BYTES);
  const written = out.family(
    "image_written_bytes_total",
    "counter",
    "Bytes that an image itself wrote.",
  );
  for (const { labels, layer } of layers) written.add(labels, layer.writtenSectors * SECTOR_BYTES);
  const hits = out.family("cache_hit_bytes_total", "counter", "Bytes that a cache had.");
  for (const { labels, layer: { cache } } of layers) {
    if (cache !== null) hits.add(labels, cache.hits * SECTOR_BYTES);
  }
  const missed = out.family(
    "cache_missed_bytes_total",
    "counter",
    "Bytes that a cache read from the image below.",
  );
  for (const { labels, layer: { cache } } of layers) {
    if (cache !== null) missed.add(labels, cache.misses * SECTOR_BYTES);
  }
}

/** What the files of images take, and what is left for those that are written. */
function addFiles(out: Exposition, disks: readonly DiskSample[], files: FileSamples): void {
  const placed = disks.flatMap(({ minor, chain }) =>
    chain.flatMap(({ path }, layer) => {
      const file = files.get(path);
      return file === undefined ? [] : [{ labels: { minor, layer }, file }];
    })
  );
  const sizes = out.family("image_file_size_bytes", "gauge", "Size of the file of an image.");
  for (const { labels, file } of placed) sizes.add(labels, file.sizeBytes);
  const taken = out.family(
    "image_file_allocated_bytes",
    "gauge",
    "Room that the file of an image takes on its filesystem.",
  );
  for (const { labels, file } of placed) taken.add(labels, file.allocatedBytes);
  const tops = placed.filter(({ labels }) => labels.layer === 0);
  const size = out.family(
    "disk_filesystem_size_bytes",
    "gauge",
    "Size of the filesystem with the top image of a disk.",
  );
  for (const { labels: { minor }, file } of tops) size.add({ minor }, file.filesystem.sizeBytes);
  const free = out.family(
    "disk_filesystem_available_bytes",
    "gauge",
    "What is left of the filesystem with the top image of a disk.",
  );
  for (const { labels: { minor }, file } of tops) {
    free.add({ minor }, file.filesystem.availableBytes);
  }
}

/**
 * A sample in the text format of Prometheus.
 *
 * @param files What is known of the files of its images.
 */
export function metricsText(sample: HostSample, files: FileSamples = new Map()): string {
  const out = new Exposition();
  addTapdisks(out, sample);
  addIdentity(out, sample.disks);
  addDisks(out, sample.disks);
  addRequests(out, sample.disks);
  addSecondaries(out, sample.disks);
  addChains(out, sample.disks);
  addFiles(out, sample.disks, files);
  return out.text;
}
