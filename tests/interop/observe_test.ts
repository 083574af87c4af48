/**
 * Samples of tapdisks that run: what they count is what clients did, and one that hangs or has died does not
 * keep the others from being seen.
 *
 * @module
 */
import assert from "node:assert/strict";
import { isAlive } from "../../ffi/process.ts";
import { Gatherer } from "../../src/observe/gather.ts";
import { ratesBetween } from "../../src/observe/rates.ts";
import type { DiskSample, HostSample } from "../../src/observe/sample.ts";
import { encodeListEntry } from "../../src/control/protocol/list.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { encodeStatisticsHead } from "../../src/control/protocol/statistics.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { type ControlBench, isRunning, until, withControlBench } from "../support/control.ts";
import { fio } from "../support/fio.ts";

const MIB = 1 << 20;
/** Long, as other tests run at the same time. */
const PATIENT = { timeoutMs: 30_000 };

/** Calls `body` while this process looks at the tapdisks of a bench. */
function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`samples of all disks: ${name}`, () =>
    withControlBench(async (bench) => {
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", bench.control);
      try {
        await body(bench);
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      }
    }));
}

/** Serves a raw image in a tapdisk of its own; returns that. */
async function serve(bench: ControlBench, name: string): Promise<number> {
  const before = await bench.list();
  await bench.ok(`create -a aio:${bench.rawImage(name, 4 * MIB)}`);
  const line = (await bench.list()).find((each) => !before.includes(each)) ?? "";
  return Number(/^pid=(\d+) /.exec(line)?.[1]);
}

function diskOf({ disks }: HostSample, minor: number): DiskSample {
  const disk = disks.find((each) => each.minor === minor);
  assert.ok(disk !== undefined, `minor ${minor} is not there`);
  return disk;
}

test("counters and rates are what a client did, in a tapdisk with several disks", async (bench) => {
  const pid = await bench.spawn();
  for (const minor of [0, 1, 2]) {
    await bench.ok("allocate");
    await bench.ok(`attach -p ${pid} -m ${minor}`);
    if (minor === 2) continue;
    await bench.ok(`open -p ${pid} -m ${minor} -a aio:${bench.rawImage(`${minor}.raw`, 4 * MIB)}`);
  }
  const gatherer = new Gatherer(PATIENT);
  const before = await gatherer.gather();
  assert.deepEqual(before.disks.map(({ minor }) => minor), [0, 1, 2]);
  assert.deepEqual([before.pids, before.silent, before.dead, before.unserved], [[pid], [], [], []]);
  const uri = `nbd+unix:///?socket=${bench.control}/nbd${pid}.1`;
  const [job] = await fio(uri, ["rw=randrw", "bs=4k", "size=4m", "iodepth=8"]);
  const after = await gatherer.gather();
  const { ended, latency, readSectors, writtenSectors, times, chain } = diskOf(after, 1);
  assert.deepEqual(ended.read, { requests: job.read.total_ios, failed: 0 });
  assert.deepEqual(ended.write, { requests: job.write.total_ios, failed: 0 });
  assert.equal(latency.read.requests, job.read.total_ios);
  assert.equal(readSectors * 512, job.read.io_bytes);
  assert.equal(writtenSectors * 512, job.write.io_bytes);
  assert.ok(times.diskMs > 0);
  assert.deepEqual(chain.map(({ type, readSectors }) => [type, readSectors]), [[
    "aio",
    readSectors,
  ]]);
  const rates = ratesBetween(diskOf(before, 1), diskOf(after, 1));
  assert.ok(rates !== null && rates.latency.p99Us !== null && rates.depth > 0);
  const requests = rates.readsPerSecond * rates.seconds;
  assert.ok(Math.abs(requests - job.read.total_ios) < 0.01, `${requests}`);
  assert.equal(rates.layers[0].readShare, 1);
  assert.equal(diskOf(after, 0).ended.read.requests, 0);
  assert.equal(diskOf(after, 2).path, "");
});

test("a tapdisk that hangs is shown, delays others once, and is not asked each time", async (bench) => {
  const hung = await serve(bench, "a.raw");
  const lively = await serve(bench, "b.raw");
  let nowMs = 0;
  const gatherer = new Gatherer({ timeoutMs: 1_500, nowMs: () => nowMs });
  Deno.kill(hung, "SIGSTOP");
  try {
    const startMs = performance.now();
    const first = await gatherer.gather();
    assert.ok(performance.now() - startMs >= 1_500);
    assert.deepEqual(first.disks.map(({ pid }) => pid), [lively]);
    assert.deepEqual(first.silent.map(({ pid, minors }) => [pid, minors]), [[hung, [0]]]);
    assert.match(first.silent[0].why, /Cannot get an answer from tapdisk/);
    assert.deepEqual([first.dead, first.unserved], [[], []]);
    nowMs = 4_000;
    const againMs = performance.now();
    const second = await gatherer.gather();
    assert.ok(performance.now() - againMs < 1_400, "it was asked again");
    assert.deepEqual(second.silent, first.silent);
  } finally {
    Deno.kill(hung, "SIGCONT");
  }
  nowMs = 10_000;
  await until("it answers", () => isRunning(hung));
  const third = await new Gatherer(PATIENT).gather();
  assert.deepEqual([third.silent, third.pids.length], [[], 2]);
  const fourth = await gatherer.gather();
  assert.deepEqual(fourth.disks.map(({ minor }) => minor), [0, 1]);
});

test("a tapdisk that was killed is shown with the minor that it left", async (bench) => {
  const killed = await serve(bench, "a.raw");
  await serve(bench, "b.raw");
  Deno.kill(killed, "SIGKILL");
  // With all its threads: until then its socket takes connections.
  await until("it has ended", () => !isAlive(killed));
  const { dead, unserved, silent, disks } = await new Gatherer(PATIENT).gather();
  assert.deepEqual([dead, silent], [[killed], []]);
  assert.deepEqual(unserved, [{ minor: 0, image: null }]);
  assert.deepEqual(disks.map(({ minor }) => minor), [1]);
});

test("one that does not say which disk is which is asked disk by disk", async (bench) => {
  Deno.mkdirSync(`${bench.control}/tapdisk`, { recursive: true, mode: 0o700 });
  const tapdisk = await LyingTapdisk.start(`${bench.control}/ctl${Deno.pid}`);
  const statistics = (name: string): Uint8Array => {
    const value = { name, secs: [8, 0], images: [], reqs_outstanding: 2 };
    return new TextEncoder().encode(JSON.stringify(value));
  };
  const answer = (...parts: Uint8Array[]) => ({
    read: MESSAGE_BYTES,
    answer: Uint8Array.from(parts.flatMap((part) => [...part])),
    times: 1,
    stays: false,
  });
  const text = (...parts: Uint8Array[]) =>
    answer(encodeStatisticsHead(0, parts.reduce((sum, part) => sum + part.length, 0)), ...parts);
  const bytes = (characters: string): Uint8Array => new TextEncoder().encode(characters);
  const entry = { minor: 5, state: 0x2a, path: "vhd:/x" };
  const end = { count: 0, minor: -1, state: 0, path: "" };
  const list = answer(encodeListEntry(0, { count: 1, ...entry }), encodeListEntry(0, end));
  try {
    tapdisk.tell([
      text(bytes("[ "), statistics("vhd:/x"), bytes(" ]")),
      list,
      text(statistics("vhd:/x")),
    ]);
    const gatherer = new Gatherer(PATIENT);
    const { disks, silent } = await gatherer.gather();
    assert.deepEqual(silent, []);
    const [disk] = disks;
    assert.deepEqual([disk.minor, disk.state, disk.path, disk.partial], [5, 0x2a, "/x", true]);
    assert.deepEqual([disk.readSectors, disk.inFlight], [8, 2]);
    // It is known from then on.
    tapdisk.tell([list, text(statistics("vhd:/y"))]);
    assert.equal((await gatherer.gather()).disks[0].path, "/y");
    tapdisk.tell([text(bytes("[ 1 ]"))]);
    assert.match(
      (await new Gatherer(PATIENT).gather()).silent[0].why,
      /closed|no fields|statistics/,
    );
  } finally {
    tapdisk.end();
    // The bench ends what has a socket. The runtime may have removed that of a thread that was ended.
    await Deno.remove(`${bench.control}/ctl${Deno.pid}`).catch((error) => {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    });
  }
});
