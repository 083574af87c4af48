/**
 * Rate limits of a running tapdisk under fio: how exact they are, that they change, outlast a pause
 * and a new tapdisk, and cost no processor time.
 *
 * @module
 */
import assert from "node:assert/strict";
import { type ControlBench, withControlBench } from "../support/control.ts";
import { fio, type FioJob } from "../support/fio.ts";
import { needs } from "../support/tools.ts";

const NO_LIMITS = {
  read_iops: 0,
  write_iops: 0,
  total_iops: 0,
  read_bps: 0,
  write_bps: 0,
  total_bps: 0,
  burst_ms: 100,
};
/** Ticks of processor time in a second (USER_HZ). */
const TICKS = 100;

/** A disk in memory whose limits are changed. */
class Disk {
  constructor(readonly control: ControlBench, readonly pid: number) {}

  static async create(control: ControlBench, options: string): Promise<Disk> {
    await control.ok(`create -a ram:64 ${options}`.trim());
    return new Disk(control, Number(/^pid=(\d+)/.exec((await control.list())[0])?.[1]));
  }

  get device(): string {
    return `-p ${this.pid} -m 0`;
  }

  async limit(options: string): Promise<string> {
    return await this.control.ok(`limit ${this.device} ${options}`.trim());
  }

  async listed(): Promise<unknown> {
    return JSON.parse(await this.control.ok("list --json -m 0"))[0].limits;
  }

  async statistics(): Promise<{
    limits: unknown;
    waited: { limit: { requests: number; milliseconds: number } };
  }> {
    return JSON.parse(await this.control.ok(`stats ${this.device}`));
  }

  /** Runs fio for so long. */
  async run(seconds: number, ...options: string[]): Promise<FioJob> {
    const uri = `nbd+unix:///?socket=${this.control.control}/nbd${this.pid}.0`;
    const all = ["time_based", `runtime=${seconds}`, "size=32M", "iodepth=32", ...options];
    return (await fio(uri, all))[0];
  }

  /** Processor time of the tapdisk so far, seconds. */
  get cpuSeconds(): number {
    const stat = Deno.readTextFileSync(`/proc/${this.pid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS;
  }
}

function test(name: string, options: string, body: (disk: Disk) => Promise<void>): void {
  const { suffix, ignore } = needs("fio");
  Deno.test({
    name: `rate limits: ${name}${suffix}`,
    ignore,
    fn: () =>
      withControlBench(async (control) => {
        const disk = await Disk.create(control, options);
        await body(disk);
        await control.ok(`destroy ${disk.device}`);
      }),
  });
}

function assertNear(rate: number, wanted: number, what: string): void {
  // More is a fault. A machine that is slow may carry out less; tests/sim/rate_limits_test.ts is exact.
  const isNear = rate <= 1.05 * wanted && rate >= 0.8 * wanted;
  assert.ok(isNear, `${what}: ${rate} a second instead of ${wanted}`);
}

test(
  "requests in a second, at most 5 % too many in ten seconds, without busy waiting",
  "",
  async (disk) => {
    await disk.limit("--read-iops 400 --write-iops 2K");
    const before = disk.cpuSeconds;
    // Less than 400 of these are reads.
    const { write } = await disk.run(10, "rw=randrw", "rwmixread=10", "bs=4k");
    assertNear(write.iops, 2000, "writes");
    const reads = await disk.run(10, "rw=randread", "bs=4k");
    assertNear(reads.read.iops, 400, "reads");
    const spent = disk.cpuSeconds - before;
    assert.ok(spent < 12, `${spent} seconds of processor time in 20`);
    assert.ok((await disk.statistics()).waited.limit.requests > 4000);
  },
);

test("bytes in a second, of requests of any size", "--total-bps 20M", async (disk) => {
  const sizes = "bssplit=4k/60:16k/20:64k/10:256k/10";
  const { read, write } = await disk.run(10, "rw=randrw", sizes);
  assertNear((read.io_bytes + write.io_bytes) / 10, 20_000_000, "bytes");
});

test("a change counts for requests that wait, and is listed", "--read-iops 1", async (disk) => {
  assert.deepEqual(await disk.listed(), { ...NO_LIMITS, read_iops: 1 });
  const running = disk.run(4, "rw=randread", "bs=4k");
  await new Promise((resolve) => setTimeout(resolve, 1500));
  await disk.limit("--read-iops none --burst 20 --read-bps 4Mi");
  const wanted = { ...NO_LIMITS, read_bps: 4 << 20, burst_ms: 20 };
  assert.deepEqual(await disk.listed(), wanted);
  assert.deepEqual(JSON.parse(await disk.limit("--json")), wanted);
  assert.equal(await disk.limit(""), "read_bps 4194304\nburst_ms 20");
  assert.deepEqual((await disk.statistics()).limits, wanted);
  const { read } = await running;
  assert.ok(read.total_ios > 1000, `${read.total_ios} reads`);
  await disk.limit("--read-bps 0");
  assert.deepEqual(await disk.listed(), null);
  assert.equal(await disk.limit("--json"), "null");
  assert.equal(await disk.limit(""), "none");
  const free = await disk.run(1, "rw=randread", "bs=4k");
  assert.ok(free.read.iops > 2000, `${free.read.iops} reads`);
});

test("a pause does not wait for a limit, which outlasts it", "--write-iops 2", async (disk) => {
  const running = disk.run(6, "rw=randwrite", "bs=4k");
  await new Promise((resolve) => setTimeout(resolve, 2000));
  await disk.control.ok(`pause ${disk.device} -t 2`);
  await disk.limit("--write-iops 200");
  await disk.control.ok(`unpause ${disk.device}`);
  const { write } = await running;
  assert.ok(write.total_ios > 100 && write.total_ios < 1000, `${write.total_ios} writes`);
  assert.deepEqual(await disk.listed(), { ...NO_LIMITS, write_iops: 200 });
  // What waits at a close is answered, and does not delay it.
  await disk.limit("--write-iops 1");
});

test("what can be no limit is refused", "--write-bps 1Gi", async ({ control, device }) => {
  const bad = ["--read-iops x", "--read-bps 1.5M", "--burst 1", "--total-iops -1", "--burst none"];
  for (const options of bad) {
    const { code, stderr } = await control.tapCtl(`limit ${device} ${options}`);
    assert.deepEqual([code, /must be a whole number/.test(stderr)], [22, true], stderr);
  }
  const { code, stderr } = await control.tapCtl(`limit ${device.replace("-m 0", "-m 7")}`);
  assert.deepEqual([code, /Cannot limit minor 7/.test(stderr)], [19, true], stderr);
  await control.ok("allocate");
  await control.ok(`attach ${device.replace("-m 0", "-m 1")}`);
  const closed = await control.tapCtl(`limit ${device.replace("-m 0", "-m 1")} --read-iops 5`);
  assert.deepEqual([closed.code, /it has no image/.test(closed.stderr)], [22, true]);
  await control.ok(`detach ${device.replace("-m 0", "-m 1")}`);
});
