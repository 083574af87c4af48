/** What is computed from samples of disks: rates, quantiles, states. Every time is given. */
import assert from "node:assert/strict";
import * as fc from "fast-check";
import { decodeDisk } from "../../src/observe/decode.ts";
import { FileGatherer } from "../../src/observe/files.ts";
import { between, meanUs, NO_REQUESTS, quantileUs, together } from "../../src/observe/histogram.ts";
import { failedRequests, ratesBetween } from "../../src/observe/rates.ts";
import type { DiskSample } from "../../src/observe/sample.ts";
import { DISK_STATES, stateOf } from "../../src/observe/state.ts";
import { Latencies } from "../../src/vbd/latency.ts";
import { diskSample, histogramOf, layerSample } from "../support/observe.ts";
import { runOk, withTempDir } from "../support/tools.ts";

/** Fails unless a rate is there. */
function rates(before: DiskSample, after: DiskSample) {
  const found = ratesBetween(before, after);
  assert.ok(found !== null);
  return found;
}

Deno.test("rates are what grew, by the seconds between the samples", () => {
  const before = diskSample({ atMs: 1_000 });
  const after = diskSample({
    atMs: 3_000,
    ended: {
      read: { requests: 400, failed: 2 },
      write: { requests: 100, failed: 4 },
      flush: { requests: 10, failed: 0 },
      discard: { requests: 6, failed: 0 },
      zero: { requests: 2, failed: 0 },
      status: { requests: 1, failed: 0 },
    },
    readSectors: 4_000,
    writtenSectors: 200,
    retries: 8,
  });
  const found = rates(before, after);
  assert.deepEqual(
    [found.seconds, found.readsPerSecond, found.writesPerSecond, found.flushesPerSecond],
    [2, 200, 50, 5],
  );
  assert.equal(found.discardsPerSecond, 4);
  assert.deepEqual([found.readBytesPerSecond, found.writtenBytesPerSecond], [1_024_000, 51_200]);
  assert.deepEqual([found.errorsPerSecond, found.retriesPerSecond], [3, 4]);
  assert.equal(failedRequests(after), 6);
});

Deno.test("counters that began anew count from 0", () => {
  const before = diskSample({ atMs: 0, retries: 50, readSectors: 1_000 });
  const found = rates(before, diskSample({ atMs: 1_000, retries: 3, readSectors: 10 }));
  assert.deepEqual([found.retriesPerSecond, found.readBytesPerSecond], [3, 5_120]);
});

Deno.test("there are no rates across processes, disks, or without time", () => {
  const before = diskSample({ atMs: 1_000 });
  assert.equal(ratesBetween(before, diskSample({ atMs: 2_000, pid: 101 })), null);
  assert.equal(ratesBetween(before, diskSample({ atMs: 2_000, minor: 1 })), null);
  assert.equal(ratesBetween(before, diskSample({ atMs: 1_000 })), null);
  assert.equal(ratesBetween(before, diskSample({ atMs: 2_000, partial: true })), null);
});

Deno.test("time is divided among the places where requests were", () => {
  const times = { diskMs: 100, queueMs: 10, pauseMs: 0, retryMs: 0, limitMs: 0, clientMs: 5 };
  const before = diskSample({ atMs: 0, times });
  const later = { diskMs: 700, queueMs: 110, pauseMs: 0, retryMs: 100, limitMs: 0, clientMs: 205 };
  const { shares, depth } = rates(before, diskSample({ atMs: 1_000, times: later }));
  const expected = { diskMs: 0.6, queueMs: 0.1, pauseMs: 0, retryMs: 0.1, limitMs: 0 };
  assert.deepEqual(shares, { ...expected, clientMs: 0.2 });
  // What clients keep is not under way.
  assert.equal(depth, 0.8);
  assert.equal(rates(before, diskSample({ atMs: 1_000, times })).shares, null);
});

Deno.test("reads are divided among the images of a chain, caches and zeros", () => {
  const chain = [
    layerSample({ path: "/leaf", readSectors: 100 }),
    layerSample({ path: "/base", readSectors: 100, cache: { hits: 10, misses: 0 } }),
  ];
  const before = diskSample({ atMs: 0, readSectors: 200, chain });
  const after = diskSample({
    atMs: 1_000,
    readSectors: 1_200,
    chain: [
      layerSample({ path: "/new" }),
      layerSample({ path: "/leaf", readSectors: 350 }),
      layerSample({ path: "/base", readSectors: 600, cache: { hits: 40, misses: 10 } }),
    ],
  });
  const { layers, zeroShare } = rates(before, after);
  assert.deepEqual(layers.map(({ readShare }) => readShare), [0, 0.25, 0.5]);
  assert.deepEqual(layers.map(({ hitShare }) => hitShare), [null, null, 0.75]);
  assert.equal(zeroShare, 0.25);
  const idle = rates(after, { ...after, atMs: 2_000 });
  assert.deepEqual([idle.zeroShare, idle.layers[0].readShare], [null, null]);
});

Deno.test("a histogram between two samples has what came in between", () => {
  const before = histogramOf([64, 5], [128, 3]);
  const after = histogramOf([64, 7], [128, 3], [256, 2]);
  const came = between(before, after);
  assert.deepEqual(came.buckets, [[64, 2], [256, 2]]);
  assert.deepEqual([came.requests, came.sumUs, came.highestUs], [4, 320, 255]);
  assert.equal(meanUs(came), 80);
  assert.deepEqual(between(after, after).buckets, []);
  // The disk was opened anew.
  assert.deepEqual(between(after, before), before);
  assert.deepEqual(between(before, histogramOf([64, 20])), histogramOf([64, 20]));
});

Deno.test("quantiles of histograms are those of the times, at most a quarter too high", () => {
  const time = fc.integer({ min: 0, max: 50_000_000 });
  const share = fc.double({ min: 0.01, max: 1, noNaN: true });
  fc.assert(fc.property(fc.array(time, { minLength: 1, maxLength: 100 }), share, (times, part) => {
    const latencies = new Latencies();
    for (const us of times) {
      latencies.note(Float64Array.of(0), 0, Float64Array.of((us + 0.5) / 1000));
    }
    const { requests, sum: sumUs, highest: highestUs, histogram: buckets } = latencies.summary();
    const found = quantileUs({ requests, sumUs, highestUs, buckets }, part);
    const sorted = times.toSorted((a, b) => a - b);
    const exact = sorted[Math.max(1, Math.ceil(part * times.length)) - 1];
    assert.ok(found !== null && found >= exact && found <= exact * 1.25 + 1, `${found} ${exact}`);
  }));
  assert.equal(quantileUs(NO_REQUESTS, 0.5), null);
  assert.equal(meanUs(NO_REQUESTS), null);
});

Deno.test("histograms are put together", () => {
  const all = together(
    histogramOf([64, 1], [256, 2]),
    histogramOf([128, 4], [256, 1]),
    NO_REQUESTS,
  );
  assert.deepEqual(all.buckets, [[64, 1], [128, 4], [256, 3]]);
  assert.deepEqual([all.requests, all.highestUs], [8, 255]);
});

Deno.test("a disk is in one state, and trouble comes first", () => {
  const state = (changes: Partial<DiskSample>) => stateOf(diskSample(changes));
  assert.equal(state({}), "running");
  assert.equal(state({ path: "" }), "empty");
  assert.equal(state({ unansweredSeconds: 5 }), "hanging");
  assert.equal(state({ unansweredSeconds: 5, retrying: 1 }), "retrying");
  assert.equal(state({ state: 0x2a, retrying: 1 }), "paused");
  assert.equal(state({ state: 0x14 }), "pausing");
  assert.equal(state({ state: 0x02 }), "closed");
  assert.equal(state({ state: 0x40 }), "closing");
  assert.equal(state({ state: 0x01 }), "failed");
  assert.equal(new Set(DISK_STATES).size, 9);
});

/** Statistics of a tapdisk before it counted the kinds of requests. */
const OLDER = {
  name: "vhd:/a:b",
  secs: [16, 8],
  images: [{ name: "/a:b", hits: [16, 8], fail: [0, 0], driver: { type: 4, name: "vhd" } }],
  reqs_outstanding: 3,
  latency_us: {
    read: { requests: 2, mean: 50, highest: 60, histogram: [[48, 1], [64, 1]] },
    write: { requests: 1, mean: 10, highest: 10, histogram: [[12, 1]] },
    flush: { requests: 0, mean: 0, highest: 0, histogram: [] },
  },
};
const ASKED = { pid: 7, nowMs: 500 };
const LISTED = { pid: 7, minor: 4, state: 0x2a };

Deno.test("statistics of older tapdisks, and of the original, give a sample of what they have", () => {
  const older = decodeDisk(OLDER, ASKED, LISTED);
  assert.deepEqual([older.minor, older.state, older.type, older.path], [4, 0x2a, "vhd", "/a:b"]);
  assert.deepEqual([older.partial, older.atMs, older.sectors], [true, 500, null]);
  assert.deepEqual(older.ended.read, { requests: 2, failed: 0 });
  assert.equal(older.latency.read.sumUs, 100);
  const { latency_us: _, ...original } = OLDER;
  const sample = decodeDisk(original, ASKED, LISTED);
  assert.deepEqual([sample.latency.read, sample.inFlight], [NO_REQUESTS, 3]);
  assert.deepEqual(sample.chain[0].readSectors, 16);
});

Deno.test("statistics that make no sense are refused", () => {
  const wrong: unknown[] = [
    null,
    [],
    "text",
    {},
    { ...OLDER, name: 7 },
    { ...OLDER, images: [null] },
    { ...OLDER, images: new Array(5_000).fill(OLDER.images[0]) },
    { ...OLDER, images: [{ ...OLDER.images[0], hits: [-1, 0] }] },
    { ...OLDER, secs: [1, Infinity] },
    { ...OLDER, secs: ["1", "2"] },
    { ...OLDER, retrying: {} },
    { ...OLDER, latency_us: { read: { requests: 1, histogram: [[64, 1], [64, 1]] } } },
    { ...OLDER, latency_us: { read: { requests: 1, histogram: new Array(300).fill([1, 1]) } } },
    { ...OLDER, secondary: { name: "x", state: "odd", redirected: 0 } },
  ];
  for (const value of wrong) {
    assert.throws(
      () => decodeDisk(value, ASKED, LISTED),
      { code: "EPROTO" },
      JSON.stringify(value),
    );
  }
});

Deno.test("files of images are looked at, and one that hangs delays once, and is not looked at again", async () => {
  const file = {
    sizeBytes: 1,
    allocatedBytes: 2,
    filesystem: { sizeBytes: 4, availableBytes: 3 },
  };
  const looks: string[] = [];
  const hung = Promise.withResolvers<null>();
  const gatherer = new FileGatherer({
    timeoutMs: 200,
    look(path): Promise<typeof file | null> {
      looks.push(path);
      if (path === "/missing") return Promise.reject(new Error("no file"));
      return path === "/hung" ? hung.promise : Promise.resolve(file);
    },
  });
  const paths = ["/hung", "/a", "/missing", "64", "/a"];
  const disks = [diskSample({ chain: paths.map((path) => layerSample({ path })) })];
  assert.deepEqual([...(await gatherer.gather(disks)).keys()], ["/a"]);
  assert.deepEqual([...(await gatherer.gather(disks)).keys()], ["/a"]);
  assert.deepEqual(looks.toSorted(), ["/a", "/a", "/hung", "/missing", "/missing"]);
  hung.resolve(null);
  await hung.promise;
});

Deno.test("a file that hangs does not take the place of others", async () => {
  const hung = Promise.withResolvers<null>();
  const file = {
    sizeBytes: 1,
    allocatedBytes: 2,
    filesystem: { sizeBytes: 4, availableBytes: 3 },
  };
  const gatherer = new FileGatherer({
    timeoutMs: 20,
    look: (path) => path === "/hung" ? hung.promise : Promise.resolve(file),
  });
  const good = Array.from({ length: 20 }, (_, index) => `/${index}`);
  const chain = ["/hung", ...good].map((path) => layerSample({ path }));
  await gatherer.gather([diskSample({ chain })]);
  const found = await gatherer.gather([diskSample({ chain })]);
  assert.deepEqual([...found.keys()].toSorted(), good.toSorted());
  hung.resolve(null);
  await hung.promise;
});

Deno.test("the size of a file, its room, and the room that is left", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/sparse.raw`;
    Deno.writeFileSync(path, new Uint8Array(8192));
    Deno.truncateSync(path, 1 << 20);
    const disks = [diskSample({ chain: [layerSample({ path }), layerSample({ path: folder })] })];
    const files = await new FileGatherer({ timeoutMs: 60_000 }).gather(disks);
    assert.deepEqual([...files.keys()], [path]);
    const { sizeBytes, allocatedBytes, filesystem } = files.get(path) ?? assert.fail();
    assert.equal(sizeBytes, 1 << 20);
    assert.ok(allocatedBytes >= 8192 && allocatedBytes < 1 << 20, `${allocatedBytes}`);
    const df = await runOk("df", ["--block-size=1", "--output=size", path]);
    assert.equal(filesystem.sizeBytes, Number(df.split("\n")[1]));
    assert.ok(filesystem.availableBytes <= filesystem.sizeBytes);
  }));
