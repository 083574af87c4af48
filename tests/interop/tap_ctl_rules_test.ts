/** tap-ctl: what is refused and how, and rules for several disks and tapdisks. */
import assert from "node:assert/strict";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  type ControlBench,
  isRunning,
  refused,
  until,
  withControlBench,
} from "../support/control.ts";

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`tap-ctl: ${name}`, () => withControlBench(body));
}

test("what is out of order is refused with the error's number", async (bench) => {
  const image = bench.rawImage("a.raw");
  const pid = await bench.spawn();
  await refused(bench, `attach -p ${pid} -m 0`, 22, /tapdisk-0: No such file/);
  await bench.ok("allocate");
  await bench.ok(`attach -p ${pid} -m 0`);
  await refused(bench, `attach -p ${pid} -m 0`, 22, /minor 0 .*\(EEXIST\)/);
  await refused(bench, `open -p ${pid} -m 0 -a aio:/none`, 2, /\/none: No such file/);
  await refused(bench, `open -p ${pid} -m 0 -a nosuch:/none`, 2, /"nosuch"/);
  await refused(bench, `open -p ${pid} -m 0 -a nocolon`, 22, /"nocolon"/);
  await refused(bench, `open -p ${pid} -m 5 -a aio:${image}`, 22, /minor 5/);
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0`]);
  await bench.ok(`open -p ${pid} -m 0 -a aio:${image}`);
  await refused(bench, `open -p ${pid} -m 0 -a aio:${image}`, 114, /a\.raw is open/);
  await refused(bench, `detach -p ${pid} -m 0`, 22, /a\.raw is open.*close it first/);
  await refused(bench, "free -m 0", 11, /detach it first/);
  await refused(bench, `unpause -p ${pid} -m 0`, 22, /not paused/);
  await refused(bench, `detach -p ${pid} -m 7`, 22, /minor 7 .*\(ENODEV\)/);
  for (const command of ["close", "pause", "unpause", "stats"]) {
    await refused(bench, `${command} -p ${pid} -m 7`, 19, /minor 7 .*\(ENODEV\)/);
  }
  for (const command of ["attach", "close", "destroy", "pause", "stats"]) {
    await refused(bench, `${command} -p 4194305 -m 0`, 2, /ctl4194305: No such file/);
  }
  assert.deepEqual(await bench.list("-p 4194305"), []);
  await refused(bench, "free -m 9", 2, /tapdisk-9/);
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0 args=aio:${image}`]);
});

test("an image is written by one tapdisk, and read by many", async (bench) => {
  const image = bench.rawImage("a.raw");
  await bench.ok(`create -a aio:${image}`);
  await refused(bench, `create -a aio:${image}`, 16, /a\.raw for writing.*\(EBUSY\)/);
  await bench.ok(`create -a aio:${image} -R`);
  const lines = await bench.list();
  assert.equal(lines.length, 2, lines.join("\n"));

  const writer = Number(/^pid=(\d+) minor=0/m.exec(lines.join("\n"))?.[1]);
  Deno.kill(writer, "SIGKILL");
  await until("the writer is dead", () => !isRunning(writer));
  await bench.ok(`create -a aio:${image}`);
});

test("the parent of a disk that runs stays open to others", async (bench) => {
  const base = `${bench.folder}/base.vhd`;
  const child = `${bench.folder}/child.vhd`;
  createDynamic(base, { sizeBytes: 64 << 20 });
  snapshot(child, { parent: base });
  await bench.ok(`create -a vhd:${child}`);
  await bench.ok(`create -a vhd:${base} -R`);
  await refused(bench, `create -a vhd:${child}`, 16, /child\.vhd/);
});

test("several devices in one tapdisk, which ends with the last", async (bench) => {
  const pid = await bench.spawn();
  for (let minor = 0; minor < 3; minor++) {
    await bench.ok("allocate");
    await bench.ok(`attach -p ${pid} -m ${minor}`);
    await bench.ok(`open -p ${pid} -m ${minor} -a aio:${bench.rawImage(`${minor}.raw`)}`);
  }
  assert.deepEqual(
    await bench.list(),
    [0, 1, 2].map((m) => `pid=${pid} minor=${m} state=0 args=aio:${bench.folder}/${m}.raw`),
  );
  for (const minor of [1, 0]) await bench.ok(`destroy -p ${pid} -m ${minor}`);
  assert.equal((await bench.list()).length, 1);
  assert.ok(isRunning(pid));
  await bench.ok(`destroy -p ${pid} -m 2`);
  await until("tapdisk ends", () => !isRunning(pid));
});

test("list leaves out what was not asked for", async (bench) => {
  const raw = bench.rawImage("a.raw");
  const vhd = `${bench.folder}/a.vhd`;
  createDynamic(vhd, { sizeBytes: 2 << 20 });
  await bench.ok(`create -a aio:${raw}`);
  await bench.ok(`create -a vhd:${vhd}`);
  await bench.ok("allocate");
  const [first, second, third] = (await bench.list()).sort((a, b) =>
    a.replace(/^pid=\d+ /, "").localeCompare(b.replace(/^pid=\d+ /, ""))
  );
  const pid = Number(/^pid=(\d+)/.exec(second)?.[1]);
  assert.deepEqual(await bench.list("-m 0"), [first]);
  assert.deepEqual(await bench.list(`-p ${pid}`), [second]);
  assert.deepEqual(await bench.list("-t vhd"), [second]);
  assert.deepEqual(await bench.list(`-f ${raw}`), [first]);
  assert.deepEqual(await bench.list("-m 2"), [third]);
  assert.deepEqual(await bench.list("-t vhd -m 0"), []);
  const json = JSON.parse(await bench.ok("list --json -m 1"));
  assert.deepEqual(json, [{
    pid,
    minor: 1,
    state: 0,
    type: "vhd",
    path: vhd,
    args: `vhd:${vhd}`,
    nbd: `${bench.control}/nbd${pid}.1`,
    exports: [],
    device: null,
    changedBlocks: null,
    limits: null,
  }]);
  const nothing = { pid: null, state: null, type: null, path: null, args: null };
  assert.deepEqual(JSON.parse(await bench.ok("list --json -m 2")), [
    {
      ...nothing,
      minor: 2,
      nbd: null,
      exports: null,
      device: null,
      changedBlocks: null,
      limits: null,
    },
  ]);
});

test("options may be written in every way that getopt takes", async (bench) => {
  const image = bench.rawImage("a.raw");
  await bench.ok("allocate");
  const pid = await bench.spawn();
  await bench.ok(`attach -m0 -p${pid}`);
  await bench.ok(`open -RDa aio:${image} -t40 -p ${pid} -m 0`);
  const stats = JSON.parse(await bench.ok(`stats -m 0 -p ${pid}`));
  assert.equal(stats.read_caching, "true");
  await bench.ok(`close -fp${pid} -m0`);
  await bench.ok(`list --debug -p ${pid}`);
});

test("unpause goes on with another image", async (bench) => {
  const image = bench.rawImage("a.raw");
  const other = bench.rawImage("b.raw");
  await bench.ok(`create -a aio:${image}`);
  const pid = Number(/^pid=(\d+)/.exec((await bench.list())[0])?.[1]);
  await bench.ok(`pause -p ${pid} -m 0 -t 10`);
  // A paused device has closed its image.
  await bench.ok(`create -a aio:${image}`);
  await refused(bench, `unpause -p ${pid} -m 0`, 16, /a\.raw/);
  await refused(bench, `unpause -p ${pid} -m 0 -a aio:/none`, 2, /\/none/);
  await bench.ok(`unpause -p ${pid} -m 0 -a aio:${other}`);
  assert.deepEqual(await bench.list(`-p ${pid}`), [`pid=${pid} minor=0 state=0 args=aio:${other}`]);
});

test("a path that the protocol cannot carry is refused", async (bench) => {
  await bench.ok("allocate");
  const pid = await bench.spawn();
  await bench.ok(`attach -p ${pid} -m 0`);
  await refused(bench, `open -p ${pid} -m 0 -a aio:/${"x".repeat(300)}`, 36, /at most 255 bytes/);
});

test("a time limit ends the wait for a tapdisk that says nothing", async (bench) => {
  Deno.mkdirSync(bench.control);
  const mute = Deno.listen({ transport: "unix", path: `${bench.control}/ctl1` });
  await refused(bench, "pause -p 1 -m 0 -t 1", 110, /tapdisk 1.*\(ETIMEDOUT\)/);
  mute.close();
});

test("usage errors say what is wrong and how it goes, with EINVAL", async (bench) => {
  await refused(bench, "nosuch", 22, /'nosuch'/);
  await refused(bench, "list -z", 22, /'-z'[^]*Usage: tap-ctl list/);
  await refused(bench, "attach -p 3", 22, /--minor[^]*Usage: tap-ctl attach/);
  await refused(bench, "create", 22, /--args/);
  await refused(bench, "free -m x", 22, /'x'/);
  await refused(bench, "free -m 65535", 22, /65535/);
  await refused(bench, "spawn now", 22, /too many arguments/);
  await refused(bench, "open -p 1 -m 0 -a vhd:/a -E", 22, /0 bytes; 32 or 64/);
  await refused(bench, "major -c", 22, /character/);
});

test("XenServer's options: a local cache, a parent that another minor serves", async (bench) => {
  const base = `${bench.folder}/base.vhd`;
  const child = `${bench.folder}/child.vhd`;
  createDynamic(base, { sizeBytes: 64 << 20 });
  snapshot(child, { parent: base });
  const pid = await bench.spawn();
  const device = `-p ${pid} -m 0`;
  await bench.ok("allocate");
  await bench.ok(`attach ${device}`);
  const absent = /Cannot read from the disk of minor 5 \(no tapdisk serves it\)/;
  await refused(bench, `open ${device} -a vhd:${child} -r -e 5`, 2, absent);
  await bench.ok(`open ${device} -a vhd:${child} -r`);
  for (let round = 0; round < 2; round++) {
    assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0 args=vhd:${child}`]);
    const { images } = JSON.parse(await bench.ok(`stats ${device}`));
    assert.deepEqual(
      images.map(({ driver }: { driver: { name: string } }) => driver.name),
      ["vhd", "lc", "vhd"],
    );
    await bench.ok(`pause ${device}`);
    await bench.ok(`unpause ${device}`);
  }
  await bench.ok(`close ${device}`);
  await bench.ok(`detach ${device}`);
});
