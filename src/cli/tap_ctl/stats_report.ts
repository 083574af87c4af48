import { deviceStatistics } from "../../control/client/questions.ts";
import type { DeviceAddress } from "../../control/client/client.ts";
import { inventory } from "../../control/client/inventory.ts";
import { decodeDisk } from "../../observe/decode.ts";
import { FileGatherer, type FileSamples } from "../../observe/files.ts";
import { quantileUs } from "../../observe/histogram.ts";
import type { DiskSample, Histogram, LayerSample } from "../../observe/sample.ts";
import { stateOf } from "../../observe/state.ts";
import type { LayerDescription } from "../../pictures/descriptions.ts";
import { diskPage, type DiskReport, type ReportTable } from "../../pictures/disk_page.ts";
import type { LatencyDescription } from "../../pictures/latency_picture.ts";
import type { Share } from "../../pictures/shares_picture.ts";
import { formatSize } from "../../pictures/sizes.ts";
import { formatMicroseconds } from "../../pictures/times.ts";

const SECTOR_BYTES = 512;
const MICROSECONDS_PER_MS = 1000;

type Fields = Readonly<Record<string, unknown>>;

function fieldsOf(value: unknown): Fields {
  return typeof value === "object" && value !== null
    ? Object.fromEntries(Object.entries(value))
    : {};
}

/** A value of the statistics as it is shown. */
function wordOf(value: unknown): string {
  return typeof value === "string" || typeof value === "number" || typeof value === "boolean"
    ? `${value}`
    : "";
}

function bytesOf(sectors: number): string {
  return formatSize(sectors * SECTOR_BYTES);
}

function milliseconds(ms: number): string {
  return formatMicroseconds(ms * MICROSECONDS_PER_MS);
}

/** The layers of the chain. Files that did not answer have no sizes. */
function layersOf({ chain }: DiskSample, files: FileSamples): LayerDescription[] {
  return chain.map(({ type, path, sectors, readSectors, writtenSectors }: LayerSample) => {
    const file = files.get(path);
    const room = file === undefined ? [] : [`${formatSize(file.allocatedBytes)} of it take room`];
    return {
      name: path,
      type,
      sizeBytes: sectors === null ? null : sectors * SECTOR_BYTES,
      fileBytes: file?.sizeBytes ?? null,
      heldBytes: null,
      notes: [...room, `read ${bytesOf(readSectors)}`, `wrote ${bytesOf(writtenSectors)}`],
      problem: null,
    };
  });
}

function latencyOf(name: string, histogram: Histogram): LatencyDescription {
  const { requests, highestUs, buckets } = histogram;
  const within = (share: number): number => quantileUs(histogram, share) ?? 0;
  return {
    name,
    requests,
    p50: within(0.5),
    p99: within(0.99),
    p99_9: within(0.999),
    highest: highestUs,
    histogram: buckets,
  };
}

function countersOf(disk: DiskSample): ReportTable {
  const bytes: Readonly<Record<string, number>> = {
    read: disk.readSectors,
    write: disk.writtenSectors,
    discard: disk.discardedSectors,
    zero: disk.zeroedSectors,
  };
  return {
    caption: "Requests since the disk was opened",
    head: ["Kind", "#Ended", "#Failed", "#Data"],
    rows: Object.entries(disk.ended).map(([kind, { requests, failed }]) => [
      kind,
      `${requests}`,
      `${failed}`,
      bytes[kind] === undefined ? "" : bytesOf(bytes[kind]),
    ]),
    none: "No requests.",
  };
}

function timesOf({ times }: DiskSample): Share[] {
  const named: [string, number][] = [
    ["at the images and disks below", times.diskMs],
    ["in the disk queue", times.queueMs],
    ["at clients", times.clientMs],
    ["in pauses", times.pauseMs],
    ["between tries", times.retryMs],
    ["because of limits", times.limitMs],
  ];
  return named.map(([name, value]) => ({ name, value, text: milliseconds(value) }));
}

function waitsOf(raw: Fields): ReportTable {
  const names = {
    room: "room in the disk queue",
    pause: "the end of a pause",
    retry: "the next try",
  };
  const waited = fieldsOf(raw.waited);
  const rows = Object.entries({ ...names, limit: "a limit" }).map(([stage, name]) => {
    const { requests, milliseconds: ms } = fieldsOf(waited[stage]);
    return [name, wordOf(requests), typeof ms === "number" ? milliseconds(ms) : ""];
  });
  return {
    caption: "What requests waited for",
    head: ["For", "#Waits", "#Time in all"],
    rows: raw.waited === undefined ? [] : rows,
    none: "This tapdisk does not count waits.",
  };
}

function limitsOf(raw: Fields): ReportTable {
  return {
    caption: "Limits",
    head: ["Limit", "#In a second"],
    rows: Object.entries(fieldsOf(raw.limits)).filter(([, value]) => value !== 0)
      .map(([name, value]) => [name.replaceAll("_", " "), wordOf(value)]),
    none: "The disk has no limits.",
  };
}

function clientsOf(raw: Fields): ReportTable {
  const exports = Array.isArray(raw.exports) ? raw.exports.map(fieldsOf) : [];
  return {
    caption: "Served over TCP",
    head: ["Address", "Export", "TLS", "#Clients", "#At most", "#Turned away"],
    rows: exports.map((each) =>
      [each.listen, each.name, each.tls, each.clients, each.max_clients, each.turned_away].map(
        wordOf,
      )
    ),
    none: "The disk is not served over TCP.",
  };
}

function factsOf(disk: DiskSample, raw: Fields): [string, string][] {
  const { sectors, readOnly, node, inFlight, highestDepth, averageDepth, retries, mediaErrors } =
    disk;
  const { secondary, atClient } = disk;
  const facts: [string, string][] = [
    ["State", stateOf(disk)],
    ["Size", sectors === null ? "" : `${bytesOf(sectors)} (${sectors * SECTOR_BYTES} bytes)`],
    ["Written", readOnly ? "no, it is read-only" : "yes"],
    ["Block device", node ?? "none"],
    ["Requests now", `${inFlight}`],
    ["Places that wait for a client", `${atClient}`],
    ["Requests at once", `at most ${highestDepth}, ${averageDepth} on average`],
    ["Tries after the first", `${retries}`],
    ["Errors of single places", `${mediaErrors}`],
    ["Errors that are tried again", wordOf(raw.retry_policy)],
    ["Page cache", raw.read_caching === "true" ? "used" : "not used"],
    ["Log of changed blocks", wordOf(raw.changed_blocks)],
    ["Secondary image", secondary === null ? "" : `${secondary.name}, ${secondary.state}`],
  ];
  return facts.filter(([, value]) => value !== "");
}

function troubleOf(disk: DiskSample): string | null {
  const { retrying, retriedError, unansweredSeconds, inFlight } = disk;
  switch (stateOf(disk)) {
    case "failed":
      return "A fault has ended the disk: its requests fail. 'tap-ctl recover' brings it back.";
    case "retrying":
      return `${retrying} requests failed${
        retriedError === null ? "" : ` (${retriedError})`
      } and are tried again.`;
    case "hanging":
      return `A request has been at the disk below for ${unansweredSeconds} s.`;
    case "paused":
    case "pausing":
      return `The disk is paused; ${inFlight} requests wait.`;
    default:
      return null;
  }
}

/** What the statistics of a disk say, for its report. */
export function reportOf(
  disk: DiskSample,
  { raw, files, now }: { raw: unknown; files: FileSamples; now: Date },
): DiskReport {
  const { pid, minor, type, path, latency } = disk;
  const fields = fieldsOf(raw);
  return {
    name: path === "" ? `minor ${minor}` : `${type}:${path}`,
    about:
      `Minor ${minor} of tapdisk ${pid}, at ${now.toISOString()}. Counters begin when the disk is opened.`,
    trouble: troubleOf(disk),
    facts: factsOf(disk, fields),
    layers: layersOf(disk, files),
    counters: countersOf(disk),
    latencies: [
      latencyOf("reads", latency.read),
      latencyOf("writes", latency.write),
      latencyOf("flushes", latency.flush),
    ],
    times: timesOf(disk),
    waits: waitsOf(fields),
    limits: limitsOf(fields),
    clients: clientsOf(fields),
  };
}

/** A page about a disk. Throws `SystemError`, `TapdiskError`. */
export async function statisticsPage({ pid, minor }: DeviceAddress): Promise<string> {
  const raw: unknown = JSON.parse(deviceStatistics({ pid, minor }));
  const state = inventory({ pid, minor }).find((entry) => entry.minor === minor)?.state ?? 0;
  const asked = { pid, nowMs: performance.now() };
  const disk = decodeDisk(raw, asked, { pid, minor, state });
  const files = await new FileGatherer({ timeoutMs: 3000 }).gather([disk]);
  return diskPage(reportOf(disk, { raw, files, now: new Date() }));
}
