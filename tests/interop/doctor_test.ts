/**
 * `blktap doctor` on this machine, with faults that are planted. What is wrong with the machine itself may
 * be found, too, so that a test looks only at what it has planted.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Finding } from "../../src/doctor/finding.ts";
import {
  commandLine,
  type ControlBench,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { mayMount } from "../support/mounts.ts";
import { Cmd, NbdClient } from "../support/nbd_client.ts";
import { startScriptedServer } from "../support/scripted_nbd_server.ts";
import { needs, run, runOk, type RunOptions, type RunResult } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

/** Checks of the machine, and not of what a bench serves. */
const OF_THE_MACHINE = [
  ...["drivers", "asynchronous I/O", "LVM", "libraries", "systemd", "udev and multipath"],
  ...["limits", "list of disks", "rights"],
];

async function doctor(
  bench: ControlBench,
  args: readonly string[] = [],
  options: RunOptions = {},
): Promise<RunResult> {
  const [program, ...rest] = commandLine("doctor", ...args);
  return await run(program, rest, { env: bench.env, timeoutMs: 180_000, ...options });
}

/** What is wrong with what a bench serves; the exit status must say whether something is wrong at all. */
async function faults(bench: ControlBench, ...folders: string[]): Promise<Finding[]> {
  const { code, stdout, stderr } = await doctor(bench, ["--json", ...folders]);
  assert.equal(stderr, "");
  const findings: Finding[] = JSON.parse(stdout);
  const wrong = findings.filter(({ severity }) => severity === "warning" || severity === "error");
  assert.equal(code, wrong.length > 0 ? 1 : 0);
  for (const { how, what } of wrong) assert.ok(how !== null, what);
  // Other tapdisks of this machine may have left counters.
  return wrong.filter(({ check, where }) =>
    !OF_THE_MACHINE.includes(check) && where?.startsWith("/dev/shm/") !== true &&
    where !== "/proc/sys/kernel/hung_task_panic"
  );
}

async function createVhd(path: string): Promise<void> {
  assert.equal((await vhdUtil("create", "-n", path, "-s", "64")).code, 0);
}

/** Serves an image with the next minor. */
async function serve(bench: ControlBench, image: string): Promise<{ pid: number; minor: number }> {
  await bench.ok(`create -a ${image}`);
  const line = (await bench.list()).find((each) => each.endsWith(`args=${image}`)) ?? "";
  const [, pid, minor] = /^pid=(\d+) minor=(\d+) /.exec(line) ?? [];
  return { pid: Number(pid), minor: Number(minor) };
}

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`doctor: ${name}`, () => withControlBench(body));
}

test("nothing is wrong with disks that are served, and nothing is changed", async (bench) => {
  assert.deepEqual(await faults(bench), []);
  const image = `${bench.folder}/disk.vhd`;
  await createVhd(image);
  await serve(bench, `vhd:${image}`);
  const before = [bench.sockets(), Deno.readFileSync(image), await bench.list()];
  assert.deepEqual(await faults(bench, bench.folder), []);
  assert.deepEqual([bench.sockets(), Deno.readFileSync(image), await bench.list()], before);
});

test("what a tapdisk that died has left", async (bench) => {
  const disk = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
  Deno.kill(disk.pid, "SIGKILL");
  await until("it is gone", () => !isRunning(disk.pid));
  const sockets = bench.socketsOf(disk.pid, disk.minor);
  const found = await faults(bench);
  assert.deepEqual(
    found.map(({ where }) => where),
    sockets.map((name) => `${bench.control}/${name}`),
  );
  assert.ok(found.every(({ check, severity }) => check === "leftovers" && severity === "warning"));
  // What is found is mended by what is said.
  for (const { how } of found) await runOk("sh", ["-c", how ?? ""]);
  assert.deepEqual(await faults(bench), []);
  // A minor may belong to a program that is just opening a disk on it, until it is old.
  const path = `${bench.control}/tapdisk/tapdisk-${disk.minor}`;
  Deno.utimeSync(path, 1e9, 1e9);
  const [minor, ...others] = await faults(bench);
  assert.deepEqual([minor.where, minor.how, others], [path, `tap-ctl free -m ${disk.minor}`, []]);
  await bench.ok(`free -m ${disk.minor}`);
  assert.deepEqual(await faults(bench), []);
});

test("a disk whose tapdisk died waits to be recovered", async (bench) => {
  const disk = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
  Deno.kill(disk.pid, "SIGKILL");
  await until("it is gone", () => !isRunning(disk.pid));
  const node = `${bench.folder}/node`;
  Deno.writeTextFileSync(node, "");
  const record = {
    ...{
      image: `aio:${bench.folder}/disk.raw`,
      readOnly: false,
      direct: true,
      device: "nbd",
      node,
    },
    ...{ encrypted: false, requestTimeoutSeconds: 0, serve: [], queue: "libaio" },
  };
  Deno.writeTextFileSync(`${bench.control}/tapdisk/tapdisk-${disk.minor}`, JSON.stringify(record));
  const found = (await faults(bench)).filter(({ check }) => check === "disks to recover");
  assert.equal(found.length, 1, JSON.stringify(found));
  assert.equal(found[0].severity, "error");
  assert.equal(found[0].how, `tap-ctl recover -m ${disk.minor}`);
  assert.match(found[0].what, new RegExp(`the users of ${node} wait`));
});

test("images without their parents: of a folder, and of a disk that is served", async (bench) => {
  const at = (name: string): string => `${bench.folder}/${name}`;
  await createVhd(at("base.vhd"));
  await vhdUtil("snapshot", "-n", at("child.vhd"), "-p", at("base.vhd"));
  await vhdUtil("snapshot", "-n", at("top.vhd"), "-p", at("child.vhd"));
  await serve(bench, `vhd:${at("top.vhd")}`);
  assert.deepEqual(await faults(bench, bench.folder), []);
  Deno.renameSync(at("base.vhd"), at("moved.vhd"));
  const found = await faults(bench, bench.folder);
  assert.deepEqual(found.map(({ check, severity, where }) => [check, severity, where]), [
    ["images", "error", `vhd:${at("top.vhd")}`],
    ["images", "error", `vhd:${at("child.vhd")}`],
  ]);
  assert.match(found[0].what, /a disk that is served, and its chain is broken: .*base\.vhd/);
  assert.match(found[0].what, /could not be opened again/);
  assert.match(found[0].how ?? "", /^vhd-util tree .*top\.vhd; then: vhd-util modify/);
  const [missing] = await faults(bench, `${bench.folder}/no`);
  assert.match(missing.what, /Cannot list .*\/no/);
});

test("a tapdisk that does not answer", async (bench) => {
  const { pid, minor } = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
  Deno.kill(pid, "SIGSTOP");
  try {
    const found = await faults(bench);
    assert.deepEqual(found.map(({ check, severity }) => [check, severity]), [[
      "tapdisks",
      "error",
    ]]);
    assert.match(found[0].what, new RegExp(`Tapdisk ${pid} does not answer.*minors ${minor}$`));
  } finally {
    Deno.kill(pid, "SIGCONT");
  }
});

test("a disk that is paused, and one whose server does not answer", async (bench) => {
  const paused = await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
  await bench.ok(`pause -p ${paused.pid} -m ${paused.minor}`);
  assert.deepEqual(await faults(bench), []);
  const { client } = await NbdClient.open(`${bench.control}/nbd${paused.pid}.${paused.minor}`);
  await client.request({ command: Cmd.Read, offset: 0, length: 4096 });
  let found: Finding[] = [];
  for (let tries = 0; found.length === 0 && tries < 20; tries++) found = await faults(bench);
  assert.deepEqual(found.map(({ check, severity, how }) => [check, severity, how]), [
    ["disks", "warning", `tap-ctl unpause -p ${paused.pid} -m ${paused.minor}`],
  ]);
  await bench.ok(`unpause -p ${paused.pid} -m ${paused.minor}`);
  client[Symbol.dispose]();
  const letGo = await startScriptedServer(`${bench.folder}/n.sock`);
  try {
    const hung = await serve(bench, `nbd:unix:${bench.folder}/n.sock:hangs`);
    const other = await NbdClient.open(`${bench.control}/nbd${hung.pid}.${hung.minor}`);
    await other.client.request({ command: Cmd.Read, offset: 4096, length: 8192 });
    found = [];
    for (let tries = 0; found.length === 0 && tries < 20; tries++) found = await faults(bench);
    assert.equal(found[0].severity, "error");
    assert.match(found[0].what, /a request has been at the disk below for \d+ s$/);
    other.client[Symbol.dispose]();
  } finally {
    letGo();
  }
});

const mounts = needs("root", "mount", "umount");
const refused = !mounts.ignore && !mayMount();
Deno.test({
  name: `doctor: a full filesystem, and a disk that waits for room${mounts.suffix}${
    refused ? " (skipped: may not mount a tmpfs)" : ""
  }`,
  ignore: mounts.ignore || refused,
  fn: () =>
    withControlBench(async (bench) => {
      const folder = `${bench.folder}/small`;
      Deno.mkdirSync(folder);
      await runOk("mount", ["-t", "tmpfs", "-o", "size=1m", "none", folder]);
      try {
        await createVhd(`${folder}/disk.vhd`);
        const { pid, minor } = await serve(bench, `vhd:${folder}/disk.vhd`);
        const { client } = await NbdClient.open(`${bench.control}/nbd${pid}.${minor}`);
        // More than there is room for: the second megabyte waits.
        const payload = new Uint8Array(1 << 20).fill(7);
        for (const offset of [0, 1 << 20]) {
          await client.request({ command: Cmd.Write, offset, length: payload.length, payload });
        }
        let found: Finding[] = [];
        for (let tries = 0; tries < 20; tries++) {
          found = await faults(bench);
          if (found.some(({ check }) => check === "disks")) break;
        }
        const [disk] = found.filter(({ check }) => check === "disks");
        assert.match(disk.what, /requests failed \(ENOSPC\) and are tried again/);
        assert.match(disk.how ?? "", new RegExp(`^df -h ${folder} `));
        const [room] = found.filter(({ check }) => check === "room");
        assert.match(room.what, /of 1 MiB are left/);
        await runOk("mount", ["-o", "remount,size=2000m", folder]);
        for (let tries = 0; tries < 20 && found.length > 0; tries++) found = await faults(bench);
        assert.deepEqual(found, []);
        client[Symbol.dispose]();
      } finally {
        await bench.end();
        await runOk("umount", ["-l", folder]);
      }
    }),
});

const bash = needs("bash");
Deno.test({
  name: `doctor: low limits of this process and of a tapdisk that it starts${bash.suffix}`,
  ignore: bash.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const limited = async (...command: string[]): Promise<RunResult> =>
        await run("bash", ["-c", `ulimit -n 300; ulimit -l 16; exec "$@"`, "-", ...command], {
          env: bench.env,
        });
      const spawned = await limited(...commandLine("tap-ctl", "spawn"));
      const pid = Number(spawned.stdout);
      assert.ok(pid > 0, spawned.stderr);
      const { code, stdout } = await limited(...commandLine("doctor", "--json"));
      assert.equal(code, 1);
      const findings: Finding[] = JSON.parse(stdout);
      const limits = findings.filter(({ check }) => check === "limits");
      const places = limits.map(({ severity, where }) => `${severity} ${where}`);
      assert.ok(places.includes("warning new tapdisks"), `${places}`);
      assert.ok(places.includes(`warning tapdisk ${pid}`), `${places}`);
      const { how } = limits.find(({ where }) => where === `tapdisk ${pid}`) ?? {};
      assert.equal(how, `prlimit --pid ${pid} --nofile=65536:65536`);
    }),
});

const user = needs("root", "setpriv", "dist/blktap");
Deno.test({
  name: `doctor: any user may run it, and it says what needs root${user.suffix}`,
  ignore: user.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      await serve(bench, `aio:${bench.rawImage("disk.raw")}`);
      Deno.chmodSync(bench.folder, 0o755);
      const program = Deno.makeTempDirSync();
      try {
        Deno.chmodSync(program, 0o755);
        const binary = new URL("../../dist/blktap", import.meta.url).pathname;
        Deno.copyFileSync(binary, `${program}/blktap`);
        Deno.chmodSync(`${program}/blktap`, 0o755);
        const args = ["--reuid=12345", "--regid=12345", "--clear-groups", `${program}/blktap`];
        const { code, stdout, stderr } = await run("setpriv", [...args, "doctor"], {
          env: bench.env,
          cwd: "/",
        });
        assert.equal(stderr, "");
        assert.ok(code === 0 || code === 1, `${code}`);
        assert.match(stdout, /Some things are not visible without root/);
        assert.match(stdout, /were not looked at|owns it/);
      } finally {
        Deno.removeSync(program, { recursive: true });
      }
    }),
});

test("its text, and wrong command lines", async (bench) => {
  Deno.mkdirSync(bench.control, { mode: 0o700 });
  Deno.writeTextFileSync(`${bench.folder}/none\u202e.vhd`, "");
  const { code, stdout } = await doctor(bench, ["--all", bench.folder]);
  assert.equal(code, 1);
  assert.match(
    stdout,
    /^error {4}images\n {2}This is an image of a folder, and its chain is broken: /m,
  );
  assert.match(stdout, /\n {2}at: {3}vhd:.*none\\u202e\.vhd\n {2}mend: vhd-util tree '/);
  assert.match(stdout, /^ok {7}control folder$/m);
  assert.match(stdout, /\n\d+ errors?, \d+ warnings?, \d+ notes?\n$/);
  const quiet = await doctor(bench, [bench.folder]);
  assert.doesNotMatch(quiet.stdout, /^ok /m);
  const wrong = await doctor(bench, ["--nothing"]);
  assert.deepEqual([wrong.code, wrong.stdout], [22, ""]);
  assert.match(wrong.stderr, /Usage: blktap doctor/);
  const help = await doctor(bench, ["--help"]);
  assert.equal(help.code, 0);
  for (const word of ["--all", "--json", "FOLDER"]) assert.ok(help.stdout.includes(word), word);
});

test("a control folder that others can look into", async (bench) => {
  Deno.mkdirSync(bench.control, { mode: 0o700 });
  assert.deepEqual(await faults(bench), []);
  Deno.chmodSync(bench.control, 0o755);
  const [open] = await faults(bench);
  assert.deepEqual([open.check, open.severity], ["control folder", "warning"]);
  await runOk("sh", ["-c", open.how ?? ""]);
  assert.deepEqual(await faults(bench), []);
});
