/**
 * `tap-ctl trace` of running tapdisks under fio, and what ends it.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type ChromeTrace, namesOf, readChromeTrace } from "../support/chrome_trace.ts";
import { commandLine, type ControlBench, until, withControlBench } from "../support/control.ts";
import { fio } from "../support/fio.ts";
import { needs } from "../support/tools.ts";

const { ignore, suffix } = needs("fio");
const DISK_BYTES = 64 << 20;

/** A trace that runs. */
class Trace {
  readonly file: string;
  readonly #bench: ControlBench;
  readonly #child: Deno.ChildProcess;

  private constructor(bench: ControlBench, file: string, child: Deno.ChildProcess) {
    this.#bench = bench;
    this.file = file;
    this.#child = child;
  }

  /** Starts one, and waits until requests are recorded. */
  static async start(bench: ControlBench, device: string, ...more: string[]): Promise<Trace> {
    const file = `${bench.folder}/trace-${crypto.randomUUID().slice(0, 8)}`;
    const words = ["trace", ...device.split(" "), "-o", file, ...more];
    const [program, ...args] = commandLine("tap-ctl", ...words);
    const child = new Deno.Command(program, { args, env: bench.env, stderr: "piped" }).spawn();
    // The file has another name until it is whole, and is made once the tapdisk has answered.
    const isBegun = ({ name }: Deno.DirEntry): boolean =>
      `${bench.folder}/${name}`.startsWith(`${file}.`);
    await until("it is traced", () => Deno.readDirSync(bench.folder).some(isBegun));
    return new Trace(bench, file, child);
  }

  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Waits for its end; returns the status, and what it said. */
  async end(): Promise<{ code: number; said: string }> {
    const { code, stderr } = await this.#child.output();
    return { code, said: new TextDecoder().decode(stderr) };
  }

  /** Ends it as Ctrl-C does, in order and without a word; returns the text. */
  async text(): Promise<string> {
    this.signal("SIGINT");
    assert.deepEqual(await this.end(), { code: 0, said: "" });
    const left = Array.from(Deno.readDirSync(this.#bench.folder), ({ name }) => name);
    assert.deepEqual(left.filter((name) => /tmp$|^tap-ctl-trace/.test(name)), []);
    return Deno.readTextFileSync(this.file);
  }
}

/** Serves an image; returns the words that name its device, and where its clients connect. */
async function serve(
  bench: ControlBench,
  image: string,
  options = "",
): Promise<{ device: string; uri: string; pid: number }> {
  await bench.ok(`create -a ${image} ${options}`.trim());
  const pid = Number(/pid=(\d+) minor=0/.exec((await bench.list()).join("\n"))?.[1]);
  return {
    device: `-p ${pid} -m 0`,
    uri: `nbd+unix:///?socket=${bench.control}/nbd${pid}.0`,
    pid,
  };
}

/** A chain of two VHDs, of which the upper one has a part of the data. */
function makeChain(folder: string): string {
  createDynamic(`${folder}/base.vhd`, { sizeBytes: DISK_BYTES });
  snapshot(`${folder}/leaf.vhd`, { parent: `${folder}/base.vhd`, keepEmptyParent: true });
  return `${folder}/leaf.vhd`;
}

function micros(value: unknown): number {
  assert.equal(typeof value, "number");
  return Number(value);
}

/** The stages of each request are in order and fill its time. */
function assertTiled({ slices }: ChromeTrace): void {
  const tracks = Map.groupBy(
    slices.filter(({ pid, tid }) => pid === 1 && tid > 0),
    ({ tid }) => tid,
  );
  for (const track of tracks.values()) {
    const requests = track.filter(({ cat }) => cat === "request").sort((a, b) => a.ts - b.ts);
    const stages = track.filter(({ cat }) => cat === "stage").sort((a, b) => a.ts - b.ts);
    let next = 0;
    for (const { ts, dur } of requests) {
      let at = ts;
      for (
        ;
        next < stages.length && stages[next].ts + stages[next].dur <= ts + dur + 0.01;
        next++
      ) {
        assert.ok(
          Math.abs(stages[next].ts - at) <= 0.01,
          `a stage at ${stages[next].ts}, not ${at}`,
        );
        at = stages[next].ts + stages[next].dur;
      }
      assert.ok(Math.abs(at - ts - dur) <= 0.01, `stages end at ${at}, the request at ${ts + dur}`);
    }
    assert.equal(next, stages.length);
  }
}

Deno.test({
  name: `a trace under fio has each of its requests, with stages in order${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const { device, uri } = await serve(bench, `vhd:${makeChain(bench.folder)}`);
      const trace = await Trace.start(bench, device);
      const [job] = await fio(uri, ["rw=randrw", "bs=4k", "iodepth=16", "size=32M", "io_size=8M"]);
      const json = readChromeTrace(await trace.text());
      const all = json.slices.filter(({ cat }) => cat === "request");
      const of = (name: string): number => all.filter((slice) => slice.name === name).length;
      const counts = [of("read 4 KiB"), of("write 4 KiB")];
      assert.deepEqual(counts, [job.read.total_ios, job.write.total_ios]);
      assert.ok(counts.every((count) => count > 100));
      const { requests, unfinished, lost_records: lost, failed } = json.otherData;
      assert.deepEqual([requests, unfinished, lost, failed], [all.length, 0, 0, 0]);
      assertTiled(json);
      // What fio measured includes what the trace does.
      const meanMs = (name: string): number => {
        const durations = all.filter((slice) => slice.name === name).map(({ dur }) => dur / 1000);
        return durations.reduce((sum, each) => sum + each, 0) / durations.length;
      };
      const { mean } = (job.read as unknown as { clat_ns: { mean: number } }).clat_ns;
      assert.ok(meanMs("read 4 KiB") <= mean / 1e6 * 1.1, "requests are no slower than fio saw");
      const images = [...namesOf(json, "process_name").values()];
      assert.ok(images.some((name) => name.endsWith(`vhd:${bench.folder}/leaf.vhd`)), `${images}`);
      const operations = json.slices.filter(({ cat }) => cat === "operation");
      const numbers = new Set(all.map(({ args }) => micros(args.request)));
      assert.ok(operations.length >= job.write.total_ios);
      for (const { args } of operations) assert.ok(numbers.has(micros(args.request)));
      await bench.ok(`destroy ${device}`);
    }),
});

Deno.test({
  name: `a trace of slow requests, and one as text${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const raw = bench.rawImage("disk.raw", DISK_BYTES);
      const { device, uri } = await serve(bench, `aio:${raw}`, "--read-iops 20");
      const options = ["rw=randread", "bs=4k", "iodepth=4", "size=32M", "number_ios=12"];
      const slow = await Trace.start(bench, device, "--slower-than", "120.5");
      const [job] = await fio(uri, options);
      const json = readChromeTrace(await slow.text());
      const shown = json.slices.filter(({ cat }) => cat === "request");
      assert.ok(shown.length > 0 && shown.length < job.read.total_ios, `${shown.length} were slow`);
      assert.ok(shown.every(({ dur }) => dur >= 120_500));
      assert.deepEqual([json.otherData.requests, json.otherData.shown], [
        job.read.total_ios,
        shown.length,
      ]);
      assert.ok(json.slices.some(({ name }) => name === "held by a rate limit"));
      const text = await Trace.start(bench, device, "--text");
      await fio(uri, options);
      const lines = (await text.text()).trimEnd().split("\n");
      const actions = Map.groupBy(lines, (line) => line.trim().split(/ +/)[4]);
      for (const action of ["Q", "I", "D", "B", "C"]) {
        assert.equal(actions.get(action)?.length, 12, `${action}: ${actions.get(action)}`);
      }
      assert.match(lines.join("\n"), /^ +0 +\d+ +\d+ +\d+\.\d{9} D R \d+ \+ 8 \[aio:/m);
      await bench.ok(`destroy ${device}`);
    }),
});

Deno.test({
  name: `a trace shows what the server of an image was asked${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const below = await serve(bench, `aio:${bench.rawImage("disk.raw", DISK_BYTES)}`);
      await bench.ok(`create -a nbd:unix:${bench.control}/nbd${below.pid}.0`);
      const pid = Number(/pid=(\d+) minor=1/.exec((await bench.list()).join("\n"))?.[1]);
      const trace = await Trace.start(bench, `-p ${pid} -m 1`);
      const uri = `nbd+unix:///?socket=${bench.control}/nbd${pid}.1`;
      const [job] = await fio(uri, [
        "rw=randread",
        "bs=4k",
        "iodepth=4",
        "number_ios=100",
        "size=8M",
      ]);
      const json = readChromeTrace(await trace.text());
      const operations = json.slices.filter(({ cat }) => cat === "operation");
      assert.deepEqual([job.read.total_ios, operations.length], [100, 100]);
      const names = namesOf(json, "process_name");
      for (const { pid, name, args, dur } of operations) {
        assert.match(names.get(`${pid}`) ?? "", /^1: nbd:unix:/);
        assert.deepEqual([name, args.sectors, dur > 0], ["read 4 KiB", 8, true]);
      }
      await bench.ok(`destroy -p ${pid} -m 1`);
      await bench.ok(`destroy ${below.device}`);
    }),
});

Deno.test("a trace ends when another tapdisk takes the disk over, and the next may follow", () =>
  withControlBench(async (bench) => {
    const { device, pid } = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
    const trace = await Trace.start(bench, device);
    const now = Number(await bench.ok(`upgrade -p ${pid}`));
    const said = `tap-ctl trace: Ended early: process ${now} serves the disk now\n`;
    assert.deepEqual(await trace.end(), { code: 0, said });
    readChromeTrace(Deno.readTextFileSync(trace.file));
    const next = await Trace.start(bench, `-p ${now} -m 0`);
    readChromeTrace(await next.text());
    await bench.ok(`destroy -p ${now} -m 0`);
  }));

Deno.test("a trace ends by itself after its time, and is refused beside another", () =>
  withControlBench(async (bench) => {
    const { device } = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
    const trace = await Trace.start(bench, device);
    const refused = await bench.tapCtl(`trace ${device} -o - --seconds 1`);
    assert.equal(refused.code, Errno.EBUSY);
    assert.match(refused.stderr, /^tap-ctl trace: Cannot trace minor 0 \(process \d+ traces it; /);
    readChromeTrace(await trace.text());
    const { code, stdout, stderr } = await bench.tapCtl(`trace ${device} -o - --seconds 0`);
    assert.deepEqual([code, stderr], [0, ""]);
    assert.equal(readChromeTrace(stdout).otherData.ended, "it was told to end");
    const device9 = device.replace("-m 0", "-m 9");
    assert.equal((await bench.tapCtl(`trace ${device9} -o -`)).code, Errno.ENODEV);
    Deno.symlinkSync("/dev/null", `${bench.folder}/link`);
    const link = await bench.tapCtl(`trace ${device} -o ${bench.folder}/link --seconds 0`);
    assert.match(link.stderr, /no regular file/);
    assert.equal(Deno.readLinkSync(`${bench.folder}/link`), "/dev/null");
    await bench.ok(`destroy ${device}`);
  }));

Deno.test("a trace ends when its reader is killed, when the disk closes, and with the tapdisk", () =>
  withControlBench(async (bench) => {
    const raw = bench.rawImage("disk.raw");
    const { device, pid } = await serve(bench, `aio:${raw}`);
    const killed = await Trace.start(bench, device);
    killed.signal("SIGKILL");
    await killed.end();
    await until("it has ended", () => bench.log().includes("has ended: nobody wants it"));
    assert.throws(() => Deno.lstatSync(killed.file), Deno.errors.NotFound);
    const closed = await Trace.start(bench, device);
    await bench.ok(`close ${device}`);
    const said = "tap-ctl trace: Ended early: the disk was closed\n";
    assert.deepEqual(await closed.end(), { code: 0, said });
    assert.equal(readChromeTrace(Deno.readTextFileSync(closed.file)).otherData.requests, 0);
    await bench.ok(`open ${device} -a aio:${raw}`);
    const left = await Trace.start(bench, device);
    Deno.kill(pid, "SIGKILL");
    const gone = "tap-ctl trace: Ended early: the tapdisk went away\n";
    assert.deepEqual(await left.end(), { code: 0, said: gone });
    readChromeTrace(Deno.readTextFileSync(left.file));
  }));
