import assert from "node:assert/strict";
import { MOST_CLIENTS } from "../../src/frontend/nbd/client_memory.ts";
import { Bystander } from "../support/bystander.ts";
import { joined, NbdClient, noise, requestHeader } from "../support/nbd_client.ts";
import { Cmd } from "../support/nbd_client.ts";
import { type Disk, needsServed, privateMemoryKib, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const SLOT_BYTES = 256 * 1024;
const { ignore, suffix } = needsServed();

/** A disk of 64 MiB in memory, and the log of its tapdisk. */
function crowdTest(name: string, body: (disk: Disk, log: () => string) => Promise<void>): void {
  Deno.test({
    name: `NBD crowd: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks) => {
        const disk = await tapdisks.serve("ram:64");
        const log = `${tapdisks.controlFolder}/log/tapdisk.log`;
        await body(disk, () => Deno.readTextFileSync(log));
      }),
  });
}

/** Calls `join` for each client of a crowd, with the number of the client. */
async function crowd(
  count: number,
  join: (number: number) => Promise<NbdClient>,
): Promise<NbdClient[]> {
  const clients: NbdClient[] = [];
  for (let i = 0; i < count; i++) clients.push(await join(i));
  return clients;
}

async function opened(disk: Disk): Promise<NbdClient> {
  return (await NbdClient.open(disk.socket)).client;
}

/** Sends data; the server may close the connection before it has received all of it. */
function sendAll(client: NbdClient, ...parts: Uint8Array[]): void {
  client.send(...parts).catch(() => {});
}

async function beside(disk: Disk, body: () => Promise<void>): Promise<void> {
  const bystander = await Bystander.start(disk);
  try {
    await body();
  } finally {
    await bystander.end();
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

crowdTest("300 clients at once are all served, with requests of all sizes", async (disk) => {
  const clients = await crowd(300, () => opened(disk));
  await Promise.all(clients.map(async (client, i) => {
    const data = noise(i % 10 === 0 ? 3 * SLOT_BYTES : 4096, i + 1);
    const offset = i * 128 * 1024;
    for (let round = 0; round < 3; round++) {
      await client.write(offset, data.subarray(0, 128 * 1024));
      const read = await client.read(offset, Math.min(data.length, 128 * 1024));
      assert.deepEqual(read, data.subarray(0, 128 * 1024));
      if (i % 10 === 0) assert.equal((await client.read(0, 4 * MIB)).length, 4 * MIB);
    }
    await client.disconnect();
  }));
});

crowdTest("as many silent clients as there is room for make room for others", async (disk, log) => {
  await beside(disk, async () => {
    const silent = await crowd(MOST_CLIENTS + 40, () => NbdClient.connect(disk.socket));
    for (let i = 0; i < 20; i++) {
      const client = await opened(disk);
      await client.write(0, noise(4096, i));
      await client.disconnect();
    }
    for (const client of silent) client.close();
  });
  assert.match(log(), /hung up on an NBD client: it had not finished the handshake/);
});

crowdTest(
  "more clients than a disk serves are turned away, and the log says so",
  async (disk, log) => {
    const clients = await crowd(MOST_CLIENTS, () => opened(disk));
    const late = await NbdClient.connect(disk.socket);
    assert.ok(await late.hasHungUp());
    assert.match(
      log(),
      new RegExp(`hung up on an NBD client: the disk has ${MOST_CLIENTS} already`),
    );
    await clients[0].disconnect();
    const next = await opened(disk);
    await next.write(0, noise(4096, 1));
    for (const client of [...clients, late, next]) client.close();
  },
);

crowdTest("40 clients that do not take their answers in keep nobody waiting", async (disk, log) => {
  const reads = joined(...Array.from(
    { length: 100 },
    (_, i) => requestHeader({ command: Cmd.Read, length: SLOT_BYTES, cookie: i }),
  ));
  let deaf: NbdClient[] = [];
  await beside(disk, async () => {
    deaf = await crowd(40, async () => {
      const client = await opened(disk);
      sendAll(client, reads);
      return client;
    });
    await pause(1000);
    const late = await opened(disk);
    const startMs = performance.now();
    await late.read(0, 4096);
    // Or a minute, after which who does not read is dropped in any case.
    assert.ok(performance.now() - startMs < 15_000);
    await late.disconnect();
  });
  for (const client of deaf) client.close();
  assert.match(log(), /hung up on an NBD client: it kept slots that others need/);
});

crowdTest("200 clients that stop within a write keep nobody waiting", async (disk) => {
  let stuck: NbdClient[] = [];
  await beside(disk, async () => {
    stuck = await crowd(200, async (i) => {
      const client = await opened(disk);
      const length = [4096, SLOT_BYTES, 8 * SLOT_BYTES][i % 3];
      sendAll(client, requestHeader({ command: Cmd.Write, length }), new Uint8Array(length - 1));
      return client;
    });
    await pause(1500);
  });
  for (const client of stuck) client.close();
});

crowdTest("clients that send refused requests without end keep nobody waiting", async (disk) => {
  const refused = joined(
    ...Array.from({ length: 2000 }, () => requestHeader({ command: Cmd.Cache, length: 4096 })),
  );
  await beside(disk, async () => {
    const busy = await crowd(20, () => opened(disk));
    const work = busy.map(async (client) => {
      sendAll(client, refused);
      await client.receive(2000 * 16);
      client.close();
    });
    await Promise.all(work);
  });
});

crowdTest("clients that hang up at once leave nothing behind", async (disk) => {
  const come = async (count: number): Promise<void> => {
    for (let i = 0; i < count;) {
      try {
        (await NbdClient.connect(disk.socket)).close();
        i++;
      } catch (error) {
        // The socket's backlog is full, as the host is busy.
        if (!(error instanceof Deno.errors.WouldBlock)) throw error;
        await pause(5);
      }
    }
  };
  await come(4000);
  const before = privateMemoryKib(disk.pid);
  await come(6000);
  const grownKib = privateMemoryKib(disk.pid) - before;
  // One object left for each client would be 18 MiB.
  assert.ok(grownKib < 8 * 1024, `${grownKib} KiB more after 6000 clients`);
  await (await opened(disk)).disconnect();
});
