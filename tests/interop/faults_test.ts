/**
 * A program fault ends only the client or the disk that it belongs to. The other disk of the
 * process keeps working, whichever handler throws.
 *
 * @module
 */
import assert from "node:assert/strict";
import { ControlBench, isRunning, until } from "../support/control.ts";
import { type Fault, FAULTS } from "../support/faulty_tapdisk.ts";
import { Cmd, HungUp, NbdClient, noise, WireError } from "../support/nbd_client.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { osStorage } from "../../src/files/storage.ts";
import { withTempDir } from "../support/tools.ts";

const SCRIPT = new URL("../support/faulty_tapdisk.ts", import.meta.url).pathname;
const BLOCK_BYTES = 2 * 1024 * 1024;
/** Faults that end the disk; the others end a client or nothing. */
const ENDS_DISK: readonly Fault[] = [
  "driver call",
  "disk completion",
  "end of turn of a driver",
  "end of turn of a frontend",
  "timer of a disk",
  "promise of a disk",
  "closing of an image",
  "remote",
];

/** A tapdisk with faults and two disks. */
class Bench {
  readonly #bench: ControlBench;
  readonly #process: Deno.ChildProcess;
  readonly #faultFile: string;

  constructor(readonly folder: string) {
    this.#bench = new ControlBench(folder);
    this.#faultFile = `${folder}/fault`;
    for (const name of ["victim", "other"]) {
      createDynamic(`${folder}/${name}.vhd`, { storage: osStorage, sizeBytes: 64 * 1024 * 1024 });
    }
    this.#process = new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", SCRIPT],
      env: { ...this.#bench.env, BLKTAP_FAULT_FILE: this.#faultFile },
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  }

  get pid(): number {
    return this.#process.pid;
  }

  get status(): Promise<Deno.CommandStatus> {
    return this.#process.status;
  }

  async serve(minor: number, image: string): Promise<void> {
    await until("tapdisk listens", () => this.#isThere(`ctl${this.pid}`));
    await this.tapCtl(`attach -p ${this.pid} -m ${minor}`);
    await this.tapCtl(`open -p ${this.pid} -m ${minor} -a ${image}`);
  }

  #isThere(name: string): boolean {
    try {
      return Deno.lstatSync(`${this.#bench.control}/${name}`).isSocket === true;
    } catch {
      return false;
    }
  }

  async tapCtl(args: string): Promise<string> {
    const folder = `${this.#bench.control}/tapdisk`;
    const minor = /attach .*-m (\d+)/.exec(args)?.[1];
    if (minor !== undefined) {
      Deno.mkdirSync(folder, { recursive: true });
      Deno.writeTextFileSync(`${folder}/tapdisk-${minor}`, "");
    }
    return await this.#bench.ok(args);
  }

  async tryTapCtl(args: string): Promise<number> {
    return (await this.#bench.tapCtl(args)).code;
  }

  async client(minor: number): Promise<NbdClient> {
    return (await NbdClient.open(`${this.#bench.control}/nbd${this.pid}.${minor}`)).client;
  }

  arm(fault: Fault): void {
    Deno.writeTextFileSync(this.#faultFile, fault);
  }

  get log(): string {
    return Deno.readTextFileSync(`${this.#bench.control}/log/tapdisk.log`);
  }

  async end(): Promise<void> {
    if (isRunning(this.pid)) this.#process.kill("SIGKILL");
    await this.status;
  }
}

async function withBench(body: (bench: Bench) => Promise<void>): Promise<void> {
  await withTempDir(async (folder) => {
    const bench = new Bench(folder);
    try {
      await body(bench);
    } finally {
      await bench.end();
    }
  });
}

/** The result of a request: 0, an error of the protocol, or a closed connection. */
async function outcome(
  client: NbdClient,
  command: number,
  offset: number,
): Promise<number | "gone"> {
  try {
    const payload = command === Cmd.Write ? noise(4096, 9) : undefined;
    const { error } = await client.ask({ command, offset, length: 4096, payload });
    return error;
  } catch (error) {
    if (error instanceof HungUp || error instanceof Deno.errors.BrokenPipe) return "gone";
    if (error instanceof Deno.errors.ConnectionReset) return "gone";
    throw error;
  }
}

/** Triggers a fault. */
async function provoke(bench: Bench, fault: Fault, client: NbdClient): Promise<void> {
  bench.arm(fault);
  switch (fault) {
    case "control command":
      assert.notEqual(await bench.tryTapCtl(`stats -p ${bench.pid} -m 0`), 0);
      return;
    case "control connection":
      assert.notEqual(await bench.tryTapCtl(`stats -p ${bench.pid} -m 0`), 0);
      return;
    case "server's socket":
      (await bench.client(0)).close();
      return;
    case "closing of an image":
      assert.notEqual(await bench.tryTapCtl(`pause -p ${bench.pid} -m 0`), 0);
      return;
    default: {
      const ended = [
        await outcome(client, Cmd.Write, BLOCK_BYTES),
        await outcome(client, Cmd.Read, 0),
        await outcome(client, Cmd.Read, BLOCK_BYTES),
      ];
      const bad = fault.startsWith("client's") ? "gone" : WireError.Io;
      if (fault.startsWith("client's") || ENDS_DISK.includes(fault)) {
        assert.ok(ended.includes(bad), `one of the requests ends with ${bad}: ${ended}`);
      }
    }
  }
}

/** Restores the disk with each command that can do so. */
async function bringBack(bench: Bench, fault: Fault): Promise<void> {
  switch (ENDS_DISK.indexOf(fault) % 3) {
    case 0:
      await bench.tapCtl(`unpause -p ${bench.pid} -m 0`);
      return;
    case 1:
      assert.notEqual(await bench.tapCtl("recover -m 0"), "", "it prints the node");
      return;
    default:
      assert.equal(
        (await bench.tapCtl("recover")).split("\n").length,
        1,
        "the other disk is left alone",
      );
      assert.equal(await bench.tapCtl("recover"), "", "nothing is left to recover");
  }
}

for (const fault of FAULTS) {
  Deno.test(`a fault (${fault}) leaves the other disk serving`, () =>
    withBench(async (bench) => {
      await bench.serve(0, `vhd:${bench.folder}/victim.vhd`);
      await bench.serve(1, `vhd:${bench.folder}/other.vhd`);
      using other = await bench.client(1);
      const data = noise(BLOCK_BYTES + 8192, 4);
      await other.write(4096, data);
      using client = await bench.client(0);
      await client.write(0, noise(4096, 7));
      await client.flush();
      await provoke(bench, fault, client);
      await until("the fault is in the log", () => bench.log.includes(`injected: ${fault}`));
      assert.match(bench.log, new RegExp(`injected: ${fault} +at .*\\.ts:\\d+`));

      // The other disk: its old data, and new data, including a newly allocated block.
      assert.deepEqual(await other.read(4096, data.length), data);
      await other.write(20 * BLOCK_BYTES, data.subarray(0, 65536));
      assert.deepEqual(await other.read(20 * BLOCK_BYTES, 65536), data.subarray(0, 65536));

      // The victim: ended and recoverable, or working for new clients.
      const endsDisk = ENDS_DISK.includes(fault);
      const [first] = (await bench.tapCtl(`list -p ${bench.pid}`)).split("\n");
      assert.match(first, endsDisk ? /state=0x1 / : /state=0 /);
      using next = await bench.client(0);
      if (endsDisk) {
        assert.equal(await outcome(next, Cmd.Read, 0), WireError.Io);
        assert.equal(await outcome(next, Cmd.Write, 0), WireError.Io);
        await bringBack(bench, fault);
        assert.match(await bench.tapCtl(`list -p ${bench.pid} -m 0`), /state=0 /);
      }
      assert.deepEqual(await next.read(0, 4096), noise(4096, 7));
      await next.write(3 * BLOCK_BYTES, data.subarray(0, 4096));
      assert.deepEqual(await next.read(3 * BLOCK_BYTES, 4096), data.subarray(0, 4096));
      next.close();
      for (const minor of [0, 1]) {
        await bench.tapCtl(`close -p ${bench.pid} -m ${minor}`);
        await bench.tapCtl(`detach -p ${bench.pid} -m ${minor}`);
      }
      assert.equal((await bench.status).code, 0);
      for (const name of ["victim", "other"]) {
        const { findings } = checkImage(`${bench.folder}/${name}.vhd`, { storage: osStorage });
        assert.deepEqual(findings, []);
      }
    }));
}

Deno.test("a fault in the NBD driver ends the remote disk, and leaves the disk behind it serving", () =>
  withBench(async (bench) => {
    await bench.serve(1, `vhd:${bench.folder}/other.vhd`);
    using other = await bench.client(1);
    await other.write(0, noise(4096, 7));
    await withPeer(bench, async (peer) => {
      await bench.serve(0, `nbd:unix:${peer}`);
      using client = await bench.client(0);
      bench.arm("remote");
      assert.equal(await outcome(client, Cmd.Read, 0), WireError.Io);
      assert.match(bench.log, /injected: remote +at .*\.ts:\d+/);
      await bench.tapCtl(`unpause -p ${bench.pid} -m 0`);
      assert.equal(await outcome(client, Cmd.Read, 0), 0);
    });
    assert.deepEqual(await other.read(0, 4096), noise(4096, 7));
  }));

/** A second tapdisk with an image, as the server of a remote disk. */
async function withPeer(bench: Bench, body: (socket: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: bench.folder, prefix: "victim-" });
  const peer = new Bench(folder);
  try {
    await peer.serve(0, `vhd:${folder}/victim.vhd`);
    await body(`${folder}/control/nbd${peer.pid}.0`);
  } finally {
    await peer.end();
  }
}

Deno.test("a fault in what all disks share ends the process, with the reason in the log", () =>
  withBench(async (bench) => {
    await bench.serve(0, `vhd:${bench.folder}/other.vhd`);
    bench.arm("shared");
    assert.equal((await bench.status).code, 70);
    assert.match(bench.log, /what all disks share.*injected: shared +at /);
  }));
