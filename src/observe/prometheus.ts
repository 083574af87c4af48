import { SECTOR_BYTES } from "../driver/driver.ts";
import { DiskLabels, type LayerLabels } from "./disk_labels.ts";
import { Exposition, type Family, family, labelsText } from "./exposition.ts";
import type { FileSamples } from "./files.ts";
import type { DiskSample, HostSample, LayerSample } from "./sample.ts";
import { stateOf } from "./state.ts";

/** The media type of the text. */
export const METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** A disk, and the labels of its metrics. */
interface Labelled {
  readonly disk: DiskSample;
  readonly labels: DiskLabels;
}

const TAPDISK_UP = family(
  "tapdisk_up",
  "gauge",
  "Whether a tapdisk answers: 1, or 0 for one that hangs.",
);
const DEAD_TAPDISKS = family(
  "dead_tapdisks",
  "gauge",
  "Tapdisks that were killed, or died, and left their sockets.",
);
const UNSERVED_MINORS = family(
  "unserved_minors",
  "gauge",
  "Minors that no tapdisk has; tap-ctl recover brings those back that are recoverable.",
);
const GATHER_DURATION = family(
  "gather_duration_seconds",
  "gauge",
  "How long it took to ask all tapdisks.",
);

function addTapdisks(out: Exposition, { pids, silent, dead, unserved, tookMs }: HostSample): void {
  for (const pid of pids) out.add(TAPDISK_UP, labelsText({ pid }), 1);
  for (const { pid } of silent) out.add(TAPDISK_UP, labelsText({ pid }), 0);
  out.add(DEAD_TAPDISKS, "", dead.length);
  const left = unserved.filter(({ image }) => image !== null).length;
  out.add(UNSERVED_MINORS, labelsText({ recoverable: "true" }), left);
  out.add(UNSERVED_MINORS, labelsText({ recoverable: "false" }), unserved.length - left);
  out.add(GATHER_DURATION, "", tookMs / 1000);
}

const DISK_INFO = family(
  "disk_info",
  "gauge",
  "A disk, its tapdisk, its image and its block device; always 1.",
);
const DISK_STATE = family(
  "disk_state",
  "gauge",
  "What a disk does: 1 for its state, 0 for others.",
);

function addIdentity(out: Exposition, disks: readonly Labelled[]): void {
  for (const { disk, labels } of disks) out.add(DISK_INFO, labels.info(disk), 1);
  for (const { disk, labels } of disks) {
    const present = stateOf(disk);
    for (const [state, text] of labels.states) {
      out.add(DISK_STATE, text, state === present ? 1 : 0);
    }
  }
}

/** A gauge or a counter with one value for each disk; null where the tapdisk does not count it. */
interface DiskMetric {
  readonly family: Family;
  readonly value: (disk: DiskSample) => number | null;
}

/** The value of a metric that only tapdisks have which count all. */
function full(value: (disk: DiskSample) => number): (disk: DiskSample) => number | null {
  return (disk) => disk.partial ? null : value(disk);
}

const DISK_METRICS: readonly DiskMetric[] = [
  {
    family: family("disk_size_bytes", "gauge", "Size of a disk."),
    value: ({ sectors }) => sectors === null ? null : sectors * SECTOR_BYTES,
  },
  {
    family: family("disk_read_bytes_total", "counter", "Bytes that users of a disk read."),
    value: ({ readSectors }) => readSectors * SECTOR_BYTES,
  },
  {
    family: family("disk_written_bytes_total", "counter", "Bytes that users of a disk wrote."),
    value: ({ writtenSectors }) => writtenSectors * SECTOR_BYTES,
  },
  {
    family: family(
      "disk_discarded_bytes_total",
      "counter",
      "Bytes that users of a disk discarded.",
    ),
    value: full(({ discardedSectors }) => discardedSectors * SECTOR_BYTES),
  },
  {
    family: family("disk_zeroed_bytes_total", "counter", "Bytes that users of a disk made zero."),
    value: full(({ zeroedSectors }) => zeroedSectors * SECTOR_BYTES),
  },
  {
    family: family("disk_retries_total", "counter", "Tries of requests after the first."),
    value: full(({ retries }) => retries),
  },
  {
    family: family(
      "disk_media_errors_total",
      "counter",
      "Errors of single places of a disk below that works otherwise.",
    ),
    value: full(({ mediaErrors }) => mediaErrors),
  },
  {
    family: family(
      "disk_merged_operations_total",
      "counter",
      "Operations that were merged with a neighbour.",
    ),
    value: full(({ merges }) => merges),
  },
  {
    family: family(
      "disk_requests_in_flight",
      "gauge",
      "Requests that have not ended, of all kinds.",
    ),
    value: ({ inFlight }) => inFlight,
  },
  {
    family: family(
      "disk_oldest_request_seconds",
      "gauge",
      "Age of the oldest request at the disk below, in whole seconds.",
    ),
    value: full(({ unansweredSeconds }) => unansweredSeconds),
  },
  {
    family: family(
      "disk_places_taken",
      "gauge",
      "Places for requests that are taken; when all are, clients wait.",
    ),
    value: full(({ placesTaken }) => placesTaken),
  },
  {
    family: family("disk_places", "gauge", "Places for requests that a disk has."),
    value: full(({ places }) => places),
  },
  {
    family: family(
      "disk_chain_images",
      "gauge",
      "Images of the chain; none while a disk is paused.",
    ),
    value: ({ chain }) => chain.length,
  },
  {
    family: family(
      "disk_redirected_bytes_total",
      "counter",
      "Bytes that only the secondary image has, as the image is full.",
    ),
    value: ({ redirectedSectors }) => redirectedSectors * SECTOR_BYTES,
  },
];

function addDisks(out: Exposition, disks: readonly Labelled[]): void {
  for (const { family, value } of DISK_METRICS) {
    for (const { disk, labels } of disks) {
      const number = value(disk);
      if (number !== null) out.add(family, labels.own, number);
    }
  }
}

const REQUESTS = family("disk_requests_total", "counter", "Requests that ended, by kind.");
const FAILED = family(
  "disk_failed_requests_total",
  "counter",
  "Requests that ended with an error, by kind.",
);
const RETRYING = family(
  "disk_requests_retrying",
  "gauge",
  "Requests that failed and wait for their next try, with the error.",
);
const TIME = family(
  "disk_request_time_seconds_total",
  "counter",
  "Time that requests spent, summed over all of them, by where they were.",
);
const DURATION = family(
  "disk_request_duration_seconds",
  "histogram",
  "From the start of a request to its end, waits included.",
);

function addRequests(out: Exposition, disks: readonly Labelled[]): void {
  const counting = disks.filter(({ disk }) => !disk.partial);
  for (const { disk: { ended }, labels } of counting) {
    for (const [kind, text] of labels.kinds) out.add(REQUESTS, text, ended[kind].requests);
  }
  for (const { disk: { ended }, labels } of counting) {
    for (const [kind, text] of labels.kinds) out.add(FAILED, text, ended[kind].failed);
  }
  for (const { disk: { minor, retrying, retriedError } } of counting) {
    out.add(RETRYING, labelsText({ minor, error: retriedError ?? "" }), retrying);
  }
  for (const { disk: { times }, labels } of counting) {
    for (const [field, text] of labels.places) out.add(TIME, text, times[field] / 1000);
  }
  for (const { disk: { latency }, labels } of counting) {
    for (const [kind, lines] of labels.durations) out.addHistogram(DURATION, lines, latency[kind]);
  }
}

const SECONDARY_FAILED = family(
  "disk_secondary_failed",
  "gauge",
  "Whether the secondary image of a disk has failed: 1, or 0 for one that works.",
);

function addSecondaries(out: Exposition, disks: readonly Labelled[]): void {
  for (const { disk: { secondary }, labels } of disks) {
    if (secondary !== null) {
      out.add(SECONDARY_FAILED, labels.own, secondary.state === "failed" ? 1 : 0);
    }
  }
}

interface PlacedLayer {
  readonly labels: LayerLabels;
  readonly layer: LayerSample;
  /** The labels of the disk, of which it is the top image; null for others. */
  readonly top: string | null;
}

function layersOf(disks: readonly Labelled[]): PlacedLayer[] {
  const layers: PlacedLayer[] = [];
  for (const { disk: { chain }, labels } of disks) {
    const each = labels.layers(chain);
    for (let index = 0; index < chain.length; index++) {
      const top = index === 0 ? labels.own : null;
      layers.push({ labels: each[index], layer: chain[index], top });
    }
  }
  return layers;
}

const IMAGE_INFO = family(
  "image_info",
  "gauge",
  "An image of a chain; layer 0 is the top. Always 1.",
);
const IMAGE_READ = family("image_read_bytes_total", "counter", "Bytes that an image itself read.");
const IMAGE_WRITTEN = family(
  "image_written_bytes_total",
  "counter",
  "Bytes that an image itself wrote.",
);
const CACHE_HIT = family("cache_hit_bytes_total", "counter", "Bytes that a cache had.");
const CACHE_MISSED = family(
  "cache_missed_bytes_total",
  "counter",
  "Bytes that a cache read from the image below.",
);

function addChains(out: Exposition, layers: readonly PlacedLayer[]): void {
  for (const { labels } of layers) out.add(IMAGE_INFO, labels.info, 1);
  for (const { labels, layer } of layers) {
    out.add(IMAGE_READ, labels.own, layer.readSectors * SECTOR_BYTES);
  }
  for (const { labels, layer } of layers) {
    out.add(IMAGE_WRITTEN, labels.own, layer.writtenSectors * SECTOR_BYTES);
  }
  for (const { labels, layer: { cache } } of layers) {
    if (cache !== null) out.add(CACHE_HIT, labels.own, cache.hits * SECTOR_BYTES);
  }
  for (const { labels, layer: { cache } } of layers) {
    if (cache !== null) out.add(CACHE_MISSED, labels.own, cache.misses * SECTOR_BYTES);
  }
}

const FILE_SIZE = family("image_file_size_bytes", "gauge", "Size of the file of an image.");
const FILE_ALLOCATED = family(
  "image_file_allocated_bytes",
  "gauge",
  "Room that the file of an image takes on its filesystem.",
);
const FILESYSTEM_SIZE = family(
  "disk_filesystem_size_bytes",
  "gauge",
  "Size of the filesystem with the top image of a disk.",
);
const FILESYSTEM_AVAILABLE = family(
  "disk_filesystem_available_bytes",
  "gauge",
  "What is left of the filesystem with the top image of a disk.",
);

/** What the files of images take, and what is left for those that are written. */
function addFiles(out: Exposition, layers: readonly PlacedLayer[], files: FileSamples): void {
  const placed = layers.flatMap(({ labels, layer: { path }, top }) => {
    const file = files.get(path);
    return file === undefined ? [] : [{ own: labels.own, top, file }];
  });
  for (const { own, file } of placed) out.add(FILE_SIZE, own, file.sizeBytes);
  for (const { own, file } of placed) out.add(FILE_ALLOCATED, own, file.allocatedBytes);
  for (const { top, file } of placed) {
    if (top !== null) out.add(FILESYSTEM_SIZE, top, file.filesystem.sizeBytes);
  }
  for (const { top, file } of placed) {
    if (top !== null) out.add(FILESYSTEM_AVAILABLE, top, file.filesystem.availableBytes);
  }
}

/** Samples in the text format of Prometheus. It keeps the labels of disks from one sample to the next. */
export class MetricsText {
  #labels = new Map<number, DiskLabels>();

  /** @param files What is known of the files of its images. */
  of(sample: HostSample, files: FileSamples = new Map()): string {
    const disks = this.#labelled(sample.disks);
    const layers = layersOf(disks);
    const out = new Exposition();
    addTapdisks(out, sample);
    addIdentity(out, disks);
    addDisks(out, disks);
    addRequests(out, disks);
    addSecondaries(out, disks);
    addChains(out, layers);
    addFiles(out, layers, files);
    return out.text;
  }

  #labelled(disks: readonly DiskSample[]): Labelled[] {
    // Labels of disks that are gone are not kept.
    const kept = new Map<number, DiskLabels>();
    const labelled = disks.map((disk): Labelled => {
      const labels = this.#labels.get(disk.minor) ?? new DiskLabels(disk.minor, DURATION);
      kept.set(disk.minor, labels);
      return { disk, labels };
    });
    this.#labels = kept;
    return labelled;
  }
}

/** A sample in the text format of Prometheus. */
export function metricsText(sample: HostSample, files: FileSamples = new Map()): string {
  return new MetricsText().of(sample, files);
}
