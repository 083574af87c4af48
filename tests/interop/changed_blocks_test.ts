/**
 * Changed-block tracking of a running tapdisk: the log that tap-ctl names, cbt-util beside it, and
 * what NBD clients see of the log.
 */
import assert from "node:assert/strict";
import { commandLine, type ControlBench, withControlBench } from "../support/control.ts";
import { loops, withLoopDevice } from "../support/loop_device.ts";
import { mayMount } from "../support/mounts.ts";
import { needs, run, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;

/** A bench with a raw disk of 16 MiB and logs for it. */
class Bench {
  readonly image: string;
  readonly log: string;
  #pid = 0;

  constructor(readonly control: ControlBench) {
    this.image = control.rawImage("disk.raw", 16 * MIB);
    this.log = `${control.folder}/disk.cbtlog`;
  }

  async cbtUtil(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    const [program, ...rest] = commandLine("cbt-util", ...args);
    return await run(program, rest);
  }

  async newLog(path: string, sizeBytes = 16 * MIB): Promise<string> {
    assert.equal((await this.cbtUtil("create", "-n", path, "-s", String(sizeBytes))).code, 0);
    return path;
  }

  async create(options: string): Promise<void> {
    await this.control.ok(`create -a aio:${this.image} ${options}`);
    this.#pid = Number(/^pid=(\d+)/.exec((await this.control.list())[0])?.[1]);
  }

  get device(): string {
    return `-p ${this.#pid} -m 0`;
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.control.control}/nbd${this.#pid}.0`;
  }

  async write(offset: number, length: number): Promise<void> {
    await runOk("qemu-io", ["-f", "raw", "-c", `write ${offset} ${length}`, this.uri]);
  }

  async extents(path = this.log): Promise<string> {
    return (await this.cbtUtil("extents", "-n", path)).stdout;
  }
}

const mounts = !needs("root", "mount", "umount").ignore && mayMount()
  ? { ignore: false, suffix: "" }
  : { ignore: true, suffix: " (skipped: may not mount a tmpfs)" };

function test(
  name: string,
  body: (bench: Bench) => Promise<void>,
  more = { ignore: false, suffix: "" },
): void {
  const { suffix, ignore } = needs("qemu-io", "nbdinfo");
  Deno.test({
    name: `changed blocks: ${name}${suffix}${more.suffix}`,
    ignore: ignore || more.ignore,
    fn: () => withControlBench((control) => body(new Bench(control))),
  });
}

test("a write, zeroing and a discard are in the log at once, and after a kill", async (bench) => {
  await bench.newLog(bench.log);
  await bench.create(`-C ${bench.log}`);
  await bench.write(65536 + 512, 512);
  await runOk("qemu-io", ["-f", "raw", "-c", `write -z ${4 * MIB} ${MIB}`, bench.uri]);
  await runOk("qemu-io", ["-f", "raw", "-d", "unmap", "-c", `discard ${8 * MIB} 4096`, bench.uri]);
  const stats = JSON.parse(await bench.control.ok(`stats ${bench.device}`));
  assert.deepEqual([stats.changed_blocks, stats.images[0].name], [bench.log, bench.log]);
  const [listed] = JSON.parse(await bench.control.ok("list --json"));
  assert.equal(listed.changedBlocks, bench.log);
  const wanted = `65536 65536\n${4 * MIB} ${MIB}\n${8 * MIB} 65536\n`;
  assert.equal(await bench.extents(), wanted);
  Deno.kill(Number(/-p (\d+)/.exec(bench.device)?.[1]), "SIGKILL");
  assert.equal(await bench.extents(), wanted);
});

test("unpause changes the log, keeps none without -c, and refuses a bad one", async (bench) => {
  const second = `${bench.control.folder}/second.cbtlog`;
  const other = `${bench.control.folder}/other.cbtlog`;
  await bench.newLog(bench.log);
  await bench.newLog(second);
  await bench.newLog(other, 32 * MIB);
  await bench.create(`-C ${bench.log}`);
  const { control, device } = bench;
  await bench.write(0, 512);
  await control.ok(`pause ${device}`);
  for (const bad of [other, `${control.folder}/missing`]) {
    const { code, stderr } = await control.tapCtl(`unpause ${device} -c ${bad}`);
    assert.deepEqual([code, /Cannot track changed blocks/.test(stderr)], [1, true], stderr);
  }
  await control.ok(`unpause ${device} -c ${second}`);
  await bench.write(MIB, 512);
  await control.ok(`pause ${device}`);
  await control.ok(`unpause ${device}`);
  await bench.write(2 * MIB, 512);
  assert.equal(await bench.extents(), "0 65536\n");
  assert.equal(await bench.extents(second), `${MIB} 65536\n`);
  await control.ok(`destroy ${device}`);
});

test("cbt-util reads the log of a running disk and changes what is not the tapdisk's", async (bench) => {
  await bench.newLog(bench.log);
  await bench.create(`-C ${bench.log}`);
  const parent = "6f1ed002-ab59-5e2e-bc1a-1b2c3d4e5f60";
  assert.equal((await bench.cbtUtil("set", "-n", bench.log, "-p", parent)).code, 0);
  await bench.write(0, 512);
  assert.equal((await bench.cbtUtil("get", "-n", bench.log, "-p")).stdout, `${parent}\n`);
  const size = await bench.cbtUtil("set", "-n", bench.log, "-s", String(32 * MIB));
  const merge = await bench.cbtUtil("coalesce", "-p", bench.log, "-c", bench.log);
  for (const { code, stderr } of [size, merge]) {
    assert.equal(code, 16);
    assert.match(stderr, /EBUSY/);
  }
  await bench.control.ok(`destroy ${bench.device}`);
  assert.equal((await bench.cbtUtil("set", "-n", bench.log, "-s", String(32 * MIB))).code, 0);
  assert.equal(await bench.extents(), "0 65536\n");
});

test("a log on a block device, as the storage manager keeps it on LVM", async (bench) => {
  const { folder } = bench.control;
  const file = `${folder}/volume`;
  const garbage = crypto.getRandomValues(new Uint8Array(65536));
  Deno.writeFileSync(file, garbage);
  await withLoopDevice(file, 4 * MIB, async (device) => {
    await bench.newLog(device);
    assert.equal(await bench.extents(device), "");
    await bench.create(`-C ${device}`);
    await bench.write(65536, 512);
    // What the tapdisk has set is seen, and what others set stays.
    const uuid = "6f1ed002-ab59-5e2e-bc1a-1b2c3d4e5f60";
    assert.equal((await bench.cbtUtil("set", "-n", device, "-c", uuid)).code, 0);
    await bench.write(3 * 65536, 512);
    assert.equal(await bench.extents(device), "65536 65536\n196608 65536\n");
    await bench.control.ok(`destroy ${bench.device}`);
    assert.equal((await bench.cbtUtil("set", "-n", device, "-f", "1")).code, 0);
    const facts = JSON.parse((await bench.cbtUtil("get", "-n", device, "--json")).stdout);
    assert.deepEqual([facts.child, facts.consistent, facts.changedBytes], [uuid, true, 131072]);
    assert.equal((await bench.cbtUtil("set", "-n", device, "-s", String(64 * MIB))).code, 0);
    assert.equal(await bench.extents(device), "65536 65536\n196608 65536\n");
  });
  // Behind the log of 64 MiB, 48 and 128 bytes, is what was there.
  const bytes = Deno.readFileSync(file);
  assert.deepEqual(bytes.subarray(176, garbage.length), garbage.subarray(176));
}, loops);

for (const lengthBytes of [0, 48]) {
  test(`a log cut to ${lengthBytes} bytes under a running tapdisk does not end it`, async (bench) => {
    const { control, log } = bench;
    await bench.newLog(log);
    await bench.create(`-C ${log}`);
    await bench.write(0, 512);
    Deno.truncateSync(log, lengthBytes);
    await bench.write(65536, 512);
    // No new bit: no call, and the length stays.
    Deno.truncateSync(log, lengthBytes);
    await bench.write(65536, 512);
    assert.equal(Deno.statSync(log).size, lengthBytes);
    await bench.write(255 * 65536, 512);
    assert.equal((await control.list()).length, 1);
    await control.ok(`destroy ${bench.device}`);
    // All bits are there again. What else was cut off is not: such a log is of no disk.
    const bits = Deno.readFileSync(log).subarray(48);
    assert.deepEqual([bits.length, bits[0], bits[31]], [32, 0b11, 0b1000_0000]);
    if (lengthBytes === 48) {
      assert.equal(await bench.extents(), `0 131072\n${255 * 65536} 65536\n`);
      return;
    }
    const { code, stderr } = await control.tapCtl(`create -a aio:${bench.image} -C ${log}`);
    assert.deepEqual([code, /Cannot track changed blocks/.test(stderr)], [1, true], stderr);
  });
}

test("a write waits while a full file system has no room for its bit", async (bench) => {
  const { control } = bench;
  const small = `${control.folder}/small`;
  Deno.mkdirSync(small);
  await runOk("mount", ["-t", "tmpfs", "-o", "size=64k", "none", small]);
  try {
    const log = await bench.newLog(`${small}/disk.cbtlog`);
    await bench.create(`-C ${log}`);
    // The log had room, until somebody cut it and took the room.
    Deno.truncateSync(log, 0);
    const full = Deno.openSync(`${small}/other`, { write: true, create: true });
    assert.throws(() => {
      for (;;) full.writeSync(new Uint8Array(4096));
    });
    full.close();
    let hasEnded = false;
    const write = bench.write(65536, 512).then(() => hasEnded = true);
    await new Promise((resolve) => setTimeout(resolve, 2500));
    assert.ok(!hasEnded);
    assert.ok(Deno.readFileSync(bench.image).every((byte) => byte === 0));
    Deno.removeSync(`${small}/other`);
    await write;
    assert.deepEqual(Deno.readFileSync(log).subarray(48), new Uint8Array([0b10]));
    assert.ok(Deno.readFileSync(bench.image).some((byte) => byte !== 0));
    await control.ok(`destroy ${bench.device}`);
  } finally {
    await runOk("umount", ["-l", small]);
  }
}, mounts);

test("NBD clients find the changed blocks in two meta contexts", async (bench) => {
  await bench.newLog(bench.log);
  await bench.create(`-C ${bench.log}`);
  await bench.write(0, 65536);
  await bench.write(3 * MIB, 131072);
  const info = await runOk("nbdinfo", ["--json", bench.uri]);
  assert.deepEqual(JSON.parse(info).exports[0].contexts, [
    "base:allocation",
    "blktap:cbt",
    "qemu:dirty-bitmap:cbt",
  ]);
  for (const context of ["blktap:cbt", "qemu:dirty-bitmap:cbt"]) {
    const stdout = await runOk("nbdinfo", ["--json", `--map=${context}`, bench.uri]);
    const map = JSON.parse(stdout).map((
      { offset, length, type }: { offset: number; length: number; type: number },
    ) => [offset, length, type]);
    assert.deepEqual(map, [
      [0, 65536, 1],
      [65536, 3 * MIB - 65536, 0],
      [3 * MIB, 131072, 1],
      [3 * MIB + 131072, 13 * MIB - 131072, 0],
    ]);
  }
  const base = await runOk("nbdinfo", ["--json", "--map", bench.uri]);
  assert.equal(JSON.parse(base).at(-1).type, 3);
  const options = JSON.stringify({
    driver: "nbd",
    server: { type: "unix", path: bench.uri.replace(/.*socket=/, "") },
    "x-dirty-bitmap": "qemu:dirty-bitmap:cbt",
  });
  const qemu = await runOk("qemu-img", ["map", "--output=json", `json:${options}`]);
  // qemu shows a set bit of the bitmap as "data": false.
  assert.deepEqual(
    JSON.parse(qemu).map(({ start }: { start: number }) => start).slice(0, 3),
    [
      0,
      65536,
      3 * MIB,
    ],
  );
});
