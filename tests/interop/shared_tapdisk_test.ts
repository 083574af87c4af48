/** One process for disks of several callers: BLKTAP_DISKS_PER_PROCESS. */
import assert from "node:assert/strict";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import {
  commandLine,
  type ControlBench,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { NbdClient } from "../support/nbd_client.ts";
import { binaryPath, needs, runOk } from "../support/tools.ts";

/** A test whose callers share processes of `disks` disks, which end a second after their last one. */
function test(name: string, disks: number, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`shared tapdisks: ${name}`, () =>
    withControlBench((bench) => {
      bench.env.BLKTAP_DISKS_PER_PROCESS = `${disks}`;
      bench.env.BLKTAP_IDLE_SECONDS = "1";
      return body(bench);
    }));
}

/** Attaches a new minor to a tapdisk; returns the minor. */
async function attach(bench: ControlBench, pid: number): Promise<number> {
  const minor = Number((await bench.ok("allocate")).split("-").pop());
  await bench.ok(`attach -p ${pid} -m ${minor}`);
  return minor;
}

function counts(pids: readonly number[]): number[] {
  return [...new Set(pids)].map((pid) => pids.filter((each) => each === pid).length);
}

test(
  "a process ends a while after its last disk, and the next caller has a new one",
  2,
  async (bench) => {
    // It is listed while it has no disk, and a call of tap-ctl may take seconds.
    bench.env.BLKTAP_IDLE_SECONDS = "6";
    const first = await bench.spawn();
    const minor = await attach(bench, first);
    const image = bench.rawImage("a.raw");
    await bench.ok(`open -p ${first} -m ${minor} -a aio:${image}`);
    assert.deepEqual(await bench.list(), [`pid=${first} minor=0 state=0 args=aio:${image}`]);
    assert.equal(await bench.spawn(), first);
    await attach(bench, first);
    assert.equal((await bench.list()).length, 2);
    const other = await bench.spawn();
    assert.notEqual(other, first);
    await attach(bench, other);

    await bench.ok(`close -p ${first} -m 0`);
    for (const each of [0, 1]) await bench.ok(`detach -p ${first} -m ${each}`);
    assert.deepEqual(await bench.list(`-p ${first}`), [`pid=${first}`]);
    await until("it ends", () => !isRunning(first));
    assert.deepEqual(Array.from(Deno.readDirSync(`${bench.control}/shared`), ({ name }) => name), [
      `${other}`,
    ]);
    assert.ok(isRunning(other));
    assert.equal(await bench.spawn(), other);
  },
);

test("callers who race fill each process, and no more", 3, async (bench) => {
  const pids = await Promise.all(Array.from({ length: 8 }, () => bench.spawn()));
  assert.deepEqual(counts(pids).sort(), [2, 3, 3]);
});

test(
  "a process that died between spawn and attach is an error, then forgotten",
  2,
  async (bench) => {
    const pid = await bench.spawn();
    await bench.ok("allocate");
    Deno.kill(pid, "SIGKILL");
    await until("it is gone", () => !isRunning(pid));
    const { code, stderr } = await bench.tapCtl(`attach -p ${pid} -m 0`);
    assert.notEqual(code, 0);
    assert.match(stderr, /Cannot connect to/);
    const next = await bench.spawn();
    assert.notEqual(next, pid);
    await bench.ok(`attach -p ${next} -m 0`);
  },
);

test("a process that hangs stops no other caller", 2, async (bench) => {
  const pid = await bench.spawn();
  Deno.kill(pid, "SIGSTOP");
  assert.notEqual(await bench.spawn(), pid);
  Deno.kill(pid, "SIGCONT");
});

test(
  "SIGTERM does not end a process with disks of others, or places for them",
  4,
  async (bench) => {
    const image = bench.rawImage("a.raw");
    const pid = await bench.spawn();
    const minor = await attach(bench, pid);
    await bench.ok(`open -p ${pid} -m ${minor} -a aio:${image}`);
    // The storage manager's clean-up after an image that cannot be opened.
    assert.equal(await bench.spawn(), pid);
    const bad = await attach(bench, pid);
    const opened = await bench.tapCtl(`open -p ${pid} -m ${bad} -a vhd:${image}`);
    assert.notEqual(opened.code, 0);
    await bench.ok(`detach -p ${pid} -m ${bad}`);
    Deno.kill(pid, "SIGTERM");
    await until("it says so", () => bench.log().includes("Ignored SIGTERM"));
    const { client } = await NbdClient.open(`${bench.control}/nbd${pid}.${minor}`);
    assert.equal((await client.read(0, 512)).length, 512);
    await client.disconnect();
    await bench.ok(`close -p ${pid} -m ${minor}`);

    assert.equal(await bench.spawn(), pid);
    await bench.ok(`detach -p ${pid} -m ${minor}`);
    Deno.kill(pid, "SIGTERM");
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const late = await attach(bench, pid);
    await bench.ok(`detach -p ${pid} -m ${late}`);
    Deno.kill(pid, "SIGTERM");
    await until("it ends, as nobody has a place", () => !isRunning(pid));
  },
);

test("SIGINT, and SIGTERM of a service manager, close all disks and end it", 4, async (bench) => {
  for (const signals of [["SIGINT"], ["SIGTERM", "SIGCONT"]] as const) {
    const pid = await bench.spawn();
    const image = bench.rawImage("a.raw");
    for (const args of [`aio:${image}`, "ram:1"]) {
      if (args === "ram:1") assert.equal(await bench.spawn(), pid);
      const minor = await attach(bench, pid);
      await bench.ok(`open -p ${pid} -m ${minor} -a ${args}`);
    }
    for (const signal of signals) Deno.kill(pid, signal);
    await until("it ends", () => !isRunning(pid));
    assert.match(bench.log(), new RegExp(`\\[${pid}\\].*Closed aio:`));
    assert.deepEqual(bench.sockets().filter((name) => name !== "shared"), []);
    for (const minor of await bench.list()) await bench.ok(`free -m ${minor.slice(6)}`);
  }
});

test("callers with other settings have other processes", 8, async (bench) => {
  const pid = await bench.spawn();
  const others: Record<string, string>[] = [
    { BLKTAP_NBD_CONNECTIONS: "2" },
    { BLKTAP_PARENT_ROOTS: "/srv" },
    { BLKTAP_DISKS_PER_PROCESS: "9" },
    { BLKTAP_CPUS: "0" },
  ];
  for (const other of others) {
    const { stdout } = await bench.tapCtl("spawn", { env: { ...bench.env, ...other } });
    assert.notEqual(Number(stdout), pid, JSON.stringify(other));
  }
  assert.equal(await bench.spawn(), pid);
  const { stdout } = await bench.tapCtl("spawn", {
    env: { ...bench.env, BLKTAP_DISKS_PER_PROCESS: "1" },
  });
  assert.equal((await bench.tapCtl(`attach -p ${Number(stdout)} -m 0`)).code, 22);
});

test("a tapdisk runs where and how the settings say", 8, async (bench) => {
  const config = `${bench.folder}/blktap.conf`;
  Deno.writeTextFileSync(config, "BLKTAP_CPUS=0\nBLKTAP_NICE=19\n", { mode: 0o600 });
  bench.env.BLKTAP_CONFIG = config;
  const pid = await bench.spawn();
  for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const of = (file: string) => Deno.readTextFileSync(`/proc/${pid}/task/${name}/${file}`);
    assert.match(of("status"), /Cpus_allowed_list:\t0\n/);
    assert.equal(of("stat").replace(/^.*\) /, "").split(" ")[16], "19");
  }
  assert.doesNotMatch(bench.log(), /in the settings/);

  // Without the right to lower it the disks are served all the same.
  Deno.writeTextFileSync(config, "BLKTAP_NICE=-5\n");
  const without = Deno.uid() === 0
    ? ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]
    : ["env"];
  const [program, ...args] = [...without, ...commandLine("tap-ctl", "spawn")];
  await runOk(program, args, { env: bench.env });
  assert.match(bench.log(), /The niceness is \d+, not -5 as in the settings/);

  Deno.writeTextFileSync(config, "BLKTAP_CPUS=8191\n");
  const { code, stderr } = await bench.tapCtl("spawn");
  assert.equal(code, 22);
  assert.match(stderr, /Cannot run on processors 8191/);
});

test("recover brings back all disks of a process that died", 8, async (bench) => {
  const images = ["a", "b", "c"].map((name) => `aio:${bench.rawImage(`${name}.raw`)}`);
  const pid = await bench.spawn();
  for (const [i, image] of images.entries()) {
    if (i > 0) assert.equal(await bench.spawn(), pid);
    const minor = await attach(bench, pid);
    await bench.ok(`open -p ${pid} -m ${minor} -a ${image}`);
  }
  Deno.kill(pid, "SIGKILL");
  await until("it is gone", () => !isRunning(pid));
  for (const [minor, image] of images.entries()) {
    // What a guest's ring leaves.
    const node = `${bench.control}/ring-7-${minor}`;
    Deno.writeTextFileSync(node, "");
    const record = { ...OPEN_DEFAULTS, image, device: "none", node, encrypted: false };
    Deno.writeTextFileSync(`${bench.control}/tapdisk/tapdisk-${minor}`, JSON.stringify(record));
  }
  await bench.ok("recover");
  const lines = await bench.list();
  const next = Number(/^pid=(\d+)/.exec(lines[0])?.[1]);
  assert.deepEqual(
    lines,
    images.map((image, minor) => `pid=${next} minor=${minor} state=0 args=${image}`),
  );
});

const { ignore, suffix } = needs("dist/blktap");

Deno.test({
  name: `shared tapdisks: a process of an older version takes no new disks${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const env = { ...bench.env, BLKTAP_DISKS_PER_PROCESS: "8" };
      const program = `${bench.folder}/blktap`;
      Deno.copyFileSync(binaryPath("blktap"), program);
      const spawn = async (): Promise<number> =>
        Number(await runOk(program, ["tap-ctl", "spawn"], { env }));
      const old = await spawn();
      assert.equal(await spawn(), old);
      // The package manager replaces the file.
      Deno.copyFileSync(binaryPath("blktap"), `${program}.new`);
      Deno.renameSync(`${program}.new`, program);
      const updated = await spawn();
      assert.notEqual(updated, old);
      assert.equal(await spawn(), updated);
      await bench.ok("allocate");
      await runOk(program, ["tap-ctl", "attach", "-p", `${old}`, "-m", "0"], { env });
    }),
});
