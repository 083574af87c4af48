/**
 * Clients that hang up while their requests are held back by a pause, or are at a disk that drains.
 *
 * @module
 */
import assert from "node:assert/strict";
import { type ControlBench, until, withControlBench } from "../support/control.ts";
import { Cmd, NbdClient } from "../support/nbd_client.ts";

const FLOOD = 120;
const BYTES = 512;
/** Where the client that stays writes. */
const LAST = 1010;

function descriptors(pid: number): number {
  return Array.from(Deno.readDirSync(`/proc/${pid}/fd`)).length;
}

async function outstanding(bench: ControlBench, address: string): Promise<number> {
  return JSON.parse(await bench.ok(`stats ${address}`)).reqs_outstanding;
}

/** The `i`th of the writes, told by its content. */
function write(client: NbdClient, i: number): Promise<number> {
  const payload = new Uint8Array(BYTES).fill(i + 1);
  return client.request({ command: Cmd.Write, offset: i * BYTES, payload });
}

async function read(client: NbdClient, i: number): Promise<Uint8Array> {
  await client.request({ command: Cmd.Read, offset: i * BYTES, length: BYTES });
  const { error, data } = await client.reply();
  assert.equal(error, 0);
  return data;
}

Deno.test("clients that hang up during a pause leave nothing behind", () =>
  withControlBench(async (bench) => {
    const image = bench.rawImage("a.raw", 4 << 20);
    const pid = await bench.spawn();
    const address = `-p ${pid} -m 0`;
    await bench.ok("allocate");
    await bench.ok(`attach ${address}`);
    await bench.ok(`open ${address} -a aio:${image}`);
    const socket = `${bench.control}/nbd${pid}.0`;
    const { client: stays } = await NbdClient.open(socket);
    await new Promise((resolve) => setTimeout(resolve, 200));
    const before = descriptors(pid);
    for (let round = 1; round <= 3; round++) {
      await bench.ok(`pause ${address}`);
      const { client: leaves } = await NbdClient.open(socket);
      // More than one client has slots for; what follows stays in the socket, half a request, too.
      for (let i = 0; i < FLOOD; i++) await write(leaves, i);
      await leaves.send(new Uint8Array(11));
      while (await outstanding(bench, address) < FLOOD / 2) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      leaves[Symbol.dispose]();
      // What another client asks for meanwhile waits for the same.
      await write(stays, LAST);
      await bench.ok(`unpause ${address}`);
      assert.equal((await stays.reply()).error, 0);
      while (await outstanding(bench, address) > 0) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      assert.equal((await read(stays, LAST))[0], (LAST + 1) & 0xff);
      // A write that was taken is whole; one that was not is not there.
      for (let i = 0; i < FLOOD; i++) {
        const found = await read(stays, i);
        assert.ok(found.every((byte) => byte === found[0]), `block ${i}`);
        assert.ok(found[0] === 0 || found[0] === ((i + 1) & 0xff), `block ${i}: ${found[0]}`);
      }
      await until("its descriptors are closed", () => descriptors(pid) === before);
    }
    stays[Symbol.dispose]();
    await bench.ok(`close ${address}`);
    await bench.ok(`detach ${address}`);
  }));
