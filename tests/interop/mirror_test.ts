/**
 * A disk with a secondary image, as a storage migration uses it: the secondary image is a disk of
 * another tapdisk, by NBD.
 */
import assert from "node:assert/strict";
import { type ControlBench, isRunning, until, withControlBench } from "../support/control.ts";
import { needs, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;

/** A disk of this bench. */
class Disk {
  constructor(readonly bench: ControlBench, readonly pid: number, readonly minor: number) {}

  get device(): string {
    return `-p ${this.pid} -m ${this.minor}`;
  }

  get socket(): string {
    return `${this.bench.control}/nbd${this.pid}.${this.minor}`;
  }

  /** Runs a command of qemu-io on the disk. */
  async io(command: string): Promise<void> {
    const text = await runOk("qemu-io", ["-f", "raw", "-c", command, this.uri]);
    assert.doesNotMatch(text, /verification failed|error/);
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.socket}`;
  }

  async statistics(): Promise<Record<string, unknown>> {
    return JSON.parse(await this.bench.ok(`stats ${this.device}`));
  }

  /** Pauses, and unpauses with these options. */
  async again(options = ""): Promise<void> {
    await this.bench.ok(`pause ${this.device}`);
    await this.bench.ok(`unpause ${this.device} ${options}`.trim());
  }
}

async function created(bench: ControlBench, options: string): Promise<Disk> {
  await bench.ok(`create ${options}`);
  const [newest] = JSON.parse(await bench.ok("list --json"))
    .sort((a: { minor: number }, b: { minor: number }) => b.minor - a.minor);
  return new Disk(bench, newest.pid, newest.minor);
}

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  const { suffix, ignore } = needs("qemu-io");
  Deno.test({ name: `mirror: ${name}${suffix}`, ignore, fn: () => withControlBench(body) });
}

test("unpause -2 mirrors to a disk of another tapdisk, and -2 null ends it", async (bench) => {
  const source = await created(bench, `-a aio:${bench.rawImage("a.raw", 16 * MIB)}`);
  const target = await created(bench, `-a aio:${bench.rawImage("b.raw", 16 * MIB)}`);
  await source.io("write -P 1 0 4k");
  await source.again(`-2 nbd:unix:${target.socket}`);
  await source.io("write -P 2 64k 128k");
  await source.io("write -z 1M 64k");
  // Without -2 the mirror stays.
  await source.again();
  await source.io("write -P 3 2M 64k");
  await target.io("read -P 0 0 4k");
  await target.io("read -P 2 64k 128k");
  await target.io("read -P 3 2M 64k");
  const { nbd_mirror_failed, reqs_outstanding, images } = await source.statistics();
  assert.deepEqual([nbd_mirror_failed, reqs_outstanding], [0, 0]);
  assert.equal((images as unknown[]).length, 2);
  await source.again("-2 null");
  await source.io("write -P 4 4M 64k");
  await target.io("read -P 0 4M 64k");
  await source.io("read -P 3 2M 64k");
});

test("a target that dies is left: writes go on, and the statistics say so", async (bench) => {
  const source = await created(bench, `-a aio:${bench.rawImage("a.raw", 16 * MIB)}`);
  const target = await created(bench, `-a aio:${bench.rawImage("b.raw", 16 * MIB)}`);
  await source.again(`-2 nbd:unix:${target.socket}`);
  await source.io("write -P 1 0 64k");
  Deno.kill(target.pid, "SIGKILL");
  await until("the target is dead", () => !isRunning(target.pid));
  await source.io("write -P 2 64k 64k");
  assert.equal((await source.statistics()).nbd_mirror_failed, 1);
  await source.again();
  await source.io("write -P 3 128k 64k");
  await source.io("read -P 2 64k 64k");
  assert.equal((await source.statistics()).nbd_mirror_failed, 1);
  await source.again("-2 null");
  assert.equal((await source.statistics()).nbd_mirror_failed, 0);
});

test("an unpause with a secondary image that does not open is refused", async (bench) => {
  const image = bench.rawImage("a.raw", MIB);
  const source = await created(bench, `-a aio:${image}`);
  const smaller = bench.rawImage("b.raw", MIB / 2);
  await bench.ok(`pause ${source.device}`);
  for (
    const [secondary, code, message] of [
      [`nbd:unix:${bench.control}/none`, 2, /none/],
      [`aio:${smaller}`, 22, /has 1024 sectors, and .* has 2048/],
      [`odd:${smaller}`, 2, /type "odd"/],
    ] as const
  ) {
    const result = await bench.tapCtl(`unpause ${source.device} -2 ${secondary}`);
    assert.equal(result.code, code, result.stderr);
    assert.match(result.stderr, message);
    assert.match((await bench.list()).join(), /state=0x[0-9a-f]+ args=aio:/);
  }
  await bench.ok(`unpause ${source.device}`);
  await source.io("write -P 1 0 4k");
});

test("a target that hangs holds up a write for eleven seconds at most", async (bench) => {
  const source = await created(bench, `-a aio:${bench.rawImage("a.raw", 16 * MIB)}`);
  const target = await created(bench, `-a aio:${bench.rawImage("b.raw", 16 * MIB)}`);
  await source.again(`-2 nbd:unix:${target.socket}`);
  Deno.kill(target.pid, "SIGSTOP");
  try {
    const startMs = performance.now();
    await source.io("write -P 1 0 64k");
    const tookMs = performance.now() - startMs;
    // qemu-io takes seconds to start on a busy machine. The target's own limit is at least 30 s.
    assert.ok(tookMs > 9_000 && tookMs < 28_000, `${tookMs} ms`);
    const { nbd_mirror_failed, secondary } = await source.statistics();
    assert.equal(nbd_mirror_failed, 1);
    assert.equal((secondary as { state: string }).state, "failed");
    await source.again();
    await source.io("read -P 1 0 64k");
    await bench.ok(`destroy ${source.device}`);
  } finally {
    Deno.kill(target.pid, "SIGCONT");
  }
});

test("a device whose image was full is not taken over without its secondary one", async (bench) => {
  const image = bench.rawImage("a.raw", MIB);
  const pid = await bench.spawn();
  await bench.ok("allocate");
  await bench.ok(`attach -p ${pid} -m 0`);
  const record = {
    image: `aio:${image}`,
    readOnly: false,
    direct: true,
    requestTimeoutSeconds: 0,
    device: "none",
    queue: "auto",
    secondary: "aio:/second",
    node: image,
    encrypted: false,
    full: true,
  };
  const path = `${bench.control}/tapdisk/tapdisk-0`;
  Deno.writeTextFileSync(path, JSON.stringify(record));
  const { code, stderr } = await bench.tapCtl(`open -p ${pid} -m 0 -a aio:${image}`);
  assert.equal(code, 116, stderr);
  assert.match(stderr, /became full, and what was written since is in aio:\/second alone/);
  Deno.writeTextFileSync(path, JSON.stringify({ ...record, full: false }));
  await bench.ok(`open -p ${pid} -m 0 -a aio:${image}`);
});
