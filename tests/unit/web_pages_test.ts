/** The pages of `blktap web`: what is sampled, what is shown, and which requests are answered. */
import assert from "node:assert/strict";
import type { DiskSample, HostSample } from "../../src/observe/sample.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { Access } from "../../src/web/access.ts";
import { assetsOf } from "../../src/web/assets.ts";
import { Facts } from "../../src/web/facts.ts";
import { markup } from "../../src/web/html.ts";
import { imagesContent } from "../../src/web/images_page.ts";
import { Monitor } from "../../src/web/monitor.ts";
import { LinesWatch } from "../../src/web/lines_watch.ts";
import { WebServer } from "../../src/web/server.ts";
import { Streams } from "../../src/web/stream.ts";
import { diskSample, histogramOf, hostSample, layerSample } from "../support/observe.ts";

/** A map of an image that is empty; as a chain, it has no layers. */
const EMPTY_MAP = {
  layers: [],
  sizeBytes: 1 << 20,
  startBytes: 0,
  endBytes: 1 << 20,
  bucketBytes: 1 << 20,
  count: 1,
  heldBytes: [],
  totals: [],
};

/** Longer than a test. */
const NEVER_MS = 2 ** 30;
const NEVER = { watchedMs: NEVER_MS, unwatchedMs: NEVER_MS };

/** A monitor of samples that are given, and a page on it. */
class Bench {
  readonly monitor: Monitor;
  readonly server: WebServer;
  readonly faults: unknown[] = [];
  /** The work that was asked for. */
  readonly work: unknown[] = [];
  #next: HostSample | Error = hostSample([]);

  constructor({ allowsChanges = false, token = null }: {
    allowsChanges?: boolean;
    token?: string | null;
  } = {}) {
    const take = (): Promise<HostSample> =>
      this.#next instanceof Error ? Promise.reject(this.#next) : Promise.resolve(this.#next);
    // Only the test takes samples, however slow the machine is.
    this.monitor = new Monitor(take, NEVER);
    const jobs = {
      run: ({ request }: { request: unknown }): Promise<unknown> => {
        this.work.push(request);
        return Promise.resolve({ ...EMPTY_MAP, problem: null });
      },
    };
    this.server = new WebServer({
      monitor: this.monitor,
      requests: new LinesWatch(this.monitor, () => Promise.resolve(["slot 1: <read>"])),
      findings: new LinesWatch(this.monitor, () => Promise.resolve(["It waits for <b>."])),
      facts: new Facts(jobs),
      access: new Access({ token, names: [] }),
      assets: assetsOf({ script: "1", style: "p{}" }),
      allowsChanges,
      folders: [],
      host: "dom0",
      onFault: (error) => this.faults.push(error),
    });
  }

  /** Takes a sample. */
  async sample(sample: HostSample | Error): Promise<void> {
    this.#next = sample;
    await this.monitor.start();
  }

  async get(path: string, headers: Record<string, string> = {}): Promise<Response> {
    const request = new Request(`http://localhost${path}`, {
      headers: { host: "localhost", ...headers },
    });
    return await this.server.handle(request);
  }

  async text(path: string): Promise<string> {
    return await (await this.get(path)).text();
  }

  close(): void {
    this.server.close();
    this.monitor.close();
  }
}

async function withBench(
  options: ConstructorParameters<typeof Bench>[0],
  body: (bench: Bench) => Promise<void>,
): Promise<void> {
  const bench = new Bench(options);
  try {
    await body(bench);
    assert.deepEqual(bench.faults, []);
  } finally {
    bench.close();
  }
}

/** A disk after one second in which it read and wrote. */
function busy(changes: Partial<DiskSample> = {}): DiskSample {
  const none = { requests: 0, failed: 0 };
  return diskSample({
    atMs: 1000,
    ended: {
      read: { requests: 200, failed: 0 },
      write: { requests: 100, failed: 0 },
      flush: none,
      discard: none,
      zero: none,
      status: none,
    },
    readSectors: 2_000_000 / 512 * 1.024 | 0,
    writtenSectors: 4000,
    inFlight: 7,
    latency: {
      read: histogramOf([100, 190], [50_000, 10]),
      write: histogramOf([200, 100]),
      flush: histogramOf(),
    },
    ...changes,
  });
}

Deno.test("web: figures are of the time between two samples", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    assert.match(await bench.text("/"), /<td data-field="iops" class="number">–<\/td>/);
    await bench.sample(hostSample([busy()], { atMs: 1000, timeMs: 1000 }));
    const page = await bench.text("/");
    assert.match(page, /<td data-field="iops" class="number">200 \/ 100<\/td>/);
    assert.match(page, /<td data-field="inflight" class="number">7<\/td>/);
    assert.match(page, /<p class="now" data-now="iops">200 read, 100 written<\/p>/);
    const [, reads, writes] = bench.monitor.history.points.at(-1) ?? [];
    assert.deepEqual([reads, writes], [200, 100]);
    const column = bench.monitor.historyOf("100.0")?.columns.at(-1) ?? [];
    assert.equal(column.reduce((sum, count) => sum + count, 0), 300);
  }));

Deno.test("web: a disk of a tapdisk that is silent keeps its place, without figures", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample({ pid: 5, minor: 3, path: "/x.vhd" })]));
    const silent = [{ pid: 5, minors: [3], why: "Cannot get an answer <now>" }];
    await bench.sample(hostSample([], { silent }));
    const page = await bench.text("/");
    assert.match(page, /<li>Process 5 \(minor 3\): Cannot get an answer &lt;now&gt;<\/li>/);
    assert.match(page, /<a href="\/disks\/5\/3">x\.vhd<\/a>/);
    assert.match(page, /<td data-field="state" class="state">no answer<\/td>/);
    assert.match(bench.monitor.events[0].text, /does not answer/);
  }));

Deno.test("web: what happens between samples is told", () =>
  withBench({}, async (bench) => {
    const below = layerSample({ path: "/a.vhd" });
    const told = async (disk: DiskSample | null): Promise<string[]> => {
      const before = bench.monitor.events.length;
      await bench.sample(hostSample(disk === null ? [] : [disk]));
      const { events } = bench.monitor;
      return events.slice(0, events.length - before).map(({ text }) => text).reverse();
    };
    assert.deepEqual(await told(diskSample()), []);
    assert.deepEqual(await told(diskSample({ state: 0x10 | 4 })), ["is being paused"]);
    assert.deepEqual(await told(diskSample({ state: 0x2a, chain: [] })), ["is paused"]);
    assert.deepEqual(await told(diskSample()), ["runs"]);
    const top = layerSample({ path: "/b.vhd" });
    assert.deepEqual(await told(diskSample({ path: "/b.vhd", chain: [top, below] })), [
      "a snapshot was made: /a.vhd keeps the data, /b.vhd takes all writes",
    ]);
    assert.deepEqual(await told(diskSample({ path: "/b.vhd", chain: [top] })), [
      "its chain has 1 images, 2 before; /b.vhd is on top",
    ]);
    assert.deepEqual(await told(diskSample({ chain: [top], retrying: 2 })), [
      "requests failed, and are tried again",
    ]);
    const ended = diskSample().ended;
    const failed = { ...ended, read: { requests: 3, failed: 3 } };
    assert.deepEqual(await told(diskSample({ chain: [top], ended: failed })), [
      "runs",
      "3 requests failed",
    ]);
    assert.deepEqual(await told(null), ["is not served any more"]);
    assert.deepEqual(await told(diskSample()), ["is served"]);
  }));

Deno.test("web: events are bounded", () =>
  withBench({}, async (bench) => {
    for (let i = 0; i < 150; i++) {
      await bench.sample(
        hostSample(Array.from({ length: i % 2 * 3 }, (_, minor) => diskSample({ minor }))),
      );
    }
    assert.equal(bench.monitor.events.length, 200);
  }));

Deno.test("web: a sample that fails is said on the page, and the last figures stay", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    await bench.sample(new Error("Cannot read <folder>"));
    const page = await bench.text("/");
    assert.match(page, /class="problem">Cannot read &lt;folder&gt;<\/p>/);
    assert.match(page, /a\.vhd/);
  }));

Deno.test("web: the list is sorted and filtered by its address", () =>
  withBench({}, async (bench) => {
    const disks = (values: readonly number[]): DiskSample[] =>
      values.map((inFlight, minor) => diskSample({ minor, path: `/d${minor}.vhd`, inFlight }));
    await bench.sample(hostSample(disks([1, 3, 2])));
    const names = async (path: string): Promise<string[]> =>
      [...(await bench.text(path)).matchAll(/<a href="\/disks[^"]*">(\w+)/g)].map(([, name]) =>
        name
      );
    assert.deepEqual(await names("/"), ["d0", "d1", "d2"]);
    assert.deepEqual(await names("/?sort=inflight"), ["d1", "d2", "d0"]);
    assert.deepEqual(await names("/?sort=nonsense"), ["d0", "d1", "d2"]);
    assert.deepEqual(await names("/?q=D2"), ["d2"]);
    const none = await bench.text(`/?q=${encodeURIComponent('"><b>')}`);
    assert.match(none, /None of 3 disks has such a name/);
    assert.match(none, /value="&quot;&gt;&lt;b&gt;"/);
    assert.ok(!none.includes("<b>"));
  }));

Deno.test("web: a list has at most 500 rows, and says so", () =>
  withBench({}, async (bench) => {
    await bench.sample(
      hostSample(Array.from({ length: 1200 }, (_, minor) => diskSample({ minor }))),
    );
    const page = await bench.text("/");
    assert.equal([...page.matchAll(/<tr data-disk/g)].length, 500);
    assert.match(page, /The first 500 of 1200 disks/);
  }));

Deno.test("web: names from outside are text on every page", () =>
  withBench({ allowsChanges: true }, async (bench) => {
    const path = "/srv/<script>alert(1)</script>\u202e\n.vhd";
    await bench.sample(hostSample([diskSample({ path, chain: [layerSample({ path })] })]));
    for (
      const page of ["/", "/disks/100/0", "/disks/100/0/snapshot", "/events", "/disks/100/0/map"]
    ) {
      const text = await bench.text(page);
      assert.ok(!text.includes("<script>alert"), page);
      assert.ok(!text.includes("\u202e"), page);
    }
    assert.match(await bench.text("/disks/100/0"), /slot 1: &lt;read&gt;/);
    assert.match(await bench.text("/disks/100/0"), /<li>It waits for &lt;b&gt;\.<\/li>/);
  }));

Deno.test("web: with a token nothing but the script and the style is served without it", () =>
  withBench({ token: "correct-horse-battery" }, async (bench) => {
    for (const path of ["/", "/stream", "/events", "/disks/1/0", "/assets/none.css/x"]) {
      const response = await bench.get(path);
      assert.equal(response.status, 401, path);
      await response.body?.cancel();
    }
    const [, style] = /href="(\/assets\/[^"]+\.css)"/.exec(await bench.text("/")) ?? [];
    assert.equal((await bench.get(style)).status, 200);
    const authorization = "Bearer correct-horse-battery";
    assert.equal((await bench.get("/", { authorization })).status, 200);
  }));

Deno.test("web: addresses that make no sense are not found", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    const paths = [
      "/disks/100/0/x",
      "/disks/100/0/map/",
      "/disks/-1/0",
      "/disks/99999999999/0",
      "/assets/../x",
      "/disks/100/0/snapshot",
      "/stream?disk=1.1",
      "/%00",
    ];
    for (const path of paths) assert.equal((await bench.get(path)).status, 404, path);
  }));

Deno.test("web: a host that makes no address is no fault, and a token leads to no other host", () =>
  withBench({ token: "correct-horse-battery" }, async (bench) => {
    for (const host of ["localhost:99999", "[::1::2]", "[:::]"]) {
      const request = new Request("http://localhost/");
      // As the server of HTTP has it on a socket: the address is not checked.
      Object.defineProperty(request, "url", { value: `http+unix://${host}/events` });
      request.headers.set("host", host);
      assert.equal((await bench.server.handle(request)).status, 401, host);
    }
    for (const path of ["//evil.example/", "/\\\\evil.example/", "///evil.example/"]) {
      const { headers } = await bench.get(`${path}?token=correct-horse-battery`);
      assert.equal(headers.get("location"), "/evil.example/", path);
    }
  }));

Deno.test("web: a map takes only parts that are numbers", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    for (
      const query of ["?at=-1&length=x", "?at=1e9", "?at=99999999999999999999", "?length=0", ""]
    ) {
      await bench.text(`/disks/100/0/map${query}`);
      assert.deepEqual(bench.work.at(-1), {
        kind: "map",
        image: "vhd:/a.vhd",
        startBytes: 0,
        lengthBytes: null,
      });
    }
    await bench.text("/disks/100/0/map?at=4096&length=512");
    assert.deepEqual(bench.work.at(-1), {
      kind: "map",
      image: "vhd:/a.vhd",
      startBytes: 4096,
      lengthBytes: 512,
    });
    // The same question is not asked twice.
    const asked = bench.work.length;
    await bench.text("/disks/100/0/map?at=4096&length=512");
    assert.equal(bench.work.length, asked);
  }));

Deno.test("web: images are not served when no disk names them, by their paths or without links", () =>
  withBench({}, async (bench) => {
    const { monitor } = bench;
    const sample = (taken: HostSample): Promise<void> => bench.sample(taken);
    await sample(
      hostSample([diskSample({ path: "/a.vhd", chain: [layerSample({ path: "/a.vhd" })] })]),
    );
    const image = { fileBytes: 1, roomBytes: 1, facts: "", problem: null };
    const images = [
      { name: "vhd:/a.vhd", realPath: "/a.vhd", ...image },
      { name: "vhd:/link/a.vhd", realPath: "/a.vhd", ...image },
      { name: "vhd:/b.vhd", realPath: "/b.vhd", ...image },
      { name: "vhd:/c.vhd", realPath: null, ...image },
    ];
    const scan = { value: { images, problems: [], isCut: false }, timeMs: 0 };
    const shown = (): string => markup`${imagesContent(scan, { folders: ["/"], monitor })}`.text;
    assert.match(shown(), /2 images not served/);
    assert.ok(!shown().includes("a.vhd") && !shown().includes("may be among these"));
    await sample(hostSample([diskSample({ state: 0x2a, chain: [] })]));
    assert.match(shown(), /Some disks are paused.* may be among these/s);
    await sample(hostSample([], { silent: [{ pid: 9, minors: [0], why: "x" }] }));
    assert.match(shown(), /may be among these/);
  }));

Deno.test("web: a snapshot that takes too long is told as one that may still be made", async () => {
  const late = new SystemError(Errno.ETIMEDOUT, "Cannot wait longer");
  const facts = new Facts({ run: () => Promise.reject(late) });
  const wish = { pid: 100, minor: 3, path: "/b.vhd", rename: false, timeoutSeconds: 1 };
  await assert.rejects(facts.snapshot(wish), {
    code: "ETIMEDOUT",
    message: /minor 3 of tapdisk 100.*it may still be made/,
  });
});

Deno.test("web: a tapdisk is asked for its requests once a second, however often pages are loaded", async () => {
  const monitor = new Monitor(() => Promise.resolve(hostSample([diskSample()])), NEVER);
  const [device, other] = [{ pid: 100, minor: 0 }, { pid: 100, minor: 1 }];
  const asked: unknown[] = [];
  let nowMs = 0;
  let hangs = true;
  const watch = new LinesWatch(monitor, (device) => {
    asked.push(device);
    return hangs ? Promise.reject(new Error("It hangs")) : Promise.resolve(["slot 1"]);
  }, { nowMs: () => nowMs });
  const all = Array.from({ length: 50 }, () => watch.once(device));
  assert.deepEqual(await Promise.all(all), all.map(() => null));
  assert.deepEqual([await watch.once(device), asked], [null, [device]]);
  hangs = false;
  assert.deepEqual([await watch.once(other), asked], [["slot 1"], [device, other]]);
  nowMs = 1000;
  assert.deepEqual([await watch.once(device), asked.length], [["slot 1"], 3]);
  // A page that is open asks with each sample, and what it was told is told to others.
  const end = watch.watch("100.0", device);
  assert.equal(watch.linesOf("100.0"), undefined);
  nowMs = 2000;
  await monitor.start();
  await watch.once(device);
  assert.equal(asked.length, 4);
  assert.deepEqual(watch.linesOf("100.0"), ["slot 1"]);
  hangs = true;
  await monitor.start();
  await watch.once(device);
  assert.equal(watch.linesOf("100.0"), null);
  end();
  monitor.close();
});

Deno.test("web: a fault in one stream ends that stream, and sampling goes on", async () => {
  const monitor = new Monitor(() => Promise.resolve(hostSample([diskSample()])), NEVER);
  const faults: unknown[] = [];
  const streams = new Streams(monitor, (error) => faults.push(error));
  const first = (): { event: string; data: unknown } => ({ event: "first", data: 1 });
  const broken = streams.open({
    first,
    next: () => {
      throw new Error("A fault");
    },
  });
  const whole = streams.open({ first, next: () => [{ event: "next", data: 2 }] });
  await monitor.start();
  assert.equal(faults.length, 1);
  assert.equal(streams.count, 1);
  await assert.rejects(async () => await broken?.text(), /A fault/);
  await monitor.start();
  streams.close();
  assert.match(
    await whole?.text() ?? "",
    /^event: first\ndata: 1\n\n(event: next\ndata: 2\n\n){2}$/,
  );
  monitor.close();
});

Deno.test("web: a stream ends with its page's disk, and is counted no more", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    const { body } = await bench.get("/stream?disk=100.0");
    assert.ok(body !== null);
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    assert.match((await reader.read()).value ?? "", /^event: first\ndata: \{"points":\[/);
    await bench.sample(hostSample([diskSample({ inFlight: 3 })]));
    const next = (await reader.read()).value ?? "";
    assert.match(next, /^event: next\n.*"depth":"3, at most/);
    // Its tapdisk is asked after the sample: what the page shows stays until there is an answer.
    assert.ok(!next.includes('"requests"') && !next.includes('"findings"'));
    await bench.sample(hostSample([]));
    assert.match((await reader.read()).value ?? "", /^event: gone\n/);
    await reader.cancel();
  }));

Deno.test("web: a client that does not read is given up", () =>
  withBench({}, async (bench) => {
    await bench.sample(hostSample([diskSample()]));
    const { body } = await bench.get("/stream");
    for (let i = 0; i < 60; i++) await bench.sample(hostSample([diskSample()]));
    const reader = body?.getReader();
    await assert.rejects(async () => {
      for (let i = 0; i < 10; i++) await reader?.read();
    }, /does not read/);
  }));
