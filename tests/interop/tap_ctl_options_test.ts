/**
 * Every option in the help of tap-ctl and tapdisk works: each is used once and has the effect in
 * the help. An unlisted option is refused, or has no effect.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Command } from "commander";
import { loadCommands } from "../../src/cli/tap_ctl/main.ts";
import { tapdiskCommand } from "../../src/cli/tapdisk/main.ts";
import { createCbtLog } from "../../src/cbt/log_file.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  type ControlBench,
  foreground,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { commandLine } from "../support/control.ts";
import { makePki, PSK_TEXT } from "../support/pki.ts";
import { needs, run, runOk } from "../support/tools.ts";

// Loaded here because Deno reports a library that is loaded within a test as a leak.
const COMMANDS = await loadCommands();

/** The long names of the options in a command's help. */
function listed(command: Command): string[] {
  return command.createHelp().visibleOptions(command)
    .map(({ long }) => long ?? "")
    .filter((long) => long !== "--help");
}

/** Options whose requirements are missing here, with the test that uses them. */
const ELSEWHERE: readonly string[] = [
  // A key: encrypted_test.ts.
  ...["create", "open", "recover"].flatMap((name) => [`${name} --encrypted`, `${name} --key-file`]),
  // A block device whose tapdisk died: tests/vm.
  "recover --minor",
  "recover --parent-root",
];

/** Runs tap-ctl and records the long names of the used options. */
class OptionBench {
  readonly used = new Set<string>();
  readonly #bench: ControlBench;
  readonly #commands: Map<string, Command>;

  constructor(bench: ControlBench, commands: readonly Command[]) {
    this.#bench = bench;
    this.#commands = new Map(commands.map((each) => [each.name().replace("tap-ctl ", ""), each]));
  }

  async ok(line: string): Promise<string> {
    const [name, ...words] = line.split(" ");
    const options = this.#commands.get(name)?.options ?? [];
    for (const word of words) {
      const option = options.find(({ short, long }) => word === short || word === long);
      if (option !== undefined) this.used.add(`${name} ${option.long}`);
    }
    return await this.#bench.ok(line);
  }

  /** The options in the help that were not used. */
  unused(): string[] {
    return [...this.#commands].flatMap(([name, command]) =>
      listed(command).map((long) => `${name} ${long}`)
    ).filter((option) => !this.used.has(option) && !ELSEWHERE.includes(option));
  }
}

async function pidOf(bench: OptionBench, minor: number): Promise<number> {
  return JSON.parse(await bench.ok(`list --json -m ${minor}`))[0].pid;
}

/** Opens and closes in single steps, with each way to open an image. */
async function stepByStep(bench: OptionBench, image: string): Promise<void> {
  const pid = await bench.ok("spawn");
  await bench.ok("allocate");
  const device = `-p ${pid} -m 0`;
  await bench.ok(`attach ${device}`);
  await bench.ok(
    `open ${device} -a vhd:${image} -R -D -r -t 7 --retry none --device none --queue libaio`,
  );
  assert.match(await bench.ok(`list -p ${pid} -m 0`), /args=vhd:/);
  const stats = JSON.parse(await bench.ok(`stats ${device}`));
  assert.equal(stats.retry_policy, "none");
  const page = await bench.ok(`stats ${device} --html`);
  assert.match(page, /^<!doctype html>/);
  assert.equal(await bench.ok(`stats ${device} --output ${image}.html`), "");
  assert.match(Deno.readTextFileSync(`${image}.html`), /^<!doctype html>/);
  await bench.ok(`pause ${device} -t 5`);
  assert.match(await bench.ok("list -t vhd"), /state=0x2a/);
  await bench.ok(`unpause ${device} -a vhd:${image}`);
  await bench.ok(`close ${device} -t 5`);
  await mirrored(bench, device, image);
  await loggedAndLimited(bench, device, image);
  assert.match(await bench.ok(`list -p ${pid}`), /state=0x2$/);
  await bench.ok(`open ${device} -a vhd:${image}`);
  await bench.ok(`close ${device} -f`);
  await bench.ok(`detach ${device}`);
  await bench.ok("free -m 0");
}

/** Opens with a secondary image, and without. */
async function mirrored(bench: OptionBench, device: string, image: string): Promise<void> {
  const copy = `${image}.copy`;
  Deno.copyFileSync(image, copy);
  await bench.ok(`open ${device} -a vhd:${image} -2 vhd:${copy} -s`);
  await bench.ok(`pause ${device}`);
  await bench.ok(`unpause ${device} -2 null`);
  await bench.ok(`close ${device}`);
}

const LIMITS = "--read-iops 7K --write-iops 6000 --total-iops 9000 --read-bps 8Mi --write-bps 7M " +
  "--total-bps 9M --burst 200";

/** Opens with a log of changed blocks and limits, and changes both. */
async function loggedAndLimited(bench: OptionBench, device: string, image: string): Promise<void> {
  const [log, other] = [`${image}.log`, `${image}.other`];
  for (const path of [log, other]) createCbtLog(path, { sizeBytes: 4 << 20 });
  await bench.ok(`open ${device} -a vhd:${image} --log ${log} ${LIMITS}`);
  const limits = JSON.parse(await bench.ok(`limit ${device} --json`));
  assert.match(JSON.stringify(limits), /7000\D.*6000\D.*9000\D/);
  assert.equal(JSON.parse(await bench.ok(`stats ${device}`)).changed_blocks, log);
  await bench.ok(`pause ${device}`);
  await bench.ok(`unpause ${device} --log ${other}`);
  assert.equal(JSON.parse(await bench.ok(`stats ${device}`)).changed_blocks, other);
  await bench.ok(
    `limit ${device} ${LIMITS.replaceAll(/ \d+[KMi]*/g, " 0").replace("burst 0", "burst 50")}`,
  );
  assert.equal(JSON.parse(await bench.ok(`limit ${device} --json`)), null);
  await bench.ok(`close ${device}`);
}

/** Opens images that are read through another disk, and kept. */
async function cached(bench: OptionBench, folder: string): Promise<void> {
  const [base, child] = [`${folder}/below.vhd`, `${folder}/above.vhd`];
  createDynamic(base, { sizeBytes: 4 << 20 });
  snapshot(child, { parent: base, keepEmptyParent: true });
  await bench.ok(`create -a vhd:${base}`);
  await bench.ok(`create -a vhd:${child} -r -e 0`);
  const pids = [await pidOf(bench, 0), await pidOf(bench, 1)];
  const device = `-p ${pids[1]} -m 1`;
  for (let round = 0; round < 2; round++) {
    const { images } = JSON.parse(await bench.ok(`stats ${device}`));
    assert.deepEqual(
      images.map(({ driver }: { driver: { name: string } }) => driver.name),
      ["vhd", "lc", "nbd"],
    );
    await bench.ok(`close ${device}`);
    await bench.ok(`open ${device} -a vhd:${child} -r -e 0`);
  }
  await bench.ok(`destroy ${device}`);
  await bench.ok(`destroy -p ${pids[0]} -m 0`);
}

/** Creates disks and uses the commands for running disks. */
async function created(bench: OptionBench, folder: string): Promise<void> {
  const image = `${folder}/a.vhd`;
  await bench.ok(`create -a log:vhd:${image} -D -r -t 9 --retry all --device none --queue libaio`);
  const pid = await pidOf(bench, 0);
  assert.match(await bench.ok(`list -f ${image} -t vhd`) + await bench.ok("list"), /log:vhd/);
  await bench.ok(`log -p ${pid} -m 0 --clear`);
  assert.equal(JSON.parse(await bench.ok(`log -p ${pid} -m 0 --json`)).runs.length, 0);
  await bench.ok(`destroy -p ${pid} -m 0 -t 9`);
  createCbtLog(`${folder}/log`, { sizeBytes: 4 << 20 });
  await bench.ok(`create -a vhd:${image} -2 ram:4 -s`);
  const second = await pidOf(bench, 0);
  const made = await bench.ok(`snapshot -p ${second} -m 0 -n ${folder}/b.vhd -t 9`);
  assert.match(made, /b\.vhd is open, on .*a\.vhd/);
  const renamed = JSON.parse(
    await bench.ok(`snapshot -p ${second} -m 0 -n ${folder}/c.vhd --rename --json`),
  );
  assert.equal(renamed.parent, `${folder}/c.vhd`);
  await bench.ok(`destroy -p ${second} -m 0`);
  await bench.ok(`create -a vhd:${image} -R --log ${folder}/log ${LIMITS}`);
  const reader = await pidOf(bench, 0);
  const nbd = JSON.parse(await bench.ok("list --json"))[0].nbd;
  assert.match(await runOk("nbdinfo", [`nbd+unix:///?socket=${nbd}`]), /is_read_only: true/);
  await bench.ok(`destroy -p ${reader} -m 0`);
}

/** A running disk gets a child of another type, and becomes larger. */
async function grown(bench: OptionBench, folder: string): Promise<void> {
  createDynamic(`${folder}/small.vhd`, { sizeBytes: 4 << 20 });
  await bench.ok(`create -a vhd:${folder}/small.vhd`);
  const device = `-p ${await pidOf(bench, 0)} -m 0`;
  await bench.ok(`snapshot ${device} -n ${folder}/larger.qcow2 --type qcow2`);
  await bench.ok(`resize ${device} -s 8Mi -t 9`);
  const nbd = JSON.parse(await bench.ok("list --json"))[0].nbd;
  assert.equal(await runOk("nbdinfo", ["--size", `nbd+unix:///?socket=${nbd}`]), "8388608\n");
  await bench.ok(`destroy ${device}`);
}

const CLIENTS = "--max-clients 5 --max-clients-per-address 2";

/** Serves disks over TCP, with certificates and with keys, and ends that. */
async function servedOverTcp(bench: OptionBench, folder: string): Promise<void> {
  const pki = await makePki(`${folder}/pki`);
  const keys = `${folder}/keys.psk`;
  Deno.writeTextFileSync(keys, PSK_TEXT);
  const certified = `--tls on --tls-certificates ${pki} --tls-verify-peer ${CLIENTS}`;
  const exportsOf = async (device: string): Promise<unknown[]> =>
    JSON.parse(await bench.ok(`stats ${device}`)).exports
      .map(({ name, tls, verify_peer, max_clients }: Record<string, unknown>) => [
        name,
        tls,
        verify_peer,
        max_clients,
      ]);
  const listen = "--listen localhost:0 --export-name";
  await bench.ok(`create -a vhd:${folder}/a.vhd ${listen} a ${certified}`);
  const device = `-p ${await pidOf(bench, 0)} -m 0`;
  assert.deepEqual(await exportsOf(device), [["a", "on", true, 5]]);
  await bench.ok(`serve ${device} ${listen} b ${certified}`);
  const where = await bench.ok(`serve ${device} ${listen} c --tls-psk ${keys} --tls require`);
  assert.match(where, /^127\.0\.0\.1:\d+/);
  assert.equal((await exportsOf(device)).length, 3);
  const port = /:(\d+)$/.exec(where)?.[1];
  await bench.ok(`unserve ${device} --listen localhost:${port} --export-name c`);
  await bench.ok(`unserve ${device}`);
  assert.deepEqual(await exportsOf(device), []);
  await bench.ok(`close ${device}`);
  await bench.ok(`open ${device} -a vhd:${folder}/a.vhd ${listen} d ${certified}`);
  await bench.ok(`close ${device}`);
  await bench.ok(`open ${device} -a vhd:${folder}/a.vhd ${listen} e --tls-psk ${keys}`);
  assert.deepEqual(await exportsOf(device), [["e", "require", false, 128]]);
  await bench.ok(`destroy ${device}`);
  await bench.ok(`create -a vhd:${folder}/a.vhd ${listen} f --tls-psk ${keys}`);
  await bench.ok(`destroy -p ${await pidOf(bench, 0)} -m 0`);
}

/** A running disk is traced, and explained. */
async function lookedAt(bench: OptionBench, folder: string): Promise<void> {
  await bench.ok(`create -a vhd:${folder}/a.vhd`);
  const device = `-p ${await pidOf(bench, 0)} -m 0`;
  const json = await bench.ok(`trace ${device} -o - --seconds 0 --slower-than 20`);
  assert.equal(JSON.parse(json).otherData.slower_than_ms, 20);
  assert.equal(await bench.ok(`trace ${device} -o ${folder}/trace --seconds 0 --text`), "");
  assert.equal(Deno.readTextFileSync(`${folder}/trace`), "");
  assert.equal(JSON.parse(await bench.ok(`explain ${device} --json`)).findings[0].kind, "idle");
  await bench.ok(`destroy ${device}`);
}

/** Another process takes over a disk, also from sources. */
async function upgraded(bench: OptionBench, folder: string): Promise<void> {
  await bench.ok(`create -a vhd:${folder}/a.vhd`);
  const before = await pidOf(bench, 0);
  const now = Number(await bench.ok(`upgrade -p ${before}`));
  assert.equal(await pidOf(bench, 0), now);
  assert.notEqual(now, before);
  assert.equal(await bench.ok("upgrade"), "");
  await bench.ok(`destroy -p ${now} -m 0`);
}

/** The table of disks, in each order and with each filter. */
async function shownInTables(bench: OptionBench, folder: string): Promise<void> {
  await bench.ok(`create -a vhd:${folder}/a.vhd`);
  await bench.ok(`create -a ram:4`);
  const pids = [await pidOf(bench, 0), await pidOf(bench, 1)];
  const minors = async (options: string): Promise<number[]> => {
    const { disks } = JSON.parse(await bench.ok(`top --json --interval 0.1 --count 1 ${options}`));
    return disks.map(({ minor }: { minor: number }) => minor);
  };
  assert.deepEqual(await minors("--sort minor"), [0, 1]);
  assert.deepEqual(await minors("--sort image --reverse"), [0, 1]);
  assert.deepEqual(await minors("--sort image"), [1, 0]);
  assert.deepEqual(await minors("--filter ram"), [1]);
  assert.deepEqual(await minors(`--pid ${pids[1]}`), [1]);
  assert.deepEqual(await minors("--minor 0"), [0]);
  assert.match(await bench.ok("metrics"), /^blktap_disk_info\{minor="1",.*type="ram"/m);
  for (const minor of [0, 1]) await bench.ok(`destroy -p ${pids[minor]} -m ${minor}`);
}

async function restored(bench: OptionBench, folder: string): Promise<void> {
  Deno.writeTextFileSync(`${folder}/list`, `one vhd:${folder}/a.vhd device=none\n`);
  assert.match(await bench.ok(`restore --file ${folder}/list`), /^one: /);
  assert.equal(await bench.ok(`restore --file ${folder}/list --stop -t 9`), "one: stopped");
}

/** Processors and niceness of new tapdisks. */
async function runsElsewhere(bench: OptionBench, folder: string): Promise<void> {
  const assertRuns = (pid: number, niceness: number): void => {
    assert.match(Deno.readTextFileSync(`/proc/${pid}/status`), /Cpus_allowed_list:\t0\n/);
    const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /, "").split(" ");
    assert.equal(Number(fields[16]), niceness);
  };
  for (const wrong of ["--cpus some", "--cpus 3-1", "--nice 20", "--nice little"]) {
    await assert.rejects(bench.ok(`spawn ${wrong}`), /Cannot use --(cpus|nice)=.*\(/, wrong);
  }
  const pid = Number(await bench.ok("spawn --cpus 0 --nice 19"));
  assertRuns(pid, 19);
  Deno.kill(pid, "SIGTERM");
  await until("it is gone", () => !isRunning(pid));
  await bench.ok(`create -a vhd:${folder}/a.vhd --cpus 0-0 --nice 19`);
  const created = await pidOf(bench, 0);
  assertRuns(created, 19);
  await bench.ok(`destroy -p ${created} -m 0`);
}

/** An image with a parent outside its folder tree opens only with --parent-root. */
async function withParentOutside(bench: OptionBench, folder: string): Promise<void> {
  Deno.mkdirSync(`${folder}/in`);
  const image = `${folder}/in/child.vhd`;
  createDynamic(`${folder}/base.vhd`, { sizeBytes: 4 << 20 });
  snapshot(image, { parent: `${folder}/base.vhd`, keepEmptyParent: true });
  await assert.rejects(bench.ok(`create -a vhd:${image}`), /--parent-root/);
  await bench.ok(`create -a vhd:${image} --parent-root ${folder}`);
  await bench.ok(`destroy -p ${await pidOf(bench, 0)} -m 0`);
  Deno.writeTextFileSync(`${folder}/list`, `two vhd:${image} device=none\n`);
  assert.match(await bench.ok(`restore --file ${folder}/list --parent-root ${folder}`), /^two: /);
  await bench.ok(`restore --file ${folder}/list --stop`);
  const pid = await bench.ok(`spawn --parent-root ${folder}`);
  await bench.ok("allocate");
  await bench.ok(`attach -p ${pid} -m 0`);
  await bench.ok(`open -p ${pid} -m 0 -a vhd:${image}`);
  await bench.ok(`destroy -p ${pid} -m 0`);
}

const { ignore, suffix } = needs("nbdinfo", "openssl");

Deno.test({
  name: `options: each that tap-ctl's help lists works${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (control) => {
      const bench = new OptionBench(control, COMMANDS);
      createDynamic(`${control.folder}/a.vhd`, { sizeBytes: 4 << 20 });
      await stepByStep(bench, `${control.folder}/a.vhd`);
      await cached(bench, control.folder);
      await created(bench, control.folder);
      await grown(bench, control.folder);
      await servedOverTcp(bench, control.folder);
      await lookedAt(bench, control.folder);
      await upgraded(bench, control.folder);
      await shownInTables(bench, control.folder);
      await restored(bench, control.folder);
      await runsElsewhere(bench, control.folder);
      await withParentOutside(bench, control.folder);
      assert.ok("devices" in JSON.parse(await bench.ok("check --json")));
      assert.deepEqual(bench.unused(), []);
      const traced = await control.tapCtl(`list -m 0 --debug`);
      assert.equal(traced.code, 0);
    }),
});

Deno.test("options: what cannot be carried out is refused, and what has no support is not in the help", () =>
  withControlBench(async (control) => {
    const image = control.rawImage("a.raw");
    const refused = ["major -c", `create -a aio:${image} -s`];
    for (const line of refused) {
      const { code, stderr } = await control.tapCtl(line);
      assert.ok(code === 95 || code === 22, `${line}: ${code} ${stderr}`);
      assert.match(stderr, /^tap-ctl [^\n]*(no support for|Cannot)[^\n]*\n$/, line);
    }
    const help = COMMANDS.flatMap(listed);
    assert.ok(!help.includes("--character"));
    await control.ok(`create -a aio:${image} -d /dev/name`);
    const pid = Number(/^pid=(\d+)/.exec((await control.list())[0])?.[1]);
    await control.ok(`destroy -p ${pid} -m 0`);
  }));

Deno.test("options: each that tapdisk's help lists works", () =>
  withControlBench(async (control) => {
    // --parent-root is used by parent_roots_test.ts and the test above.
    const options = ["--parent-root", "--no-daemon", "--new", "--device"];
    assert.deepEqual(listed(tapdiskCommand()), options);
    const { pid, kill, ended } = await foreground(control);
    assert.ok(isRunning(pid));
    kill("SIGTERM");
    assert.match(await ended, /^0\n/);
    const tapdisk = async (...args: string[]) => {
      const [program, ...rest] = commandLine("tapdisk", ...args);
      return await run(program, rest, { env: control.env });
    };
    const served = await tapdisk("-n", `aio:${control.rawImage("a.raw")}`, "--device", "none");
    assert.match(served.stdout, /nbd\d+\.0\n$/);
    const alone = await tapdisk("--device", "none");
    assert.equal(alone.code, 22);
    assert.match(alone.stderr, /'--device <kind>' goes with -n/);
    const daemon = await tapdisk();
    assert.match(daemon.stdout, /ctl\d+\n$/);
    const other = Number(/ctl(\d+)/.exec(daemon.stdout)?.[1]);
    Deno.kill(other, "SIGTERM");
    await until("it has ended", () => !isRunning(other));
  }));
