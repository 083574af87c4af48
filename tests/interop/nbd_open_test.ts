/**
 * Slow or hung servers at the opening of an image: the other disks of the process keep working.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Cmd, NbdClient, noise } from "../support/nbd_client.ts";
import { startScriptedServer } from "../support/scripted_nbd_server.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  type Tapdisks,
  withTapdisks,
} from "../support/served.ts";

const { ignore, suffix } = needsServed();
/** A read that waited for a silent server would take the server's 15 s. */
const MOST_READ_MS = 12_000;

/** Reads from a disk repeatedly until `over`; returns the longest time of a read. */
async function longestReadMs(disk: Disk, over: Promise<unknown>): Promise<number> {
  const { client } = await NbdClient.open(disk.socket);
  let isOver = false;
  let longestMs = 0;
  const wait = over.finally(() => isOver = true);
  while (!isOver) {
    const startMs = performance.now();
    assert.deepEqual(await client.read(0, 4096), noise(4096, 3));
    longestMs = Math.max(longestMs, performance.now() - startMs);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await wait;
  client.close();
  return longestMs;
}

function openTest(
  name: string,
  body: (world: { tapdisks: Tapdisks; folder: string; disk: Disk; mute: string }) => Promise<void>,
): void {
  Deno.test({
    name: `NBD driver: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/a.vhd`, 64)}`);
        const { client } = await NbdClient.open(disk.socket);
        await client.write(0, noise(4096, 3));
        client.close();
        const mute = `${folder}/mute.sock`;
        // The listener never accepts: a client connects and receives nothing.
        using _listener = Deno.listen({ transport: "unix", path: mute });
        await body({ tapdisks, folder, disk, mute });
      }),
  });
}

async function attach(tapdisks: Tapdisks, pid: number): Promise<string[]> {
  const minor = (await tapdisks.tapCtlOk("allocate")).replace(/^.*-/, "");
  const address = ["-p", `${pid}`, "-m", minor];
  await tapdisks.tapCtlOk("attach", ...address);
  return address;
}

async function detach(tapdisks: Tapdisks, address: string[]): Promise<void> {
  await tapdisks.tapCtlOk("detach", ...address);
  await tapdisks.tapCtlOk("free", "-m", address[3]);
}

openTest("opening waits for a silent server and no other disk does", async (world) => {
  const { tapdisks, disk, mute } = world;
  const images = [`nbd:unix:${mute}`, `log:bc:8:nbd:unix:${mute}:disk`];
  await Promise.all(images.map(async (image) => {
    const address = await attach(tapdisks, disk.pid);
    const startMs = performance.now();
    const open = tapdisks.tapCtl("open", ...address, "-a", image);
    const longestMs = await longestReadMs(disk, open);
    assert.match((await open).stderr, /no answer in 15 s.*ETIMEDOUT/);
    assert.ok(performance.now() - startMs > 14_500);
    assert.ok(longestMs < MOST_READ_MS, `a read took ${longestMs} ms`);
    await detach(tapdisks, address);
  }));
});

openTest(
  "a close, and the end of tap-ctl, give up what waits for a silent server",
  async (world) => {
    const { tapdisks, disk, folder } = world;
    const address = await attach(tapdisks, disk.pid);
    using listener = Deno.listen({ transport: "unix", path: `${folder}/there.sock` });
    const open = tapdisks.tapCtl("open", ...address, "-a", `nbd:unix:${folder}/there.sock`);
    using _client = await listener.accept();
    await tapdisks.tapCtl("close", ...address, "-f");
    // And not the error of a server that was silent for too long.
    assert.match((await open).stderr, /given up.*ECANCELED/);
    await detach(tapdisks, address);
  },
);

openTest("a forced close ends one that waits for a server, at once", async (world) => {
  const { tapdisks, folder, disk } = world;
  const end = await startScriptedServer(`${folder}/n.sock`);
  const hung = await tapdisks.serve(`nbd:unix:${folder}/n.sock:hangs`, { pid: disk.pid });
  const address = ["-p", `${hung.pid}`, "-m", `${hung.minor}`];
  const { client } = await NbdClient.open(hung.socket);
  await client.request({ command: Cmd.Read, offset: 0, length: 4096 });
  const close = tapdisks.tapCtl("close", ...address);
  await new Promise((resolve) => setTimeout(resolve, 3_000));
  const startMs = performance.now();
  const forced = tapdisks.tapCtl("close", ...address, "-f");
  assert.equal((await close).code, 0);
  await forced;
  assert.ok(performance.now() - startMs < 6_000);
  client.close();
  end();
  await tapdisks.stop(hung);
});

openTest("a server that answers without end is refused", async (world) => {
  const { tapdisks, folder, disk } = world;
  const end = await startScriptedServer(`${folder}/n.sock`);
  try {
    const address = await attach(tapdisks, disk.pid);
    const open = tapdisks.tapCtl("open", ...address, "-a", `nbd:unix:${folder}/n.sock:endless`);
    assert.ok(await longestReadMs(disk, open) < MOST_READ_MS);
    assert.match((await open).stderr, /without end.*EPROTO/);
    await detach(tapdisks, address);
  } finally {
    end();
  }
});

openTest("unpausing waits for a silent server and no other disk does", async (world) => {
  const { tapdisks, folder, disk, mute } = world;
  const remote = await tapdisks.serve(`vhd:${await createVhd(`${folder}/b.vhd`, 64)}`);
  const client = await tapdisks.serve(`nbd:unix:${remote.socket}`, { pid: disk.pid });
  const address = ["-p", `${client.pid}`, "-m", `${client.minor}`];
  await tapdisks.tapCtlOk("pause", ...address);
  const unpause = tapdisks.tapCtl("unpause", ...address, "-a", `nbd:unix:${mute}`);
  assert.ok(await longestReadMs(disk, unpause) < MOST_READ_MS);
  assert.notEqual((await unpause).code, 0);
  await tapdisks.tapCtlOk("unpause", ...address);
  await tapdisks.stop(client);
  await tapdisks.stop(remote);
});
