import assert from "node:assert/strict";
import {
  Cmd,
  infoContent,
  joined,
  NbdClient,
  noise,
  Opt,
  packed,
  requestHeader,
} from "../support/nbd_client.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  openDescriptors,
  privateMemoryKib,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { Bystander } from "../support/bystander.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 64;

const { ignore, suffix } = needsServed();

/** Two exports of one process, with a working client on each during the whole test. */
function abuseTest(
  name: string,
  body: (disks: { victim: Disk; tapdisks: Tapdisks }) => Promise<void>,
): void {
  Deno.test({
    name: `NBD abuse: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const victim = await tapdisks.serve(`vhd:${await createVhd(`${folder}/a.vhd`, DISK_MIB)}`);
        const image = `vhd:${await createVhd(`${folder}/b.vhd`, DISK_MIB)}`;
        const other = await tapdisks.serve(image, { pid: victim.pid });
        const bystanders = [await Bystander.start(victim), await Bystander.start(other)];
        try {
          await body({ victim, tapdisks });
        } finally {
          for (const bystander of bystanders) await bystander.end();
        }
      }),
  });
}

/**
 * A client that violates the protocol. It closes the connection, or waits until the server does.
 */
type Abuse = (socket: string) => Promise<void>;

async function greeted(socket: string, bytes: Uint8Array): Promise<void> {
  using client = await NbdClient.connect(socket);
  await client.greet();
  await client.send(bytes);
}

async function transmitted(socket: string, ...parts: Uint8Array[]): Promise<void> {
  const { client } = await NbdClient.open(socket, { structured: true });
  using _ = client;
  await client.send(...parts);
}

/**
 * Sends data at which the server closes the connection, before it has received all of it or after.
 */
async function sentUntilHungUp(client: NbdClient, bytes: Uint8Array): Promise<void> {
  await client.send(bytes).catch((error) => {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  });
  assert.ok(await client.hasHungUp());
}

function reads(count: number, length: number): Uint8Array {
  const offset = (i: number) => (i * length) % (DISK_MIB * MIB - length);
  return joined(...Array.from(
    { length: count },
    (_, i) => requestHeader({ command: Cmd.Read, offset: offset(i), length, cookie: i }),
  ));
}

const abuses: Record<string, Abuse> = {
  "hangs up at once": async (socket) => (await NbdClient.connect(socket)).close(),

  "sends half of its flags": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.send(new Uint8Array(2));
  },

  "sends flags that there are not": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.greet(0xff);
    assert.ok(await client.hasHungUp());
  },

  "sends garbage for options": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.greet();
    await sentUntilHungUp(client, noise(100_000, 1));
  },

  "speaks HTTP": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.send(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: here\r\n\r\n"));
    await client.receive(18);
    assert.ok(await client.hasHungUp());
  },

  "leaves within an option": (socket) =>
    greeted(socket, packed([8, 0x49484156454f5054n], [4, Opt.Go], [4, 1000], [4, 7])),

  "announces an option of 4 GiB": (socket) =>
    greeted(socket, packed([8, 0x49484156454f5054n], [4, Opt.Go], [4, 0xffffffff])),

  "asks for an export with a name of 4 GiB": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.greet();
    await client.send(packed([8, 0x49484156454f5054n], [4, Opt.ExportName], [4, 0xffffffff]));
    assert.ok(await client.hasHungUp());
  },

  "asks for a list 10,000 times and listens to none": async (socket) => {
    using client = await NbdClient.connect(socket);
    await client.greet();
    const list = packed([8, 0x49484156454f5054n], [4, Opt.List], [4, 0]);
    const sending = client.send(...Array.from({ length: 10_000 }, () => list)).catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, 50));
    client.close();
    await sending;
  },

  "goes right after the handshake": async (socket) => {
    (await NbdClient.open(socket)).client.close();
  },

  "sends a request with a wrong magic number": async (socket) => {
    const { client } = await NbdClient.open(socket);
    using _ = client;
    const request = requestHeader({ command: Cmd.Read, length: 4096 });
    request[0] ^= 1;
    await client.send(request);
    assert.ok(await client.hasHungUp());
  },

  "sends garbage for requests": async (socket) => {
    const { client } = await NbdClient.open(socket);
    using _ = client;
    await sentUntilHungUp(client, noise(50_000, 2));
  },

  "leaves within a header": (socket) =>
    transmitted(socket, requestHeader({ command: Cmd.Read, length: 4096 }).subarray(0, 13)),

  "leaves within a short payload": (socket) =>
    transmitted(socket, requestHeader({ command: Cmd.Write, length: 4096 }), new Uint8Array(1000)),

  "leaves within a long payload": (socket) =>
    transmitted(
      socket,
      requestHeader({ command: Cmd.Write, length: 8 * MIB }),
      new Uint8Array(3 * MIB + 77),
    ),

  "leaves within a payload that was refused": (socket) =>
    transmitted(
      socket,
      requestHeader({ command: Cmd.Write, length: 0xffff_fe00 }),
      new Uint8Array(MIB),
    ),

  "leaves with 100 reads under way": (socket) => transmitted(socket, reads(100, 128 * 1024)),

  "leaves with 100 writes under way": (socket) =>
    transmitted(
      socket,
      ...Array.from({ length: 100 }, (_, i) =>
        joined(
          requestHeader({ command: Cmd.Write, offset: (i * MIB) % (30 * MIB), length: 65536 }),
          noise(65536, i),
        )),
    ),

  "leaves after taking half of an answer": async (socket) => {
    const { client } = await NbdClient.open(socket);
    using _ = client;
    await client.send(reads(40, 256 * 1024));
    await client.receive(100_000);
  },

  "leaves with more asked for than there are slots": (socket) =>
    transmitted(socket, reads(1000, 65536)),

  "leaves after a goodbye with reads under way": (socket) =>
    transmitted(socket, reads(50, 65536), requestHeader({ command: Cmd.Disc })),
};

abuseTest("rude clients are dropped, and nobody else notices", async ({ victim }) => {
  for (const [what, abuse] of Object.entries(abuses)) {
    try {
      await abuse(victim.socket);
    } catch (error) {
      throw new Error(`The client that ${what}: ${error}`, { cause: error });
    }
  }
});

abuseTest("200 rude clients leave no descriptor and no memory behind", async ({ victim }) => {
  const all = Object.values(abuses);
  const abuseBy = async (clients: number): Promise<void> => {
    for (let i = 0; i < clients; i++) await all[i % all.length](victim.socket);
  };
  // A warm-up allocates what stays: the memory of all slots, the heap, compiled code.
  const { client } = await NbdClient.open(victim.socket);
  const fill = { command: Cmd.Read, length: 256 * 1024 };
  for (let i = 0; i < 128; i++) await client.request(fill);
  for (let i = 0; i < 128; i++) await client.reply();
  await client.disconnect();
  await abuseBy(100);
  const descriptors = openDescriptors(victim.pid);
  const memoryKib = privateMemoryKib(victim.pid);
  await abuseBy(200);
  await waitUntil(() => openDescriptors(victim.pid) <= descriptors, "all descriptors are closed");
  const grownKib = privateMemoryKib(victim.pid) - memoryKib;
  // If each client left its buffers behind, the growth would be 30 MiB.
  assert.ok(grownKib < 20 * 1024, `${grownKib} KiB more after 200 clients`);
});

abuseTest("who never listens stops at some time; others go on", async ({ victim }) => {
  const { client } = await NbdClient.open(victim.socket, { structured: true });
  using _ = client;
  await client.write(0, noise(4 * MIB, 1));
  // Much more data than socket buffers and slots hold; the requests themselves fit into the
  // buffers.
  await client.send(reads(3000, 65536));
  await new Promise((resolve) => setTimeout(resolve, 500));
  const { client: another } = await NbdClient.open(victim.socket);
  assert.deepEqual(await another.read(0, 4 * MIB), noise(4 * MIB, 1));
  await another.write(8 * MIB, noise(32 * MIB, 2));
  assert.deepEqual(await another.read(8 * MIB, 32 * MIB), noise(32 * MIB, 2));
  await another.disconnect();
});

abuseTest("who stops in the middle of its payloads keeps nobody waiting", async ({ victim }) => {
  const stuck: NbdClient[] = [];
  for (const length of [32 * MIB, 8 * MIB, 256 * 1024]) {
    const { client } = await NbdClient.open(victim.socket);
    stuck.push(client);
    const header = requestHeader({ command: Cmd.Write, length });
    await client.send(header, new Uint8Array(length / 2));
  }
  const { client: another } = await NbdClient.open(victim.socket);
  await another.write(MIB, noise(4 * MIB, 3));
  assert.deepEqual(await another.read(MIB, 4 * MIB), noise(4 * MIB, 3));
  await another.disconnect();
  for (const client of stuck) client.close();
});

abuseTest(
  "a request for another export than there is gets the one there is",
  async ({ victim }) => {
    using client = await NbdClient.connect(victim.socket);
    await client.greet();
    await client.acknowledged(Opt.Go, infoContent("no such export"));
    await client.flush();
  },
);

abuseTest(
  "a disk that is closed drops its clients, whatever they do",
  async ({ victim, tapdisks }) => {
    const image = `vhd:${await createVhd(`${tapdisks.controlFolder}/c.vhd`, 16)}`;
    const disk = await tapdisks.serve(image, { pid: victim.pid });
    const clients: NbdClient[] = [await NbdClient.connect(disk.socket)];
    for (let i = 0; i < 4; i++) clients.push((await NbdClient.open(disk.socket)).client);
    await clients[1].send(
      requestHeader({ command: Cmd.Write, length: 8 * MIB }),
      new Uint8Array(99),
    );
    const reading = clients[2].send(reads(200, 65536)).catch(() => {});
    await clients[3].send(requestHeader({ command: Cmd.Write, length: 4096 }), noise(4096, 1));
    await tapdisks.stop(disk);
    await reading;
    for (const client of clients) {
      await client.drain();
      client.close();
    }
  },
);
