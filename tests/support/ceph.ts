/**
 * A Ceph cluster for tests: one monitor and one OSD that keeps its objects in memory, on this machine.
 * Its daemons are children of the test.
 *
 * @module
 */
import { findTool, type Needs, needs, run, runOk, type RunResult } from "./tools.ts";

/** The requirements of tests on a cluster, plus `tools`. */
export function needsCeph(...tools: string[]): Needs {
  const programs = [
    "ceph-mon",
    "ceph-osd",
    "monmaptool",
    "ceph",
    "rbd",
    "dist/tapdisk",
    "dist/tap-ctl",
  ];
  return needs(...programs, ...tools);
}

const START_TIMEOUT_MS = 60_000;

/** A port of 127.0.0.1 that nobody listens on just now. */
function freePort(): number {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  return port;
}

/** A new secret of cephx: u16 type 1, u32 seconds, u32 nanoseconds, u16 length, 16 bytes. */
function newSecret(): string {
  const head = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0];
  const bytes = [...head, ...crypto.getRandomValues(new Uint8Array(16))];
  return btoa(String.fromCharCode(...bytes));
}

/** A running cluster with a pool named `rbd`. Clients of it must authenticate (cephx). */
export class CephCluster {
  /** Configuration file. */
  readonly conf: string;
  readonly #folder: string;
  readonly #fsid = crypto.randomUUID();
  readonly #port = freePort();
  #monitor: Deno.ChildProcess | null = null;
  #osd: Deno.ChildProcess | null = null;

  private constructor(folder: string) {
    this.#folder = folder;
    this.conf = `${folder}/ceph.conf`;
  }

  /** Starts a cluster. Its memory is that of its folder in /dev/shm. */
  static async start(): Promise<CephCluster> {
    const folder = Deno.makeTempDirSync({ prefix: "blktap-ceph-", dir: "/dev/shm" });
    const cluster = new CephCluster(folder);
    try {
      await cluster.#start();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  async #start(): Promise<void> {
    const folder = this.#folder;
    for (const name of ["mon", "osd", "run"]) Deno.mkdirSync(`${folder}/${name}`);
    Deno.writeTextFileSync(this.conf, this.#configuration());
    const user = (name: string, caps: string[]): string =>
      [`[${name}]`, `key = ${newSecret()}`, ...caps.map((cap) => `caps ${cap} = "allow *"`)]
        .join("\n");
    const keyring = [user("mon.", ["mon"]), user("client.admin", ["mon", "osd", "mgr"]), ""];
    Deno.writeTextFileSync(`${folder}/keyring`, keyring.join("\n"));
    const [map, address] = [`${folder}/monmap`, `[v2:127.0.0.1:${this.#port}]`];
    await runOk("monmaptool", ["--create", "--fsid", this.#fsid, "--addv", "a", address, map]);
    const make = ["--mkfs", "-i", "a", "-c", this.conf, "--keyring", `${folder}/keyring`];
    await runOk("ceph-mon", [...make, "--monmap", map]);
    this.startMonitor();
    const uuid = crypto.randomUUID();
    const secret = newSecret();
    const secrets = JSON.stringify({ cephx_secret: secret });
    await this.ceph("osd", "new", uuid, "-i", this.#put("secrets", secrets));
    Deno.writeTextFileSync(`${folder}/osd/keyring`, `[osd.0]\nkey = ${secret}\n`);
    await runOk("ceph-osd", ["-i", "0", "--mkfs", "--osd-uuid", uuid, "-c", this.conf]);
    this.startOsd();
    await this.ceph("osd", "pool", "create", "rbd", "8");
    // Ends when the OSD serves the pool.
    await this.rbd("pool", "init", "rbd");
  }

  #put(name: string, text: string): string {
    const path = `${this.#folder}/${name}`;
    Deno.writeTextFileSync(path, text);
    return path;
  }

  #configuration(): string {
    const folder = this.#folder;
    return `[global]
fsid = ${this.#fsid}
mon host = v2:127.0.0.1:${this.#port}
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = ${folder}/keyring
run dir = ${folder}/run
admin socket = ${folder}/run/$name.asok
log file = ${folder}/$name.log
pid file = ${folder}/run/$name.pid
mon data = ${folder}/mon
mon allow pool size one = true
mon osd nearfull ratio = 0.001
mon osd backfillfull ratio = 0.002
osd data = ${folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd fast shutdown = false
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd heartbeat grace = 60
osd heartbeat interval = 1
osd scrub load threshold = 0
ms bind ipv6 = false
[osd]
keyring = ${folder}/osd/keyring
[client]
admin socket =
log file =
pid file =
`;
  }

  #daemon(program: string, id: string): Deno.ChildProcess {
    return new Deno.Command(findTool(program) ?? program, {
      args: ["-f", "-i", id, "-c", this.conf],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  }

  startMonitor(): void {
    this.#monitor = this.#daemon("ceph-mon", "a");
  }

  startOsd(): void {
    this.#osd = this.#daemon("ceph-osd", "0");
  }

  async stopMonitor(): Promise<void> {
    await this.#end(this.#monitor, "SIGTERM");
    this.#monitor = null;
  }

  /** Stops the OSD, which then saves its objects. */
  async stopOsd(): Promise<void> {
    await this.#end(this.#osd, "SIGTERM");
    this.#osd = null;
  }

  async #end(child: Deno.ChildProcess | null, signal: Deno.Signal): Promise<void> {
    if (child === null) return;
    child.kill(signal);
    await child.status;
  }

  /** Runs `ceph`, which must succeed; returns its output. */
  ceph(...args: string[]): Promise<string> {
    return runOk("ceph", ["-c", this.conf, "--connect-timeout", "60", ...args], {
      timeoutMs: START_TIMEOUT_MS,
    });
  }

  /** Waits until the monitor reports a state of its health, such as `OSD_FULL`. */
  async healthHas(state: string): Promise<void> {
    for (let tries = 0; tries < 300; tries++) {
      const { checks } = JSON.parse(await this.ceph("health", "--format", "json"));
      if (state in checks) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`The cluster does not report ${state}`);
  }

  /** Runs `rbd`, which must succeed; returns its output. */
  rbd(...args: string[]): Promise<string> {
    return runOk("rbd", ["-c", this.conf, ...args], { timeoutMs: START_TIMEOUT_MS });
  }

  /** Runs `rbd`. */
  tryRbd(...args: string[]): Promise<RunResult> {
    return run("rbd", ["-c", this.conf, ...args]);
  }

  /** The name of an image of the pool, for tapdisk. */
  image(name: string): string {
    return `rbd:rbd/${name},conf=${this.conf}`;
  }

  /** Ends the daemons and removes all that they have. */
  async stop(): Promise<void> {
    await this.#end(this.#osd, "SIGKILL");
    await this.#end(this.#monitor, "SIGKILL");
    Deno.removeSync(this.#folder, { recursive: true });
  }
}
