/** Metrics in the text format of Prometheus: what is printed of samples that are given. */
import assert from "node:assert/strict";
import { plainLines } from "../../src/log/plain_text.ts";
import { MetricsText, metricsText } from "../../src/observe/prometheus.ts";
import { diskSample, histogramOf, hostSample, layerSample } from "../support/observe.ts";
import { familiesIn, type Sample } from "../support/prometheus.ts";

/** The values of a family, by the labels in this order. */
function valuesOf(text: string, name: string, ...labels: string[]): Record<string, number> {
  const samples: readonly Sample[] = familiesIn(text).get(name)?.samples ?? [];
  return Object.fromEntries(
    samples.map((sample) => [labels.map((label) => sample.labels[label]).join(" "), sample.value]),
  );
}

Deno.test("metrics: counters in base units, with the labels of their disk", () => {
  const text = metricsText(hostSample([
    diskSample({
      minor: 3,
      readSectors: 8,
      writtenSectors: 16,
      retries: 5,
      retrying: 2,
      retriedError: "ENOSPC",
      times: { diskMs: 1500, queueMs: 250, pauseMs: 0, retryMs: 0, limitMs: 0, clientMs: 10 },
      latency: {
        read: histogramOf([8, 1], [16, 1], [20, 2], [1024, 4]),
        write: histogramOf(),
        flush: histogramOf([2 ** 31, 1]),
      },
    }),
  ]));
  assert.deepEqual(valuesOf(text, "blktap_disk_read_bytes_total", "minor"), { 3: 4096 });
  assert.deepEqual(valuesOf(text, "blktap_disk_written_bytes_total", "minor"), { 3: 8192 });
  assert.deepEqual(valuesOf(text, "blktap_disk_retries_total", "minor"), { 3: 5 });
  const retrying = valuesOf(text, "blktap_disk_requests_retrying", "minor", "error");
  assert.deepEqual(retrying, { "3 ENOSPC": 2 });
  const times = valuesOf(text, "blktap_disk_request_time_seconds_total", "place");
  assert.deepEqual([times.disk, times.queue, times.client], [1.5, 0.25, 0.01]);
  const { samples } = familiesIn(text).get("blktap_disk_request_duration_seconds") ??
    { samples: [] };
  const below = (kind: string, le: string): number | undefined =>
    samples.find(({ labels }) => labels.kind === kind && labels.le === le)?.value;
  assert.deepEqual([below("read", "0.000016"), below("read", "0.000032")], [2, 4]);
  assert.deepEqual([below("read", "0.000512"), below("read", "0.001024")], [4, 8]);
  assert.deepEqual([below("flush", "16.777216"), below("flush", "+Inf")], [0, 1]);
  const sum = samples.find(({ name, labels }) => name.endsWith("_sum") && labels.kind === "flush");
  assert.equal(sum?.value, 2 ** 30 / 1e6);
});

Deno.test("metrics: hostile names are values of labels, and nothing else", () => {
  const path = '/a"} 1\nblktap_disk_info{minor="9"} 7\\\udcff';
  const disk = diskSample({ path, chain: [layerSample({ path })] });
  const text = metricsText(hostSample([disk]));
  const info = familiesIn(text).get("blktap_disk_info");
  assert.equal(info?.samples.length, 1);
  assert.equal(info?.samples[0].labels.path, '/a"} 1\\nblktap_disk_info{minor="9"} 7\\\\xff');
  assert.equal(familiesIn(text).get("blktap_image_info")?.samples.length, 1);
});

Deno.test("metrics: what is printed is what is served, with any name", () => {
  const path = "/\x1b[2J\u009b\u202e\r\udce4";
  const text = metricsText(hostSample([diskSample({ path })]));
  // As `tap-ctl metrics` prints it, for terminals. Escapes that the format does not have would spoil all of it.
  assert.equal(plainLines(text), text);
  const info = familiesIn(text).get("blktap_disk_info");
  assert.equal(info?.samples[0].labels.path, "/\\x1b[2J\\u009b\\u202e\\r\\xe4");
});

Deno.test("metrics: one state of each disk is 1", () => {
  const text = metricsText(hostSample([
    diskSample({ minor: 0 }),
    diskSample({ minor: 1, state: 0x2a, chain: [] }),
  ]));
  const states = valuesOf(text, "blktap_disk_state", "minor", "state");
  const present = Object.entries(states).filter(([, value]) => value === 1).map(([key]) => key);
  assert.deepEqual(present, ["0 running", "1 paused"]);
  assert.deepEqual(valuesOf(text, "blktap_disk_chain_images", "minor"), { 0: 1, 1: 0 });
});

Deno.test("metrics: tapdisks that hang or died, and the minors that they left", () => {
  const text = metricsText(hostSample([diskSample()], {
    silent: [{ pid: 7, minors: [4], why: "it hangs" }],
    dead: [8, 9],
    unserved: [{ minor: 5, image: "vhd:/x" }, { minor: 6, image: null }],
  }));
  assert.deepEqual(valuesOf(text, "blktap_tapdisk_up", "pid"), { 7: 0, 100: 1 });
  assert.deepEqual(valuesOf(text, "blktap_dead_tapdisks"), { "": 2 });
  const minors = valuesOf(text, "blktap_unserved_minors", "recoverable");
  assert.deepEqual(minors, { true: 1, false: 1 });
});

Deno.test("metrics: what a tapdisk does not count is left out, and not 0", () => {
  const names = [...familiesIn(metricsText(hostSample([diskSample({ partial: true })]))).keys()];
  assert.ok(names.includes("blktap_disk_read_bytes_total"));
  for (const name of ["blktap_disk_retries_total", "blktap_disk_request_duration_seconds"]) {
    assert.ok(!names.includes(name), name);
  }
});

Deno.test("metrics: caches, secondary images and a host without disks", () => {
  const cache = { hits: 8, misses: 2 };
  const secondary = { name: "vhd:/b", state: "failed" as const, redirected: 0 };
  const text = metricsText(hostSample([
    diskSample({ secondary, chain: [layerSample(), layerSample({ path: "/c", cache })] }),
  ]));
  assert.deepEqual(valuesOf(text, "blktap_cache_hit_bytes_total", "layer"), { 1: 4096 });
  assert.deepEqual(valuesOf(text, "blktap_cache_missed_bytes_total", "layer"), { 1: 1024 });
  assert.deepEqual(valuesOf(text, "blktap_disk_secondary_failed", "minor"), { 0: 1 });
  const none = [...familiesIn(metricsText(hostSample([]))).keys()];
  assert.deepEqual(none, [
    "blktap_dead_tapdisks",
    "blktap_unserved_minors",
    "blktap_gather_duration_seconds",
  ]);
});

Deno.test("metrics: a text after another is that of its own sample, whatever was there before", () => {
  const path = "/b.vhd";
  const chain = [layerSample({ path: "/top.vhd" }), layerSample()];
  const samples = [
    hostSample([diskSample({ minor: 1 }), diskSample({ minor: 2 })]),
    hostSample([diskSample({ minor: 1, path, chain, pid: 7, node: "/dev/x" })]),
    hostSample([diskSample({ minor: 1, type: "qcow2", chain: [chain[1]] })]),
    hostSample([diskSample({ minor: 2, chain: [layerSample({ type: "aio" })] })]),
  ];
  const metrics = new MetricsText();
  for (const sample of samples) assert.equal(metrics.of(sample), metricsText(sample));
  const [first, second] = samples.map((sample) => metricsText(sample));
  assert.notEqual(first, second);
});

Deno.test("metrics: a histogram has the requests between its bounds at the next bound", () => {
  const read = histogramOf([16, 1], [32_768, 2], [65_536, 4], [20_000_000, 8]);
  const latency = { read, write: histogramOf(), flush: histogramOf() };
  const text = metricsText(hostSample([diskSample({ latency })]));
  const name = "blktap_disk_request_duration_seconds";
  const bounds = (familiesIn(text).get(name)?.samples ?? [])
    .filter((sample) => sample.name === `${name}_bucket` && sample.labels.kind === "read");
  const at = Object.fromEntries(bounds.map(({ labels, value }) => [labels.le, value]));
  assert.deepEqual(
    [at["0.000016"], at["0.016384"], at["0.065536"], at["16.777216"], at["+Inf"]],
    [1, 1, 7, 7, 15],
  );
  assert.equal(bounds.length, 17);
});
