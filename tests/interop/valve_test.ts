/**
 * Disks behind valves, and td-rated, under fio: the rate, alone and shared; a bridge that is killed and
 * comes back; pauses and closes while writes wait.
 *
 * @module
 */
import assert from "node:assert/strict";
import { commandLine, type ControlBench, until, withControlBench } from "../support/control.ts";
import { fio } from "../support/fio.ts";
import { needs, run } from "../support/tools.ts";
import { isListening, RunningBridge } from "../support/valves.ts";

const WRITES = ["rw=randwrite", "bs=16k", "iodepth=32", "size=32M", "time_based"];

/** A bench with disks in memory behind a bridge. */
class Bench {
  readonly socket: string;

  constructor(readonly control: ControlBench) {
    this.socket = `${control.folder}/bridge.sk`;
  }

  /** Serves a disk; returns its device and its URI. */
  async serve(image = "ram:64"): Promise<{ device: string; uri: string; pid: number }> {
    const minor = /(\d+)$/.exec(await this.control.ok(`create -a valve:${this.socket}:${image}`));
    const [line] = await this.control.list(`-m ${minor?.[1]}`);
    const pid = Number(/^pid=(\d+)/.exec(line)?.[1]);
    const uri = `nbd+unix:///?socket=${this.control.control}/nbd${pid}.${minor?.[1]}`;
    return { device: `-p ${pid} -m ${minor?.[1]}`, uri, pid };
  }
}

/** Bytes written in a second, within so many seconds. */
async function rate(uri: string, seconds: number, ...options: string[]): Promise<number> {
  const [job] = await fio(uri, [...WRITES, `runtime=${seconds}`, ...options]);
  return job.write.io_bytes / seconds;
}

function assertNear(bytes: number, wanted: number, percent = 10): void {
  const off = 100 * Math.abs(bytes / wanted - 1);
  assert.ok(off <= percent, `${bytes} bytes a second instead of ${wanted}`);
}

function test(name: string, body: (bench: Bench) => Promise<void>): void {
  const { suffix, ignore } = needs("fio");
  Deno.test({
    name: `valve: ${name}${suffix}`,
    ignore,
    fn: () => withControlBench((control) => body(new Bench(control))),
  });
}

test("a leaky and a token bucket keep their rates, and reads pass", async (bench) => {
  const { uri, device } = await bench.serve();
  let bridge = await RunningBridge.start(bench.socket, "-t", "leaky", "--", "--rate=20M");
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assertNear(await rate(uri, 6), 20e6);
  const [{ read }] = await fio(uri, [
    "rw=randread",
    "bs=64k",
    "size=32M",
    "time_based",
    "runtime=1",
  ]);
  assert.ok(read.bw_bytes > 60e6, `${read.bw_bytes} bytes a second are read`);
  bridge.signal("SIGUSR1");
  await new Promise((resolve) => setTimeout(resolve, 700));
  const { code, log } = await bridge.end();
  assert.equal(code, 0);
  assert.match(log, /token bucket: 20000000 bytes a second, cap 0/);
  assert.match(log, /valve 0: needs 0 bytes for 0 ms, 0 are under way, waited \d/);
  assert.throws(() => Deno.lstatSync(bench.socket), Deno.errors.NotFound);

  bridge = await RunningBridge.start(bench.socket, "-t", "token", "--", "-r", "8Mi", "-c", "8Mi");
  await new Promise((resolve) => setTimeout(resolve, 2500));
  // What was not used before is written at once.
  assertNear(await rate(uri, 6), (8 << 20) * 7 / 6);
  await bridge.end();
  await bench.control.ok(`destroy ${device}`);
});

test("disks of two tapdisks share a rate equally", async (bench) => {
  const bridge = await RunningBridge.start(bench.socket, "-t", "leaky", "--", "--rate=20M");
  const disks = [await bench.serve(), await bench.serve("bc:4:ram:64")];
  const rates = await Promise.all(
    disks.map(({ uri }, i) => rate(uri, 6, i === 0 ? "iodepth=8" : "bs=64k")),
  );
  assertNear(rates[0] + rates[1], 20e6);
  // The parts in which bytes are granted are larger than what the first one needs at once.
  assert.ok(rates[0] > 2e6 && rates[1] > 2e6, `${rates} bytes a second`);
  for (const { device } of disks) await bench.control.ok(`destroy ${device}`);
  await bridge.end();
});

test("a bridge that is killed lets everything pass, and limits again when it is back", async (bench) => {
  let bridge = await RunningBridge.start(bench.socket, "-t", "leaky", "--", "--rate=1M");
  const { uri, device } = await bench.serve();
  const running = rate(uri, 4);
  await new Promise((resolve) => setTimeout(resolve, 2000));
  await bridge.end("SIGKILL");
  // The killed one has left its socket.
  Deno.lstatSync(bench.socket);
  const freeRate = await running;
  assert.ok(freeRate > 10e6, `${freeRate} bytes a second without a bridge`);
  bridge = await RunningBridge.start(bench.socket, "-t", "leaky", "--", "--rate=4M");
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assertNear(await rate(uri, 6), 4e6);
  const log = bench.control.log();
  assert.match(log, /lost the bridge \((it hung up|ECONNRESET|EPIPE)\); writes pass/);
  assert.equal(log.split("ECONNREFUSED").length, 2, "The log has the reason once");
  await bridge.end();
  await bench.control.ok(`destroy ${device}`);
});

test("a pause and a close do not wait for a bridge that hangs", async (bench) => {
  const bridge = await RunningBridge.start(bench.socket, "-t", "leaky", "--", "--rate=20M");
  const { uri, device } = await bench.serve();
  bridge.signal("SIGSTOP");
  const running = rate(uri, 10).catch((error) => error);
  while (!/"reqs_outstanding": 32/.test(await bench.control.ok(`stats ${device}`))) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await bench.control.ok(`pause ${device} -t 2`);
  await bench.control.ok(`unpause ${device}`);
  await new Promise((resolve) => setTimeout(resolve, 500));
  const began = performance.now();
  await bench.control.ok(`close ${device}`);
  assert.ok(performance.now() - began < 20_000);
  await running;
  bridge.signal("SIGCONT");
  await bridge.end();
});

test("what is no valve is refused", async ({ control }) => {
  const cases: [string, number, RegExp][] = [
    ["valve:ram:64", 22, /Cannot open/],
    ["valve::ram:64", 22, /valve:BRIDGE:TYPE:PATH/],
    [`valve:/${"x".repeat(110)}:ram:64`, 36, /the path has/],
  ];
  for (const [image, status, wanted] of cases) {
    const { code, stderr } = await control.tapCtl(`create -a ${image}`);
    assert.deepEqual([code, wanted.test(stderr)], [status, true], stderr);
  }
});

async function tdRated(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const [program, ...rest] = commandLine("td-rated", ...args);
  const { code, stdout, stderr } = await run(program, rest, { timeoutMs: 60_000 });
  return { code, out: stdout, err: stderr };
}

Deno.test("td-rated: wrong command lines, and a socket that is taken", () =>
  withControlBench(async ({ folder }) => {
    const path = `${folder}/x.sk`;
    const wrong: [string[], number, RegExp][] = [
      [[], 22, /a name or a path .* is missing\nUsage: td-rated NAME/],
      [[path], 22, /--type required/],
      [[path, "-t", "token"], 22, /--rate required/],
      [[path, "-t", "token", "--", "--rate=0"], 22, /--rate required/],
      [[path, "-t", "token", "--", "--rate=6X"], 22, /invalid --rate: '6X'/],
      [[path, "-t", "leaky", "--", "--rate=6", "-c", "1"], 22, /invalid option -- 'c'/],
      [[path, "-t", "bucket"], 3, /No such driver: bucket/],
      [[path, "-x"], 22, /invalid option -- 'x'/],
      [[path, "-t", "meminfo", "--", "--high=40"], 22, /--high\/--low required/],
      [[path, "-t", "meminfo", "--", "-H4", "-L5", "-t", "leaky"], 22, /ratio/],
      [[path, "-t", "meminfo", "--", "-H4", "-L2", "-t", "meminfo"], 22, /required|must be/],
      [[`${folder}/none/x`, "-t", "leaky", "--", "-r1"], 2, /Cannot bind/],
    ];
    for (const [args, status, wanted] of wrong) {
      const { code, err } = await tdRated(...args);
      assert.deepEqual([code, wanted.test(err)], [status, true], `${args}: ${err}`);
    }
    assert.match((await tdRated("--help")).out, /^Usage: td-rated NAME -t token/);
    const bridge = await RunningBridge.start(path, "-t", "leaky", "--", "--rate=1M");
    const taken = await tdRated(path, "-t", "leaky", "--", "--rate=1M");
    assert.deepEqual([taken.code, /EADDRINUSE/.test(taken.err)], [98, true], taken.err);
    await bridge.end();
  }));

Deno.test("td-rated: it runs in the background, with limits by memory, until a signal", () =>
  withControlBench(async ({ folder }) => {
    const path = `${folder}/x.sk`;
    const limits = ["--high=90", "--low=80", "-t", "token", "--", "--rate=1M", "--cap", "2M"];
    assert.deepEqual(await tdRated(path, "-t", "meminfo", "--", ...limits), {
      code: 0,
      out: "",
      err: "",
    });
    assert.ok(isListening(path));
    const pid = Array.from(Deno.readDirSync("/proc"), ({ name }) => name)
      .filter((name) => /^\d+$/.test(name))
      .find((name) => {
        try {
          return Deno.readTextFileSync(`/proc/${name}/cmdline`).includes(`--daemon-child\0${path}`);
        } catch {
          return false;
        }
      });
    Deno.kill(Number(pid), "SIGTERM");
    await until("it has ended", () => !isListening(path));
    await until("its socket is gone", () => {
      try {
        return Deno.lstatSync(path) === null;
      } catch {
        return true;
      }
    });
  }));
