/**
 * Clients that disconnect while a pause holds their requests, or while the disk drains.
 *
 * @module
 */
import assert from "node:assert/strict";
import { type ControlBench, until, withControlBench } from "../support/control.ts";
import { Cmd, NbdClient } from "../support/nbd_client.ts";

const FLOOD = 120;
const BYTES = 512;
/** The sector of the other client's write. */
const LAST = 1010;

function descriptors(pid: number): number {
  return Array.from(Deno.readDirSync(`/proc/${pid}/fd`)).length;
}

async function outstanding(bench: ControlBench, address: string): Promise<number> {
  return JSON.parse(await bench.ok(`stats ${address}`)).reqs_outstanding;
}

/** Write number `i`, identified by its contents. */
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
      // More requests than one client has slots for. The rest, including half a request, stays in
      // the socket.
      for (let i = 0; i < FLOOD; i++) await write(leaves, i);
      await leaves.send(new Uint8Array(11));
      while (await outstanding(bench, address) < FLOOD / 2) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      leaves[Symbol.dispose]();
      // A request of another client waits for the same pause.
      await write(stays, LAST);
      await bench.ok(`unpause ${address}`);
      assert.equal((await stays.reply()).error, 0);
      while (await outstanding(bench, address) > 0) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      assert.equal((await read(stays, LAST))[0], (LAST + 1) & 0xff);
      // An accepted write is complete; a write that was not accepted is absent.
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
