import assert from "node:assert/strict";
import { reportOf } from "../../src/cli/tap_ctl/stats_report.ts";
import { decodeDisk } from "../../src/observe/decode.ts";
import type { FileSamples } from "../../src/observe/files.ts";
import { diskPage } from "../../src/pictures/disk_page.ts";
import { sharesPicture } from "../../src/pictures/shares_picture.ts";

const GIB = 2 ** 30;
const HOSTILE = `/srv/</td></script><script>alert("1")</script>.vhd`;

function latency(requests: number): Record<string, unknown> {
  return {
    ...{ requests, sum: requests * 90, mean: 90, highest: 1900, p50: 96, p90: 96, p99: 96 },
    histogram: requests === 0 ? [] : [[96, requests - 1], [2048, 1]],
  };
}

/** Statistics as a tapdisk sends them. */
function statistics(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    name: `vhd:${HOSTILE}`,
    minor: 3,
    secs: [2048, 4096],
    sectors: 20 * GIB / 512,
    images: [
      {
        ...{ name: HOSTILE, hits: [2048, 4096], sectors: 20 * GIB / 512 },
        driver: { type: 4, name: "vhd", status: null },
      },
      {
        ...{ name: "/srv/base.vhd", hits: [0, 0], sectors: 10 * GIB / 512 },
        driver: { type: 4, name: "vhd", status: null },
      },
    ],
    latency_us: { read: latency(1000), write: latency(0), flush: latency(0) },
    queue_depth: { now: 0, highest: 32, average: 3.5 },
    waited: { room: { requests: 4, milliseconds: 1250 }, limit: { requests: 0, milliseconds: 0 } },
    at_disk_ms: 3750,
    clock_ms: 5,
    limits: { read_iops: 500, write_iops: 0, burst_ms: 100 },
    exports: [{ listen: "127.0.0.1:10809", name: "<b>", tls: "off", clients: 2, max_clients: 16 }],
    reqs_outstanding: 0,
    retry_policy: "all",
    ...more,
  };
}

const NOW = new Date("2026-01-02T03:04:05Z");

function pageOf(raw: Record<string, unknown>, files: FileSamples = new Map()): string {
  const disk = decodeDisk(raw, { pid: 12, nowMs: 0 });
  return diskPage(reportOf(disk, { raw, files, now: NOW }));
}

Deno.test("a report has the chain, counters, latencies, waits, limits and clients", () => {
  const filesystem = { sizeBytes: 100 * GIB, availableBytes: 50 * GIB };
  const files = new Map([
    ["/srv/base.vhd", { sizeBytes: 3 * GIB, allocatedBytes: 2 * GIB, filesystem }],
  ]);
  const page = pageOf(statistics(), files);
  const text = page.replace(/<style>[^]*?<\/style>/g, "").replace(/<[^>]+>/g, " ")
    .replace(/\s+/g, " ");
  for (
    const words of [
      "Minor 3 of tapdisk 12, at 2026-01-02T03:04:05.000Z.",
      "State running",
      "20 GiB (21474836480 bytes)",
      "at most 32, 3.5 on average",
      "vhd · 10 GiB disk · 3 GiB file · 2 GiB of it take room · read 0 B · wrote 0 B",
      "read 1 MiB, wrote 2 MiB",
      "reads: 1000",
      "reads 1000 96 µs 96 µs 96 µs 1.9 ms",
      "at the images and disks below: 3.75 s, 75 %",
      "room in the disk queue 4 1.25 s",
      "read iops 500",
      "127.0.0.1:10809 &lt;b&gt; off 2 16",
    ]
  ) assert.ok(text.includes(words), `${words} in ${text}`);
  assert.doesNotMatch(page, /<script|<b>/);
  assert.match(page, /script-src &#39;none&#39;/);
  assert.doesNotMatch(text, /write iops/);
});

Deno.test("a report says what is wrong, and what is not there", () => {
  const page = pageOf(
    statistics({ retrying: 3, retried_error: "ENOSPC", limits: null, exports: [] }),
  );
  assert.match(page, /role="status">3 requests failed \(ENOSPC\) and are tried again\./);
  assert.match(page, /The disk has no limits\./);
  assert.match(page, /The disk is not served over TCP\./);
  assert.match(pageOf(statistics({ unanswered_seconds: 70 })), /at the disk below for 70 s/);
  assert.match(pageOf(statistics({ state: 0x2a, images: [] })), /no image open just now/);
});

Deno.test("statistics of an older tapdisk make a report, too", () => {
  const raw = { name: "vhd:/a.vhd", secs: [0, 8], images: [], reqs_outstanding: 1 };
  const disk = decodeDisk(raw, { pid: 12, nowMs: 0 }, { pid: 12, minor: 3, state: 0 });
  const page = diskPage(reportOf(disk, { raw, files: new Map(), now: NOW }));
  assert.match(page, /This tapdisk does not count waits\./);
});

Deno.test("shares of a whole are drawn side by side, and stay within the bar", () => {
  const shares = [1e6, 0, 1, 1, 1].map((value, index) => ({
    ...{ name: `part ${index}`, value, text: `${value} ms` },
  }));
  const svg = sharesPicture({ title: "Times", shares });
  const bars = [...svg.matchAll(/x="([\d.]+)" y="40" width="([\d.]+)" height="22" fill="#0969da"/g)]
    .map(([, x, width]) => [Number(x), Number(width)]);
  assert.equal(bars.length, 4);
  for (const [x, width] of bars) assert.ok(x + width <= 864.01 && width >= 0);
  assert.match(svg, /part 2: 1 ms, &lt; 0\.1 %/);
  assert.doesNotMatch(sharesPicture({ title: "none", shares: [] }), /NaN/);
});
