/**
 * tapback as a process: its options, and the lives of devices between a played xenstored and played
 * tapdisks at their real sockets.
 */
import assert from "node:assert/strict";
import { tapbackCompletion, tapbackPage } from "../../src/cli/tapback/documents.ts";
import { parseTapback } from "../../src/cli/tapback/arguments.ts";
import { helpText } from "../../src/cli/tapback/texts.ts";
import { MessageType } from "../../src/control/protocol/message.ts";
import { commandLine, ControlBench, isRunning, until } from "../support/control.ts";
import { findTool, run, runOk, withTempDir } from "../support/tools.ts";
import { PlayedControl } from "../support/xen/played_control.ts";
import { PlayedXenstored } from "../support/xen/played_xenstored.ts";

const BACK = "/local/domain/0/backend/vbd3/3/51712";
const FRONT = "/local/domain/3/device/vbd/51712";

/** A xenstored, a control folder, and tapbacks. */
class Bench {
  readonly store = new PlayedXenstored();
  readonly env: Record<string, string>;
  readonly #listener: Deno.UnixListener;
  readonly controls: PlayedControl[] = [];
  readonly #children: Deno.ChildProcess[] = [];

  constructor(readonly folder: string) {
    Deno.mkdirSync(`${folder}/control/tapdisk`, { recursive: true, mode: 0o700 });
    this.env = {
      XENSTORED_PATH: `${folder}/xenstored`,
      BLKTAP_CONTROL_DIR: `${folder}/control`,
    };
    this.#listener = Deno.listen({ transport: "unix", path: `${folder}/xenstored` });
    void this.store.serve(this.#listener);
  }

  control(pid: number, minor: number, sectors: number): PlayedControl {
    const control = new PlayedControl(`${this.folder}/control`, pid, minor, sectors);
    this.controls.push(control);
    return control;
  }

  async start(...args: string[]): Promise<{ end(): Promise<string> }> {
    const [program, ...rest] = commandLine("tapback", "-d", ...args);
    const child = new Deno.Command(program, {
      args: rest,
      env: this.env,
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.#children.push(child);
    let text = "";
    const log = (async (): Promise<string> => {
      for await (const part of child.stderr.pipeThrough(new TextDecoderStream())) text += part;
      return text;
    })();
    // It watches before that, and has its pid file and its listeners of signals after it.
    await until("tapback serves", () => text.includes("Serves devices of type"));
    return {
      async end(): Promise<string> {
        if (isRunning(child.pid)) child.kill("SIGTERM");
        await child.status;
        return await log;
      },
    };
  }

  plug(pid: number, minor: number): void {
    this.store.write({
      [`${FRONT}/state`]: "1",
      [`${BACK}/frontend`]: FRONT,
      [`${BACK}/online`]: "1",
      [`${BACK}/mode`]: "w",
      [`${BACK}/device-type`]: "disk",
      [`${BACK}/state`]: "1",
    });
    this.point(pid, minor);
  }

  point(pid: number, minor: number): void {
    this.store.write({
      [`${BACK}/physical-device-path`]: `/run/blktap-control/nbd${pid}.${minor}`,
      [`${BACK}/hotplug-status`]: "connected",
    });
  }

  connect(port = 9): void {
    this.store.write({
      [`${FRONT}/ring-ref`]: "8",
      [`${FRONT}/event-channel`]: String(port),
      [`${FRONT}/protocol`]: "x86_64-abi",
      [`${FRONT}/state`]: "3",
    });
  }

  async state(state: number): Promise<void> {
    await until(`state ${state}`, () => this.store.get(`${BACK}/state`) === String(state));
  }

  async close(): Promise<void> {
    for (const child of this.#children) {
      if (isRunning(child.pid)) child.kill("SIGKILL");
      await child.status;
    }
    for (const control of this.controls) control.close();
    this.#listener.close();
  }
}

async function withBench(body: (bench: Bench) => Promise<void>): Promise<void> {
  await withTempDir(async (folder) => {
    const bench = new Bench(folder);
    try {
      await body(bench);
    } finally {
      await bench.close();
    }
  });
}

Deno.test("tapback: a process serves a device, from its start to its end", () =>
  withBench(async (bench) => {
    const control = bench.control(4711, 2, 8192);
    const pidFile = `${bench.folder}/pid`;
    const tapback = await bench.start("-v", "-p", pidFile);
    assert.match(Deno.readTextFileSync(pidFile), /^\d+\n$/);
    bench.plug(4711, 2);
    await bench.state(2);
    bench.connect();
    await bench.state(4);
    assert.deepEqual(control.rings.get("3/51712"), {
      domain: 3,
      device: 51712,
      references: [8],
      port: 9,
      protocol: 1,
      pollDurationUs: 0,
      pollIdleThreshold: 0,
      isReadOnly: false,
    });
    assert.deepEqual(
      ["sectors", "sector-size", "kthread-pid"].map((name) => bench.store.get(`${BACK}/${name}`)),
      ["8192", "512", "4711"],
    );
    bench.store.write({ [`${FRONT}/state`]: "5" });
    await bench.state(5);
    bench.store.write({ [`${FRONT}/state`]: "6" });
    await bench.state(6);
    assert.equal(control.rings.size, 0);
    const journal = `${bench.folder}/control/ring-3-51712`;
    Deno.writeTextFileSync(journal, "");
    bench.store.remove(BACK);
    const { DISK_INFO, XENBLKIF_CONNECT, XENBLKIF_DISCONNECT } = MessageType;
    assert.deepEqual(
      control.messages.filter((type, index, all) => type !== all[index - 1]),
      [DISK_INFO, XENBLKIF_CONNECT, XENBLKIF_DISCONNECT],
    );
    await until("the device is over", () => [...bench.store.clients][0].watches.length === 1);
    assert.throws(() => Deno.statSync(journal), Deno.errors.NotFound);
    const log = await tapback.end();
    assert.match(log, /Serves devices of type vbd3.*Goes to state 4 .*: Ends.*Ends, by SIGTERM/s);
    assert.throws(() => Deno.statSync(pidFile), Deno.errors.NotFound);
  }));

Deno.test("tapback: a process that starts under a running guest, and a tapdisk that took over", () =>
  withBench(async (bench) => {
    const control = bench.control(4711, 2, 8192);
    const minor = `${bench.folder}/control/tapdisk/tapdisk-2`;
    Deno.writeTextFileSync(minor, "");
    const first = await bench.start("-v");
    bench.plug(4711, 2);
    await bench.state(2);
    bench.connect();
    await bench.state(4);
    bench.store.write({ [`${FRONT}/state`]: "4" });
    await first.end();
    const second = await bench.start("-v");
    await until("it asks", () => control.messages.length >= 4);
    assert.equal(control.rings.size, 1);
    // The tapdisk dies. Another one, which is alive, has its minor.
    control.close();
    bench.controls.splice(0);
    Deno.removeSync(`${bench.folder}/control/ctl4711`);
    const other = bench.control(Deno.pid, 2, 8192);
    Deno.writeTextFileSync(`${bench.folder}/control/nbd${Deno.pid}.2`, "");
    // It is not found for as long as it has a minor that only has the same number.
    Deno.renameSync(minor, `${minor}.kept`);
    Deno.writeTextFileSync(minor, "");
    await new Promise((resolve) => setTimeout(resolve, 7_000));
    assert.equal(bench.store.get(`${BACK}/kthread-pid`), "4711");
    Deno.renameSync(`${minor}.kept`, minor);
    const path = `/run/blktap-control/nbd${Deno.pid}.2`;
    await until("it is found", () => bench.store.get(`${BACK}/physical-device-path`) === path);
    // This played one cannot go on with a ring that is in use: the guest connects again.
    assert.equal(other.rings.size, 0);
    bench.connect(10);
    await until("it is served", () => other.rings.get("3/51712")?.port === 10);
    await bench.state(4);
    assert.match(await second.end(), /has its ring.*Its guest must connect again/s);
  }));

Deno.test("tapback: a tapdisk that another process replaces keeps the ring, and gets its number", () =>
  withBench(async (bench) => {
    const control = bench.control(4711, 2, 8192);
    const tapback = await bench.start("-v");
    bench.plug(4711, 2);
    await bench.state(2);
    bench.connect();
    await bench.state(4);
    bench.store.write({ [`${FRONT}/state`]: "4" });
    // The new process listens at the same socket. The old name leads to it.
    Deno.renameSync(`${bench.folder}/control/ctl4711`, `${bench.folder}/control/ctl4712`);
    Deno.symlinkSync("ctl4712", `${bench.folder}/control/ctl4711`);
    const path = `/run/blktap-control/nbd4712.2`;
    await until("it is found", () => bench.store.get(`${BACK}/physical-device-path`) === path);
    assert.equal(bench.store.get(`${BACK}/kthread-pid`), "4712");
    assert.match(bench.store.get(`${BACK}/tapback-ring`) ?? "", /^4712\.2 /);
    assert.equal(control.rings.size, 1);
    assert.ok(!control.messages.includes(MessageType.XENBLKIF_DISCONNECT));
    assert.doesNotMatch(await tapback.end(), /error|warning/);
  }));

Deno.test("tapback: an oxenstored sends long lists in one message", () =>
  withBench(async (bench) => {
    bench.store.sendsLongAnswers = true;
    bench.control(4711, 2, 8192);
    bench.plug(4711, 2);
    // 21 KB of names, which are more than the buffer for messages has room for.
    for (let domain = 10_000; domain < 13_500; domain++) {
      bench.store.write({ [`/local/domain/0/backend/vbd3/${domain}`]: "" });
    }
    const tapback = await bench.start("-v");
    await bench.state(2);
    bench.connect();
    await bench.state(4);
    assert.doesNotMatch(await tapback.end(), /error|warning/);
  }));

Deno.test("tapback: a device of another driver is no disk of the tapdisk with the same minor", () =>
  withBench(async (bench) => {
    const control = bench.control(Deno.pid, 0, 8192);
    Deno.writeTextFileSync(`${bench.folder}/control/nbd${Deno.pid}.0`, "");
    const tapback = await bench.start("-v");
    bench.plug(Deno.pid, 0);
    bench.store.remove(`${BACK}/physical-device-path`);
    // What the toolstacks' scripts write for a socket or a file.
    bench.store.write({ [`${BACK}/physical-device`]: "0:0" });
    await bench.state(2);
    await until("it has looked", () => bench.store.get(`${BACK}/max-ring-page-order`) === "3");
    bench.store.write({ [`${BACK}/physical-device`]: "7:0" });
    bench.connect();
    await new Promise((resolve) => setTimeout(resolve, 500));
    bench.store.write({ [`${BACK}/physical-device`]: "" });
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.deepEqual([bench.store.get(`${BACK}/state`), control.rings.size], ["2", 0]);
    bench.point(Deno.pid, 0);
    await bench.state(4);
    assert.match(await tapback.end(), /Has no disk: no tapdisk has it \(ENODEV\)/);
  }));

Deno.test("tapback: journals of rings go when it starts and their domains are gone", () =>
  withBench(async (bench) => {
    const folder = `${bench.folder}/control`;
    bench.store.write({ "/local/domain/3/name": "a guest that runs" });
    // Some are none: a number that no tapdisk writes, another file.
    const stay = ["ring-3-51712", "ring-3-768", "ring-04-768", "ring-4-", "ring-4-768.old"];
    const go = ["ring-4-51712", "ring-30-768", "ring-32751-4294967295"];
    for (const name of [...stay, ...go]) Deno.writeTextFileSync(`${folder}/${name}`, "");
    // It does not believe a xenstored that has never had a tapback, for that may have lost its nodes.
    await (await bench.start()).end();
    for (const name of go) assert.ok(Deno.statSync(`${folder}/${name}`).isFile, name);
    const tapback = await bench.start();
    const left = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) =>
      name.startsWith("ring-")
    );
    assert.deepEqual(left.sort(), stay.toSorted());
    assert.match(await tapback.end(), /Removed the journals of 3 rings of domains that are gone/);
  }));

Deno.test("tapback: it finds a disk of this project's tapdisk, which needs Xen for a ring", () =>
  withBench(async (bench) => {
    const control = new ControlBench(bench.folder);
    try {
      const node = await control.ok("create -a ram:8");
      const [, pid] = /^pid=(\d+) minor=0 /.exec((await control.list())[0]) ?? [];
      assert.match(node, /tapdisk-0$/);
      const tapback = await bench.start("-v");
      bench.plug(Number(pid), 0);
      await bench.state(2);
      await until("the tapdisk is named", () => bench.store.get(`${BACK}/kthread-pid`) === pid);
      bench.connect();
      const record = `${pid}.0 8 9 1`;
      await until("it is asked", () => bench.store.get(`${BACK}/tapback-ring`) === record);
      await new Promise((resolve) => setTimeout(resolve, 300));
      assert.equal(bench.store.get(`${BACK}/state`), "2");
      assert.match(await tapback.end(), /Cannot connect its ring to tapdisk \d+ \(E[A-Z]+\)/);
    } finally {
      await control.end();
    }
  }));

Deno.test("tapback: command lines", async () => {
  const defaults = {
    type: "vbd3",
    domain: null,
    pidFile: null,
    barrier: true,
    isDebug: false,
    isVerbose: false,
    isDaemon: false,
  };
  assert.deepEqual(parseTapback([]), defaults);
  assert.deepEqual(parseTapback(["-dvb", "-n", "vbd", "-p/x", "-x", "0x10"]), {
    ...defaults,
    type: "vbd",
    domain: 16,
    pidFile: "/x",
    barrier: false,
    isDebug: true,
    isVerbose: true,
  });
  const long = ["--debug", "--verbose", "--nobarrier", "--name=q", "--domain=5", "--pidfile", "y"];
  assert.deepEqual(parseTapback(long), {
    ...defaults,
    type: "q",
    domain: 5,
    pidFile: "y",
    barrier: false,
    isDebug: true,
    isVerbose: true,
  });
  assert.equal(parseTapback(["-x", "7", "--help"]), null);
  const wrong = [["-x", "0"], ["-x", "five"], ["-x", "40000"], ["-n", "a/b"], ["-n", ""], ["q"]];
  for (const args of [...wrong, ["-z"], ["-p"], ["--name"]]) {
    assert.throws(() => parseTapback(args), { errno: 22 }, `${args}`);
  }
  const [program, ...rest] = commandLine("tapback", "-x", "five");
  const { code, stderr } = await run(program, rest, { timeoutMs: 60_000 });
  assert.deepEqual(
    [code, /'five' is no number.*\nUsage: tapback /.test(stderr)],
    [22, true],
    stderr,
  );
});

Deno.test("tapback: without a xenstored it says so, in the foreground and in the background", () =>
  withTempDir(async (folder) => {
    const env = {
      XENSTORED_PATH: "/nonexistent/xenstored",
      BLKTAP_CONTROL_DIR: `${folder}/control`,
    };
    for (const args of [["-d"], []]) {
      const [program, ...rest] = commandLine("tapback", ...args);
      const { code, stderr } = await run(program, rest, { env, timeoutMs: 60_000 });
      assert.deepEqual([code, stderr.trimEnd()], [
        2,
        "tapback: Cannot connect to /nonexistent/xenstored: No such file or directory (ENOENT)",
      ]);
    }
  }));

Deno.test("tapback: one for all devices, or one for each domain; a second one is refused", () =>
  withBench(async (bench) => {
    const refused = async (...args: string[]): Promise<string> => {
      const [program, ...rest] = commandLine("tapback", ...args);
      const { code, stderr } = await run(program, rest, { env: bench.env, timeoutMs: 60_000 });
      assert.equal(code, 16, stderr);
      return stderr.trimEnd();
    };
    const pidFile = `${bench.folder}/pid`;
    const all = await bench.start("-p", pidFile);
    const pid = Deno.readTextFileSync(pidFile).trimEnd();
    const error =
      `tapback: Cannot serve devices of type vbd3: process ${pid} is a tapback for them`;
    assert.equal(await refused("-d"), error);
    assert.equal(await refused("-p", pidFile), error);
    assert.equal(await refused("-d", "-x", "3"), error);
    // The file of the one that runs is as it was.
    assert.equal(Deno.readTextFileSync(pidFile), `${pid}\n`);
    const other = await bench.start("-n", "vbd");
    await all.end();
    const third = await bench.start("-x", "3");
    const fourth = await bench.start("-x", "4");
    assert.match(await refused("-d"), /process \d+ is a tapback for them/);
    assert.match(await refused("-d", "-x", "4"), /process \d+ is a tapback for them/);
    for (const each of [other, third, fourth]) await each.end();
    // In the journal, lines have priorities.
    bench.env.JOURNAL_STREAM = "8:4711";
    assert.match(await (await bench.start()).end(), /^<6>Serves devices of type vbd3/);
  }));

Deno.test("tapback: it runs in the background until a signal", () =>
  withBench(async (bench) => {
    const pidFile = `${bench.folder}/pid`;
    const [program, ...rest] = commandLine("tapback", "-p", pidFile);
    const { code, stderr } = await run(program, rest, { env: bench.env, timeoutMs: 60_000 });
    assert.deepEqual([code, stderr], [0, ""]);
    const pid = Number(Deno.readTextFileSync(pidFile));
    assert.ok(isRunning(pid));
    bench.control(4711, 2, 8192);
    bench.plug(4711, 2);
    await bench.state(2);
    Deno.kill(pid, "SIGHUP");
    bench.connect();
    await bench.state(4);
    Deno.kill(pid, "SIGTERM");
    await until("it has ended", () => !isRunning(pid));
    assert.throws(() => Deno.statSync(pidFile), Deno.errors.NotFound);
  }));

Deno.test("tapback: its manual page is roff and has every option; bash completes them", async () => {
  const page = tapbackPage();
  for (const option of new Set(helpText().match(/--[a-z]+/g))) {
    assert.ok(page.includes(option.replaceAll("-", "\\-")), option);
    assert.ok(tapbackCompletion().includes(option), option);
  }
  if (findTool("bash") !== undefined) await runOk("bash", ["-n", "-c", tapbackCompletion()]);
  if (findTool("groff") === undefined) return;
  await withTempDir(async (folder) => {
    Deno.writeTextFileSync(`${folder}/page`, page);
    const { code, stderr } = await run("groff", ["-man", "-Tutf8", "-ww", `${folder}/page`]);
    assert.deepEqual([code, stderr], [0, ""]);
  });
});
