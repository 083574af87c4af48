/**
 * Status, pause, close and end of a disk that has hung. The disk is an export of a server that
 * receives requests and never answers.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import {
  type ControlBench,
  foreground,
  isRunning,
  until,
  withControlBench,
} from "../support/control.ts";
import { Cmd, NbdClient } from "../support/nbd_client.ts";
import { startScriptedServer } from "../support/scripted_nbd_server.ts";
import type { RunResult } from "../support/tools.ts";

interface Scene {
  readonly bench: ControlBench;
  readonly pid: number;
  /** `-p` and `-m` of the hung disk. */
  readonly address: string;
  readonly kill: (signal: Deno.Signal) => void;
  readonly ended: Promise<string>;
  /** A client of the hung disk, with a read in flight. */
  readonly client: NbdClient;
  /** Makes the server close the connection. */
  readonly letGo: () => void;
}

/**
 * Calls `body` with a tapdisk: minor 0 is a working raw disk, minor 1 is hung with a request in
 * flight.
 */
function test(name: string, body: (scene: Scene) => Promise<void>): void {
  Deno.test(`a disk that hangs: ${name}`, () =>
    withControlBench(async (bench) => {
      const letGo = await startScriptedServer(`${bench.folder}/n.sock`);
      try {
        const { pid, kill, ended } = await foreground(bench);
        const images = [`aio:${bench.rawImage("a.raw")}`, `nbd:unix:${bench.folder}/n.sock:hangs`];
        for (const [minor, image] of images.entries()) {
          await bench.ok("allocate");
          await bench.ok(`attach -p ${pid} -m ${minor}`);
          await bench.ok(`open -p ${pid} -m ${minor} -a ${image}`);
        }
        const { client } = await NbdClient.open(`${bench.control}/nbd${pid}.1`);
        await client.request({ command: Cmd.Read, offset: 4096, length: 8192 });
        const address = `-p ${pid} -m 1`;
        await body({ bench, pid, address, kill, ended, client, letGo });
        client[Symbol.dispose]();
      } finally {
        letGo();
      }
    }));
}

/** Begins a pause that cannot end; returns the result of tap-ctl. */
async function beginPause({ bench, address }: Scene): Promise<{ result: Promise<RunResult> }> {
  const result = bench.tapCtl(`pause ${address}`);
  while (!(await bench.list("-m 1"))[0].includes("state=0x14")) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return { result };
}

test("SIGUSR1 logs the requests that it owes", async (scene) => {
  const { bench, kill, client, pid, ended } = scene;
  const { result } = await beginPause(scene);
  await client.request({ command: Cmd.Flush, offset: 0 });
  kill("SIGUSR1");
  await until("the state is logged", () => bench.log().includes("Statistics of minor 1"));
  const lines = bench.log().split("\n").filter((line) => line.includes("Minor 1: "));
  assert.match(lines[0], /nbd:unix:\S+:hangs, state 0x14, 2 requests have not ended/);
  assert.match(lines[1], /slot \d+: read, sector 8, 16 sectors, at the disk for .* failed 0 times/);
  assert.match(lines[2], /slot \d+: flush, sector 0, 0 sectors, held by a pause for /);
  assert.equal(lines.length, 3);
  assert.equal(isRunning(pid), true);
  kill("SIGKILL");
  await ended;
  assert.notEqual((await result).code, 0);
});

test("a close ends pauses, those that wait too, and waits for the disk", async (scene) => {
  const { bench, address, pid, letGo, ended } = scene;
  const first = await beginPause(scene);
  const second = bench.tapCtl(`pause ${address}`);
  const close = bench.tapCtl(`close ${address}`);
  for (const { code, stderr } of [await first.result, await second]) {
    assert.equal(code, Errno.ECANCELED);
    assert.match(stderr, /closed/);
  }
  assert.match((await bench.list("-m 1"))[0], /state=0x40 /);
  // A new pause fails too.
  assert.equal((await bench.tapCtl(`pause ${address}`)).code, Errno.ECANCELED);
  // Only the caller waits.
  assert.equal((await bench.tapCtl(`close ${address} -t 1`)).code, Errno.ETIMEDOUT);
  await bench.ok(`pause -p ${pid} -m 0 -t 5`);
  letGo();
  assert.deepEqual([(await close).code, (await close).stderr], [0, ""]);
  await bench.ok(`detach ${address}`);
  await bench.ok(`close -p ${pid} -m 0`);
  await bench.ok(`detach -p ${pid} -m 0`);
  assert.match(await ended, /^0\n/);
});

test("a forced close drops its clients at once", async (scene) => {
  const { bench, address, client, letGo, kill, ended } = scene;
  const { result } = await beginPause(scene);
  const close = bench.tapCtl(`close ${address} -f`);
  assert.equal(await client.hasHungUp(), true);
  assert.equal((await result).code, Errno.ECANCELED);
  letGo();
  assert.equal((await close).code, 0);
  kill("SIGTERM");
  assert.match(await ended, /^0\n/);
});

test("SIGTERM closes the others, and ends it at once when it comes again", async (scene) => {
  const { bench, pid, kill, ended } = scene;
  const { result } = await beginPause(scene);
  kill("SIGTERM");
  await until("the other disk is closed", () => /Closed aio:\S+ on minor 0/.test(bench.log()));
  assert.equal((await result).code, Errno.ECANCELED);
  await until(
    "the log says what it waits for",
    () => /Minor 1, nbd:\S+, is still being closed/.test(bench.log()),
  );
  assert.equal(isRunning(pid), true);
  kill("SIGTERM");
  assert.match(await ended, /^143\n/);
});
