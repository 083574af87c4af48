import assert from "node:assert/strict";
import { createDynamic } from "../../src/vhd/create.ts";
import {
  type ControlBench,
  isRunning,
  refused,
  until,
  withControlBench,
} from "../support/control.ts";
import { needs, runOk } from "../support/tools.ts";

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`tap-ctl: ${name}`, () => withControlBench(body));
}

test("a device's life, step by step", async (bench) => {
  const { control } = bench;
  const image = `${bench.folder}/a.vhd`;
  createDynamic(image, { sizeBytes: 64 << 20 });
  assert.deepEqual(await bench.list(), []);
  assert.equal(await bench.ok("allocate"), `${control}/tapdisk/tapdisk-0`);
  assert.deepEqual(await bench.list(), ["minor=0"]);
  const pid = await bench.spawn();
  assert.deepEqual(await bench.list(), [`pid=${pid}`, "minor=0"]);
  const device = `-p ${pid} -m 0`;

  assert.equal(await bench.ok(`attach ${device}`), "");
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0`]);
  assert.equal(await bench.ok(`open ${device} -a vhd:${image}`), "");
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0 args=vhd:${image}`]);
  assert.deepEqual(bench.sockets(), bench.socketsOf(pid, 0));

  await bench.ok(`pause ${device}`);
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0x2a args=vhd:${image}`]);
  await bench.ok(`pause ${device}`);
  await bench.ok(`unpause ${device}`);
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0 args=vhd:${image}`]);

  await bench.ok(`close ${device} -t 120`);
  assert.deepEqual(await bench.list(), [`pid=${pid} minor=0 state=0x2`]);
  assert.deepEqual(bench.sockets(), bench.socketsOf(pid));
  await bench.ok(`detach ${device}`);
  await until("tapdisk ends with its last device", () => !isRunning(pid));
  assert.deepEqual(await bench.list(), ["minor=0"]);
  assert.deepEqual(bench.sockets(), []);
  await bench.ok("free -m 0");
  assert.deepEqual(await bench.list(), []);
});

test("create and destroy do it all, and leave nothing", async (bench) => {
  const image = bench.rawImage("a.raw");
  assert.equal(await bench.ok(`create -a aio:${image}`), `${bench.control}/tapdisk/tapdisk-0`);
  const [line] = await bench.list();
  const pid = Number(/^pid=(\d+) minor=0 state=0 args=aio:/.exec(line)?.[1]);
  assert.ok(isRunning(pid), line);
  await bench.ok(`destroy -p ${pid} -m 0`);
  await until("tapdisk ends", () => !isRunning(pid));
  assert.deepEqual(await bench.list(), []);
  assert.deepEqual(bench.sockets(), []);
});

test("create that fails leaves neither a tapdisk nor a minor", async (bench) => {
  await refused(bench, "create -a vhd:/none.vhd", 2, /\/none\.vhd: No such file/);
  await until("the tapdisk has ended", () => bench.sockets().length === 0);
  assert.deepEqual(await bench.list(), []);
});

test("a relative path is one of the caller's folder", async (bench) => {
  bench.rawImage("a.raw");
  const { code, stderr } = await bench.tapCtl("create -a aio:a.raw", { cwd: bench.folder });
  assert.equal(code, 0, stderr);
  assert.match((await bench.list())[0], new RegExp(`args=aio:${bench.folder}/a\\.raw$`));
});

test("stats are a line of JSON and an empty line", async (bench) => {
  const image = bench.rawImage("a.raw");
  await bench.ok(`create -a aio:${image}`);
  const pid = Number(/^pid=(\d+)/.exec((await bench.list())[0])?.[1]);
  const { stdout } = await bench.tapCtl(`stats -p ${pid} -m 0`);
  const [line, ...rest] = stdout.split("\n");
  assert.deepEqual(rest, ["", ""]);
  const stats = JSON.parse(line);
  assert.equal(stats.name, `aio:${image}`);
  assert.deepEqual(stats.secs, [0, 0]);
  assert.equal(stats.images.length, 1);
  assert.equal(stats.images[0].name, image);
  assert.deepEqual(stats.images[0].hits, [0, 0]);
  assert.deepEqual(stats.images[0].fail, [0, 0]);
  assert.equal(stats.images[0].driver.name, "aio");
  assert.equal(stats.nbd_mirror_failed, 0);
  assert.equal(stats.FIXME_enospc_redirect_count, 0);
  assert.equal(stats.reqs_outstanding, 0);
  assert.equal(stats.read_caching, "false");
});

test("check is content here; a folder that cannot be made is told", async (bench) => {
  const [verdict, ...devices] = (await bench.ok("check")).split("\n");
  assert.equal(verdict, "ok");
  for (const line of devices) assert.match(line, /^(blktap2|ublk|nbd): (ok|not here \(.+\))$/);
  assert.deepEqual(await bench.list(), []);
  const file = bench.rawImage("file");
  const { code, stderr } = await bench.tapCtl("check", {
    env: { BLKTAP_CONTROL_DIR: `${file}/control` },
  });
  assert.equal(code, 20, stderr);
  assert.match(stderr, /\/file\/control/);
});

const nbdinfo = needs("nbdinfo");

Deno.test({
  name: `tap-ctl: the NBD socket of the list serves the disk${nbdinfo.suffix}`,
  ignore: nbdinfo.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      await bench.ok(`create -a aio:${bench.rawImage("a.raw", 3 << 20)} -R`);
      const [{ nbd }] = JSON.parse(await bench.ok("list --json"));
      const info = await runOk("nbdinfo", ["--json", `nbd+unix:///?socket=${nbd}`]);
      const [served] = JSON.parse(info).exports;
      assert.equal(served["export-size"], 3 << 20);
      assert.equal(served.is_read_only, true);
    }),
});
