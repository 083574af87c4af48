/**
 * A tapdisk that does not answer (stopped with SIGSTOP). Commands for other tapdisks are not
 * delayed; commands for all tapdisks wait once, for a bounded time.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { unixConnectAtOnce } from "../../ffi/sockets.ts";
import { ANSWER_TIMEOUT_MS } from "../../src/control/client/inventory.ts";
import { type ControlBench, isRunning, until, withControlBench } from "../support/control.ts";

interface Served {
  readonly pid: number;
  readonly image: string;
}

/** Serves a raw image with the next minor. */
async function serve(bench: ControlBench, name: string): Promise<Served> {
  const before = await bench.list();
  const image = bench.rawImage(name);
  await bench.ok(`create -a aio:${image}`);
  const line = (await bench.list()).find((each) => !before.includes(each)) ?? "";
  return { pid: Number(/^pid=(\d+) /.exec(line)?.[1]), image };
}

/** Calls `body` while tapdisks are stopped. */
async function whileStopped(pids: readonly number[], body: () => Promise<void>): Promise<void> {
  for (const pid of pids) Deno.kill(pid, "SIGSTOP");
  try {
    await body();
  } finally {
    for (const pid of pids) if (isRunning(pid)) Deno.kill(pid, "SIGCONT");
  }
}

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`a hung tapdisk: ${name}`, () => withControlBench(body));
}

/** Runs tap-ctl, which must succeed without a tapdisk that does not answer. */
async function asksNobodySilent(bench: ControlBench, args: string): Promise<string> {
  const { code, stdout, stderr } = await bench.tapCtl(args);
  assert.deepEqual([code, stderr], [0, ""], args);
  return stdout;
}

test("list asks only those that can have the minor", async (bench) => {
  const hung = await serve(bench, "a.raw");
  const lively = await serve(bench, "b.raw");
  await bench.ok("allocate");
  const idle = await bench.spawn();
  await bench.ok("allocate");
  await bench.ok(`attach -p ${idle} -m 3`);
  await whileStopped([hung.pid], async () => {
    const row = `pid=${lively.pid} minor=1 state=0 args=aio:${lively.image}\n`;
    assert.equal(await asksNobodySilent(bench, "list -m 1"), row);
    assert.equal(await asksNobodySilent(bench, `list -p ${lively.pid}`), row);
    assert.equal(await asksNobodySilent(bench, `list -p ${hung.pid} -m 1`), "");
    assert.equal(await asksNobodySilent(bench, "list -m 2"), "minor=2\n");
    assert.equal(await asksNobodySilent(bench, "list -m 3"), `pid=${idle} minor=3 state=0\n`);
    assert.equal(await asksNobodySilent(bench, "list -m 77"), "");
    await asksNobodySilent(bench, "check");
    const recovered = await bench.tapCtl("recover");
    assert.deepEqual([recovered.code, recovered.stdout], [0, ""]);
    assert.match(
      recovered.stderr,
      new RegExp(`tap-ctl recover: tapdisk ${hung.pid} did not answer`),
    );
    await asksNobodySilent(bench, `destroy -p ${lively.pid} -m 1`);
  });
});

test("it is named, and listed with the minors it holds", async (bench) => {
  const hung = await serve(bench, "a.raw");
  await bench.ok("allocate");
  await bench.ok(`attach -p ${hung.pid} -m 1`);
  const lively = await serve(bench, "b.raw");
  await whileStopped([hung.pid], async () => {
    const row = `pid=${lively.pid} minor=2 state=0 args=aio:${lively.image}\n`;
    const all = await bench.tapCtl("list");
    assert.equal(all.stdout, `pid=${hung.pid} minor=0\npid=${hung.pid} minor=1\n${row}`);
    assert.match(all.stderr, new RegExp(`^tap-ctl list: tapdisk ${hung.pid} did not answer`));
    assert.equal(all.code, 0);
    const one = await bench.tapCtl("list -m 0 --json");
    const [{ pid, minor, state, silent }] = JSON.parse(one.stdout);
    assert.deepEqual({ pid, minor, state, silent }, {
      pid: hung.pid,
      minor: 0,
      state: null,
      silent: true,
    });
    const byFile = await bench.tapCtl(`list -t aio -f ${lively.image}`);
    assert.equal(byFile.stdout, row);
    assert.match(byFile.stderr, /did not answer/);
  });
});

test("several cost no more than one, also with full queues of connections", async (bench) => {
  const pids: number[] = [];
  for (const name of ["a", "b", "c", "d", "e", "f"]) pids.push((await serve(bench, name)).pid);
  await whileStopped(pids, async () => {
    const fds: number[] = [];
    assert.throws(() => {
      for (let i = 0; i < 5000; i++) fds.push(unixConnectAtOnce(`${bench.control}/ctl${pids[0]}`));
    }, { errno: Errno.EAGAIN });
    const started = performance.now();
    const { stdout, stderr } = await bench.tapCtl("list");
    const tookMs = performance.now() - started;
    assert.equal(stdout, pids.map((pid, minor) => `pid=${pid} minor=${minor}\n`).join(""));
    assert.equal(stderr.match(/did not answer/g)?.length, pids.length, stderr);
    assert.ok(tookMs < (pids.length - 0.5) * ANSWER_TIMEOUT_MS, `it took ${tookMs} ms`);
    fds.forEach(closeFile);
  });
});

test("destroy without a time limit gives up, and asks nothing of it", async (bench) => {
  const hung = await serve(bench, "a.raw");
  await whileStopped([hung.pid], async () => {
    const { code, stderr } = await bench.tapCtl(`destroy -p ${hung.pid} -m 0`);
    assert.equal(code, Errno.ETIMEDOUT, stderr);
    assert.match(stderr, new RegExp(`tapdisk ${hung.pid}.*ETIMEDOUT`));
  });
  const row = `pid=${hung.pid} minor=0 state=0 args=aio:${hung.image}`;
  assert.deepEqual(await bench.list(), [row]);
});

test("restore and its stop go on with the other disks", async (bench) => {
  const images = ["a", "b", "c"].map((name) => bench.rawImage(`${name}.raw`));
  const list = `${bench.folder}/devices`;
  const write = (names: number[]): void =>
    Deno.writeTextFileSync(
      list,
      names.map((i) => `disk${i} aio:${images[i]} device=none\n`).join(""),
    );
  write([0, 1]);
  await bench.ok(`restore --file ${list}`);
  const pid = Number(/^pid=(\d+) /.exec((await bench.list("-m 0"))[0])?.[1]);
  write([0, 1, 2]);
  await whileStopped([pid], async () => {
    const restored = await bench.tapCtl(`restore --file ${list}`, { timeoutMs: 120_000 });
    assert.equal(restored.code, Errno.ETIMEDOUT, restored.stderr);
    assert.match(restored.stderr, /disk0: .*tapdisk \d+ does not answer/);
    assert.match(restored.stdout, /^disk1: .* \(served already\)\ndisk2: .*nbd\d+\.2\n$/);
    const stopped = await bench.tapCtl(`restore --stop --file ${list}`, { timeoutMs: 120_000 });
    assert.equal(stopped.code, Errno.ETIMEDOUT, stopped.stderr);
    assert.equal(stopped.stdout, "disk2: stopped\ndisk1: stopped\n");
  });
  assert.equal(await bench.ok(`restore --stop --file ${list}`), "disk0: stopped");
  await until("all tapdisks have ended", () => bench.sockets().every((name) => name === "names"));
});
