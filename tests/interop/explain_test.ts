/**
 * `tap-ctl explain`, by real causes: what it says a disk waits for is what the disk waits for. And the
 * log as JSON, which tells of the same changes.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { ToldFacts } from "../../src/control/protocol/explain.ts";
import { type ControlBench, until, withControlBench } from "../support/control.ts";
import { mayMount } from "../support/mounts.ts";
import { Cmd, NbdClient, requestHeader } from "../support/nbd_client.ts";
import { findTool, needs, runOk } from "../support/tools.ts";

const MIB = 1 << 20;

interface Explained {
  readonly findings: readonly {
    readonly kind: string;
    readonly says: string;
    readonly advice: string;
  }[];
  readonly facts: ToldFacts;
}

/** A disk that is explained. */
class Disk {
  readonly #bench: ControlBench;
  readonly device: string;
  readonly socket: string;

  private constructor(bench: ControlBench, pid: number, minor: number) {
    this.#bench = bench;
    this.device = `-p ${pid} -m ${minor}`;
    this.socket = `${bench.control}/nbd${pid}.${minor}`;
  }

  static async create(bench: ControlBench, image: string, options = ""): Promise<Disk> {
    const before = new Set(await bench.list());
    await bench.ok(`create -a ${image} ${options}`.trim());
    const line = (await bench.list()).find((each) => !before.has(each)) ?? "";
    const [, pid, minor] = /pid=(\d+) minor=(\d+)/.exec(line) ?? [];
    return new Disk(bench, Number(pid), Number(minor));
  }

  async explain(): Promise<Explained> {
    return JSON.parse(await this.#bench.ok(`explain ${this.device} --json`));
  }

  /** Explains until it says that. */
  async says(kind: string, about: RegExp): Promise<Explained> {
    let last: Explained | null = null;
    for (let left = 100; left > 0; left--) {
      last = await this.explain();
      const found = last.findings.find((finding) => finding.kind === kind);
      if (found !== undefined && about.test(found.says)) return last;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`It never said ${kind}, ${about}: ${JSON.stringify(last)}`);
  }

  /** Sends requests without taking the answers. */
  async ask(...requests: Parameters<typeof requestHeader>[0][]): Promise<NbdClient> {
    const { client } = await NbdClient.open(this.socket);
    await client.send(...requests.flatMap((request) => [
      requestHeader(request),
      ...(request.payload === undefined ? [] : [request.payload]),
    ]));
    return client;
  }

  async end(): Promise<void> {
    await this.#bench.ok(`destroy ${this.device}`);
  }
}

function read(offset = 0, length = 4096): Parameters<typeof requestHeader>[0] {
  return { command: Cmd.Read, offset, length };
}

function explainTest(
  name: string,
  { tools = [], extra = null }: { tools?: readonly string[]; extra?: (() => string | null) | null },
  body: (bench: ControlBench) => Promise<void>,
): void {
  const { ignore, suffix } = needs(...tools);
  const missing = ignore ? null : extra?.() ?? null;
  Deno.test({
    name: `explain: ${name}${suffix}${missing === null ? "" : ` (skipped: ${missing})`}`,
    ignore: ignore || missing !== null,
    fn: () => withControlBench(body),
  });
}

explainTest("a disk that is idle, and one that was never opened", {}, async (bench) => {
  const disk = await Disk.create(bench, "ram:4");
  const { findings } = await disk.explain();
  assert.deepEqual(findings.map(({ kind }) => kind), ["idle"]);
  assert.match(
    findings[0].says,
    /^It is idle: no request has come, and 0 NBD clients are connected/,
  );
  assert.match(await bench.ok(`explain ${disk.device}`), /^Minor 0, ram:4:\n- It is idle/);
  await bench.ok(`close ${disk.device}`);
  const closed = await disk.explain();
  assert.deepEqual(closed.findings.map(({ kind }) => kind), ["no-image"]);
  await disk.end();
});

explainTest("a pause, by whom and for how long", {}, async (bench) => {
  const disk = await Disk.create(bench, `aio:${bench.rawImage("a.raw")}`);
  await bench.ok(`pause ${disk.device}`);
  using _client = await disk.ask(read());
  const by =
    /^It has been paused for [\d.]+ m?s, by (?:tap-ctl|deno) \(process \d+, started by process \d+: \S+\)\./;
  const { facts } = await disk.says("paused", by);
  await disk.says("paused", / 1 request waits\.$/);
  assert.equal(facts.paused?.by?.parent?.pid, Deno.pid);
  // Another program has the file meanwhile.
  const { device } = disk;
  Deno.renameSync(`${bench.folder}/a.raw`, `${bench.folder}/b.raw`);
  assert.notEqual((await bench.tapCtl(`unpause ${device}`)).code, 0);
  await disk.says("not-resumed", /ago: Cannot open .*a\.raw/);
  Deno.renameSync(`${bench.folder}/b.raw`, `${bench.folder}/a.raw`);
  await bench.ok(`unpause ${device}`);
  const after = await disk.says("idle", /./);
  assert.deepEqual([after.facts.paused, after.facts.notResumed], [null, null]);
  await disk.end();
});

explainTest("a lock that another program holds", { tools: ["qemu-nbd"] }, async (bench) => {
  const image = bench.rawImage("a.raw");
  const disk = await Disk.create(bench, `aio:${image}`);
  await bench.ok(`pause ${disk.device}`);
  const socket = `${bench.folder}/qemu`;
  const qemu = new Deno.Command(findTool("qemu-nbd") ?? "", {
    args: ["-f", "raw", "-t", "-k", socket, image],
  }).spawn();
  try {
    await until("qemu-nbd has the file", () => isSocket(socket));
    assert.notEqual((await bench.tapCtl(`unpause ${disk.device}`)).code, 0);
    await disk.says("not-resumed", /EBUSY|lock|EAGAIN|in use/i);
  } finally {
    qemu.kill("SIGKILL");
    await qemu.status;
  }
  await bench.ok(`unpause ${disk.device}`);
  await disk.end();
});

function isSocket(path: string): boolean {
  try {
    return Deno.lstatSync(path).isSocket === true;
  } catch {
    return false;
  }
}

explainTest("a rate limit", {}, async (bench) => {
  const disk = await Disk.create(bench, "ram:4", "--read-iops 1");
  using _client = await disk.ask(...Array.from({ length: 40 }, (_, i) => read(i * 4096)));
  await disk.says("limit", /^\d+ requests are held back by its rate limits \(read iops 1\)/);
  await bench.ok(`limit ${disk.device} --read-iops 0`);
  await disk.says("idle", /./);
  await disk.end();
});

explainTest("a client that does not take its answers", {}, async (bench) => {
  const disk = await Disk.create(bench, "ram:64");
  const many = Array.from({ length: 300 }, (_, i) => read((i % 60) * MIB, MIB));
  using _client = await disk.ask(...many);
  const mine = new RegExp(`NBD client .* \\(process ${Deno.pid}\\) has not taken its answers in`);
  const { facts } = await disk.says("client", mine);
  assert.ok(facts.clients.some(({ stuckMs, held }) => (stuckMs ?? 0) >= 500 && held > 0));
  await disk.end();
});

const mounting = {
  tools: ["root", "mount", "umount"],
  extra: () => mayMount() ? null : "may not mount",
};

explainTest("a filesystem that is full", mounting, async (bench) => {
  const folder = `${bench.folder}/small`;
  Deno.mkdirSync(folder);
  await runOk("mount", ["-t", "tmpfs", "-o", "size=4m", "none", folder]);
  try {
    Deno.createSync(`${folder}/a.raw`).close();
    Deno.truncateSync(`${folder}/a.raw`, 64 * MIB);
    const disk = await Disk.create(bench, `aio:${folder}/a.raw`);
    const payload = new Uint8Array(MIB).fill(1);
    const writes = Array.from({ length: 8 }, (_, i) => ({
      ...{ command: Cmd.Write, offset: i * MIB, length: MIB, payload },
    }));
    using _client = await disk.ask(...writes);
    const full = new RegExp(
      `no room for ${folder}/a.raw \\(ENOSPC\\): [\\d.]+ \\w+ are free on ${folder}\\.`,
    );
    await disk.says("full", full);
    await runOk("mount", ["-o", "remount,size=64m", folder]);
    await disk.says("idle", /./);
    await disk.end();
  } finally {
    await bench.end();
    await runOk("umount", ["-l", folder]);
  }
});

/** A server on a UNIX socket that is stopped and killed. */
class Server {
  readonly image: string;
  readonly #child: Deno.ChildProcess;

  private constructor(image: string, child: Deno.ChildProcess) {
    this.image = image;
    this.#child = child;
  }

  static async start(bench: ControlBench, ...more: string[]): Promise<Server> {
    const socket = `${bench.folder}/server`;
    const args = ["-f", "-U", socket, ...more];
    const child = new Deno.Command(findTool("nbdkit") ?? "", { args, stdin: "null" }).spawn();
    await until("nbdkit listens", () => isSocket(socket));
    return new Server(`nbd:unix:${socket}`, child);
  }

  signal(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  async end(): Promise<void> {
    this.signal("SIGKILL");
    await this.#child.status;
  }
}

const served = { tools: ["nbdkit"] };

explainTest("a server that is stopped, and one that is gone", served, async (bench) => {
  const server = await Server.start(bench, "memory", "16M");
  const disk = await Disk.create(bench, server.image);
  server.signal("SIGSTOP");
  using _client = await disk.ask(read(), read(4096));
  const silent =
    /^The server of nbd:unix:.* has not answered 2 requests, the oldest for [\d.]+ s\.$/;
  await disk.says("server-silent", silent);
  server.signal("SIGCONT");
  await disk.says("idle", /./);
  await server.end();
  using _other = await disk.ask(read());
  const lost = /^There has been no connection to the server of nbd:unix:.* for [\d.]+ m?s \(.*\); /;
  const { facts } = await disk.says("server-lost", lost);
  assert.equal(facts.images[0].condition?.kind, "server");
  await disk.says("failing", /^1 request fails with ENOTCONN/);
  Deno.removeSync(`${bench.folder}/server`);
  const again = await Server.start(bench, "memory", "16M");
  await disk.says("idle", /./);
  await disk.end();
  await again.end();
});

explainTest("a disk whose storage is slow", served, async (bench) => {
  const args = ["--filter=delay", "memory", "16M", "rdelay=2000ms"];
  const server = await Server.start(bench, ...args);
  const disk = await Disk.create(bench, server.image);
  using _client = await disk.ask(...Array.from({ length: 60 }, (_, i) => read(i * 4096)));
  await disk.says("slow", /^Operations of nbd:unix:.* took [\d.]+ s of late\.$/);
  await disk.end();
  await server.end();
});

Deno.test("the log as JSON has a line for each change of a disk, with its cause", () =>
  withControlBench(async (bench) => {
    Object.assign(bench.env, { BLKTAP_LOG_FORMAT: "json" });
    const image = `aio:${bench.rawImage("a.raw")}`;
    const disk = await Disk.create(bench, image);
    await bench.ok(`pause ${disk.device}`);
    await bench.ok(`unpause ${disk.device}`);
    await bench.ok(`limit ${disk.device} --read-iops 7`);
    await disk.end();
    const lines = bench.log().trimEnd().split("\n").map((line) => JSON.parse(line));
    assert.ok(lines.every(({ time, level, message }) => time && level && message));
    const events = lines.filter(({ event }) => event !== undefined);
    assert.deepEqual(events.map(({ event }) => event), [
      ...["opened", "paused", "resumed", "limited", "closed"],
    ]);
    for (const { minor, image: of, pid } of events) {
      assert.deepEqual([minor, of, pid], [0, image, Number(/\d+/.exec(disk.device))]);
    }
    assert.match(events[1].by_command, /^(?:tap-ctl|deno)$/);
    assert.ok(events[1].by_pid > 0 && events[2].duration_ms > 0);
    Object.assign(bench.env, { BLKTAP_LOG_FORMAT: "xml" });
    const refused = await bench.tapCtl("spawn");
    assert.notEqual(refused.code, 0);
    assert.match(refused.stderr, /BLKTAP_LOG_FORMAT=xml \(it must be one of text, json, journal\)/);
  }));
