import assert from "node:assert/strict";
import {
  commandLine,
  type ControlBench,
  foreground,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { needs, run } from "../support/tools.ts";

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`tapdisk: ${name}`, () => withControlBench(body));
}

test("by hand it goes to the background and names its socket", async (bench) => {
  const [program, ...args] = commandLine("tapdisk");
  const { code, stdout, stderr } = await run(program, args, { env: bench.env });
  assert.equal(code, 0, stderr);
  const pid = Number(/^\S+\/control\/ctl(\d+)\n$/.exec(stdout)?.[1]);
  assert.equal(stdout, `${bench.control}/ctl${pid}\n`);
  assert.deepEqual(await bench.list(), [`pid=${pid}`]);

  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /, "").split(" ");
  assert.equal(Number(stat[3]), pid, "it leads a session of its own");
  assert.equal(Deno.readLinkSync(`/proc/${pid}/cwd`), "/");
  for (const fd of [0, 1, 2]) {
    assert.equal(Deno.readLinkSync(`/proc/${pid}/fd/${fd}`), "/dev/null");
  }
});

test("state folders are for their owner only", async (bench) => {
  await bench.spawn();
  for (const folder of ["", "/tapdisk", "/log"]) {
    const { mode } = Deno.statSync(`${bench.control}${folder}`);
    assert.equal((mode ?? 0) & 0o777, 0o700, folder);
  }
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`${signal} closes the disks, removes the sockets and ends it well`, async (bench) => {
    const { pid, kill, ended } = await foreground(bench);
    const image = bench.rawImage("a.raw");
    for (const minor of [0, 1]) {
      await bench.ok("allocate");
      await bench.ok(`attach -p ${pid} -m ${minor}`);
    }
    await bench.ok(`open -p ${pid} -m 1 -a aio:${image}`);
    kill(signal);
    const output = await ended;
    assert.match(output, new RegExp(`^0\n${bench.control}/ctl${pid}\n`));
    assert.match(output, /Closed aio:\S+a\.raw on minor 1/);
    assert.deepEqual(bench.sockets(), []);
    assert.deepEqual(await bench.list(), ["minor=0", "minor=1"]);
    await bench.ok("free -m 1");
    await bench.ok(`create -a aio:${image}`);
  });
}

test("SIGHUP opens the log anew; SIGUSR1 logs the disks; SIGUSR2 does no harm", async (bench) => {
  const { pid, kill, ended } = await foreground(bench);
  await bench.ok("allocate");
  await bench.ok(`attach -p ${pid} -m 0`);
  const path = `${bench.control}/log/tapdisk.log`;
  Deno.renameSync(path, `${path}.1`);
  kill("SIGHUP");
  await until("there is a new log", () => {
    try {
      return bench.log().includes("SIGHUP");
    } catch {
      return false;
    }
  });
  assert.match(Deno.readTextFileSync(`${path}.1`), /Attached minor 0/);
  assert.doesNotMatch(bench.log(), /Attached minor 0/);
  kill("SIGUSR1");
  await until("statistics are logged", () => /minor 0: \{ "name"/.test(bench.log()));
  assert.match(bench.log(), /Minor 0: no image, state 0x0, 0 requests have not ended/);
  kill("SIGUSR2");
  await until("the signal is noted", () => bench.log().includes("SIGUSR2"));
  await bench.ok(`detach -p ${pid} -m 0`);
  assert.match(await ended, /^0\n/);
});

test("sockets of tapdisks that were killed do not stop the next", async (bench) => {
  const image = bench.rawImage("a.raw");
  await bench.ok(`create -a aio:${image}`);
  const [line] = await bench.list();
  const pid = Number(/^pid=(\d+)/.exec(line)?.[1]);
  Deno.kill(pid, "SIGKILL");
  await until("it is dead", () => !isRunning(pid));
  assert.deepEqual(bench.sockets(), bench.socketsOf(pid, 0));
  assert.deepEqual(await bench.list(), ["minor=0"]);
  await until("its process number is free", () => {
    try {
      Deno.statSync(`/proc/${pid}`);
      return false;
    } catch {
      return true;
    }
  });
  const next = await bench.spawn();
  assert.deepEqual(bench.sockets(), bench.socketsOf(next));
  await bench.ok("free -m 0");
});

test("a folder that cannot be made is told, with its error number", async (bench) => {
  const file = bench.rawImage("file");
  for (const args of [["-D"], []]) {
    const [program, ...rest] = commandLine("tapdisk", ...args);
    const env = { ...bench.env, BLKTAP_CONTROL_DIR: `${file}/control` };
    const { code, stdout, stderr } = await run(program, rest, { env });
    assert.equal(code, 20, stderr);
    assert.match(stderr, /tapdisk: Cannot create the folder \S+\/file\/control/);
    assert.equal(stdout, "");
  }
  const { code, stderr } = await bench.tapCtl("spawn", {
    env: { BLKTAP_CONTROL_DIR: `${bench.folder}/${"x".repeat(100)}` },
  });
  assert.notEqual(code, 0);
  assert.match(stderr, /path has \d+ bytes/);
});

test("usage", async (bench) => {
  const [program, ...help] = commandLine("tapdisk", "--help");
  const asked = await run(program, help, { env: bench.env });
  assert.equal(asked.code, 0);
  assert.match(asked.stdout, /^Usage: tapdisk [^]*-D[^]*SIGHUP/);
  for (const args of [["-z"], ["extra"]]) {
    const [, ...rest] = commandLine("tapdisk", ...args);
    const { code, stderr } = await run(program, rest, { env: bench.env });
    assert.equal(code, 22, stderr);
    assert.match(stderr, /Usage: tapdisk/);
  }
});

const nbdcopy = needs("nbdcopy");

Deno.test({
  name: `tapdisk: SIGTERM in the midst of writes closes the disk and ends it well${nbdcopy.suffix}`,
  ignore: nbdcopy.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const size = 512 << 20;
      const { pid, kill, ended } = await foreground(bench);
      await bench.ok("allocate");
      await bench.ok(`attach -p ${pid} -m 0`);
      const image = bench.rawImage("a.raw", size);
      await bench.ok(`open -p ${pid} -m 0 -a aio:${image}`);
      const source = bench.rawImage("source.raw", size);
      const nbd = `nbd+unix:///?socket=${bench.control}/nbd${pid}.0`;
      const copy = run("nbdcopy", ["--allocated", "--no-extents", source, nbd]);
      await until("the copy is under way", () => Deno.statSync(image).blocks !== 0);
      kill("SIGTERM");
      assert.match(await ended, /^0\n[^]*Closed aio:/);
      await copy;
      assert.deepEqual(bench.sockets(), []);
      await bench.ok(`create -a aio:${image}`);
    }),
});
