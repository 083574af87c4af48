import assert from "node:assert/strict";
import fc from "fast-check";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { BackOff } from "../../src/driver/nbd/back_off.ts";
import { parseExportName } from "../../src/driver/nbd/export_name.ts";
import { ClientHandshake } from "../../src/driver/nbd/handshake.ts";
import { exportFault } from "../../src/driver/nbd/nbd_image.ts";
import { Handshake } from "../../src/frontend/nbd/handshake.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { openDescriptors } from "../support/served.ts";
import { RealDevice } from "../support/real_device.ts";
import { type Habit, SCRIPTED_BYTES, startScriptedServer } from "../support/scripted_nbd_server.ts";
import { withTempDir } from "../support/tools.ts";

const SECTORS = SCRIPTED_BYTES / 512;

Deno.test("NBD driver: an export has a size that can be counted exactly", () => {
  const sizes: [number, string | undefined][] = [
    [0, "EINVAL"],
    [511, "EINVAL"],
    [512, undefined],
    [2 ** 53 - 512, undefined],
    [2 ** 53, "EFBIG"],
    [2 ** 63, "EFBIG"],
    [Number(2n ** 64n - 1n), "EFBIG"],
  ];
  const spec = { type: "nbd", path: "unix:/s", readOnly: false, direct: false };
  for (const [sizeBytes, code] of sizes) {
    const remote = {
      sizeBytes,
      flags: 1,
      structured: false,
      allocationId: null,
      minimumBlockBytes: 1,
      maximumBlockBytes: 32 << 20,
    };
    assert.equal(exportFault(remote, spec)?.code, code, `${sizeBytes} bytes`);
  }
});

Deno.test("NBD driver: exports by name and by URI", () => {
  const unix = (path: string, exportName = "") => ({ server: { kind: "unix", path }, exportName });
  const tcp = (host: string, port: number, exportName = "") => ({
    server: { kind: "tcp", host, port },
    exportName,
  });
  const names: [string, unknown][] = [
    ["unix:/run/n.sock", unix("/run/n.sock")],
    ["unix:/run/n.sock:", unix("/run/n.sock")],
    ["unix:/run/n.sock:a:b", unix("/run/n.sock", "a:b")],
    ["host:10809", tcp("host", 10809)],
    ["10.0.0.1:1:disk", tcp("10.0.0.1", 1, "disk")],
    ["[fe80::1]:10809:d", tcp("fe80::1", 10809, "d")],
    ["//host", tcp("host", 10809)],
    ["//host/a%20b", tcp("host", 10809, "a b")],
    ["//[::1]:99/x/y", tcp("::1", 99, "x/y")],
    ["///disk?socket=/run/n.sock", unix("/run/n.sock", "disk")],
    ["///?socket=/run/n%20.sock", unix("/run/n .sock")],
  ];
  const descriptor = (name: string) => ({ server: { kind: "descriptor", name }, exportName: "" });
  for (const name of ["host", "host:x", "vbd/20/xvda", "/run/n.sock", "a b", "4f2c:x1"]) {
    names.push([name, descriptor(name)]);
  }
  const parse = (name: string) => parseExportName(name, (path) => path === "/run/blktap/nbd1.0");
  names.push(["/run/blktap/nbd1.0", unix("/run/blktap/nbd1.0")]);
  for (const [name, expected] of names) assert.deepEqual(parse(name), expected, name);
  const wrong = ["unix:n.sock", "host:0", "host:65536", ":1", "//", "///disk"];
  wrong.push("//host/%", "//host/d?socket=/run/n.sock", "::1:10809", "");
  for (const name of wrong) {
    assert.throws(() => parse(name), { name: "SystemError", code: "EINVAL" }, name);
  }
});

/** Connects the client to the project's own server for the handshake, `step` bytes at a time. */
function negotiate(exportName: string, step: number): ClientHandshake {
  const toClient: number[] = [];
  const toServer: number[] = [];
  const server = new Handshake(
    () => ({ sizeBytes: 5_000_000_512, flags: 0x6d, hasLog: false }),
    (bytes) => toClient.push(...bytes),
  );
  const client = new ClientHandshake(exportName, "nbd:test");
  server.start();
  while (client.result === null) {
    assert.ok(toClient.length + toServer.length > 0, "neither waits for the other");
    client.receive(Uint8Array.from(toClient.splice(0, step)));
    for (const bytes of client.toSend.splice(0)) toServer.push(...bytes);
    toServer.splice(0, server.consume(new DataView(Uint8Array.from(toServer).buffer)));
  }
  return client;
}

Deno.test("NBD driver: the handshake with our own server, whole and byte by byte", () => {
  for (const step of [4096, 1]) {
    const { result } = negotiate("disk", step);
    assert.deepEqual(result, {
      sizeBytes: 5_000_000_512,
      flags: 0x6d,
      structured: true,
      allocationId: 1,
      minimumBlockBytes: 512,
      maximumBlockBytes: 32 * 1024 * 1024,
    });
  }
});

function bytesOf(...parts: (string | number[])[]): Uint8Array {
  return Uint8Array.from(
    parts.flatMap((part) => typeof part === "string" ? [...new TextEncoder().encode(part)] : part),
  );
}

const GREETING = bytesOf("NBDMAGICIHAVEOPT", [0, 3]);

function reply(option: number, type: number[], content: string | number[] = []): Uint8Array {
  return bytesOf([0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, option], type, [
    0,
    0,
    0,
    content.length,
  ], content);
}

Deno.test("NBD driver: servers that say no, and those that say too little", () => {
  const unsupported = [0x80, 0, 0, 1];
  const refusals: [Uint8Array[], string, RegExp][] = [
    [[bytesOf("HTTP/1.1 400 Bad Request")], "EPROTO", /no NBD server/],
    [[bytesOf("NBDMAGICIHAVEOPT", [0, 0])], "EPROTONOSUPPORT", /./],
    [[GREETING, reply(9, [0, 0, 0, 1])], "EPROTO", /breaks the NBD protocol/],
    [[GREETING, reply(8, [0x80, 0, 0, 5], "no TLS")], "EACCES", /TLS.*"no TLS"/],
    [[GREETING, reply(8, unsupported), reply(7, [0x80, 0, 0, 6])], "ENOENT", /no such export/],
    [[GREETING, reply(8, unsupported), reply(7, [0, 0, 0, 1])], "EPROTO", /breaks/],
  ];
  for (const [messages, code, pattern] of refusals) {
    const client = new ClientHandshake("x", "nbd:test");
    const receive = () => messages.forEach((message) => client.receive(message));
    assert.throws(receive, (error) => {
      assert.ok(error instanceof SystemError);
      assert.equal(error.code, code);
      assert.match(error.message, pattern);
      return true;
    });
  }
});

Deno.test("NBD driver: a server that tells of its export without end", () => {
  const client = new ClientHandshake("disk", "nbd:test");
  client.receive(GREETING);
  client.receive(reply(8, [0x80, 0, 0, 1]));
  const info = reply(7, [0, 0, 0, 3], [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 5]);
  assert.throws(() => {
    for (let i = 0; i < 100; i++) client.receive(info);
  }, /answers without end.*EPROTO/);
});

Deno.test("NBD driver: attempts to connect come ever more seldom, until a connection lasts", () => {
  const backOff = new BackOff(() => 0.5);
  const pauses = (): number[] => Array.from({ length: 7 }, () => backOff.nextMs());
  assert.deepEqual(pauses(), [0, 250, 500, 1000, 2000, 4000, 4000]);
  backOff.connected(1000);
  backOff.lost(2000);
  assert.equal(backOff.nextMs(), 4000);
  backOff.connected(3000);
  backOff.lost(13000);
  assert.deepEqual(pauses(), [0, 250, 500, 1000, 2000, 4000, 4000]);
  const jitter = [0, 1].map((random) => {
    const other = new BackOff(() => random);
    other.nextMs();
    return other.nextMs();
  });
  assert.deepEqual(jitter, [187.5, 312.5]);
});

Deno.test("NBD driver: a server that knows the oldest option only", () => {
  const client = new ClientHandshake("disk", "nbd:test");
  const unsupported = [0x80, 0, 0, 1];
  for (const message of [GREETING, reply(8, unsupported), reply(7, unsupported)]) {
    client.receive(message);
  }
  assert.deepEqual(client.toSend.slice(-2), [
    bytesOf("IHAVEOPT", [0, 0, 0, 1, 0, 0, 0, 4]),
    bytesOf("disk"),
  ]);
  client.receive(bytesOf([0, 0, 0, 0, 0, 16, 0, 0, 0, 5]));
  assert.equal(client.result?.sizeBytes, 1 << 20);
  assert.equal(client.result?.structured, false);
});

Deno.test("NBD driver: a server that greets in the oldstyle, whole and byte by byte", () => {
  const magic = bytesOf("NBDMAGIC", [0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53]);
  const size = [0, 0, 0, 1, 0, 0, 2, 0];
  const greeting = bytesOf([...magic], size, [0, 0, 0, 5], new Array<number>(124).fill(0));
  assert.equal(greeting.length, 152);
  for (const step of [152, 1]) {
    const client = new ClientHandshake("disk", "nbd:test");
    for (let at = 0; at < 152; at += step) {
      assert.equal(client.result, null);
      client.receive(greeting.subarray(at, at + step));
    }
    assert.deepEqual(client.toSend, []);
    assert.deepEqual(client.result, {
      sizeBytes: 2 ** 32 + 512,
      flags: 5,
      structured: false,
      allocationId: null,
      minimumBlockBytes: 1,
      maximumBlockBytes: 32 << 20,
    });
  }
});

Deno.test("NBD driver: a greeting in the oldstyle that was changed, in any pieces", () => {
  const honest = bytesOf(
    "NBDMAGIC",
    [0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53],
    new Array(160).fill(1),
  );
  const change = fc.record({ at: fc.nat(honest.length - 1), byte: fc.nat(255) });
  fc.assert(
    fc.property(
      fc.array(change, { maxLength: 3 }),
      fc.integer({ min: 1, max: 200 }),
      (all, step) => {
        const bytes = Uint8Array.from(honest);
        for (const { at, byte } of all) bytes[at] = byte;
        const client = new ClientHandshake("disk", "nbd:test");
        try {
          for (let at = 0; at < bytes.length && client.result === null; at += step) {
            client.receive(bytes.subarray(at, at + step));
          }
        } catch (error) {
          assert.ok(error instanceof SystemError, `${error}`);
        }
        // What came behind the greeting is no answer to a request: it is refused, or not read yet.
        assert.ok(client.result === null || client.result.sizeBytes >= 0);
      },
    ),
  );
});

/** Calls `body` with a device on an export of the scripted server. */
async function withScript(
  habit: Habit,
  body: (device: RealDevice) => Promise<void>,
  { closes = false } = {},
): Promise<void> {
  await withTempDir(async (folder) => {
    const end = await startScriptedServer(`${folder}/n.sock`);
    try {
      const device = new RealDevice(`nbd:unix:${folder}/n.sock:${habit}`, {
        retry: { attempts: 3 },
      });
      await body(device);
      if (!closes) await device.close();
    } finally {
      end();
    }
  });
}

/** The initial contents of the scripted server's export. */
function original(sector: number, count: number): Uint8Array {
  return Uint8Array.from({ length: count * 512 }, (_, i) => (sector + (i >> 9)) * 7 + 1);
}

async function assertReads(device: RealDevice, reads: [number, number][]): Promise<void> {
  const results = reads.map(([sector, count]) => device.read(sector, count));
  await device.settle();
  for (const [i, [sector, count]] of reads.entries()) {
    assert.deepEqual(await results[i], original(sector, count), `sector ${sector}`);
  }
}

const EIGHT_READS = Array.from({ length: 8 }, (_, i): [number, number] => [i * 100, 1 + i * 30]);

Deno.test("NBD driver: answers in any order", () =>
  withScript("reverse", async (device) => {
    assert.equal(device.vbd.sectors, SECTORS);
    await assertReads(device, EIGHT_READS);
    const writes = [0, 1, 2, 3].map((i) => device.write(i * 8, new Uint8Array(4096).fill(i + 100)));
    await device.settle();
    assert.deepEqual(await Promise.all(writes), [0, 0, 0, 0]);
    const flushed = device.change(RequestKind.Flush);
    await device.settle();
    assert.equal(await flushed, 0);
    const reads = [0, 1, 2, 3].map((i) => device.read(i * 8, 8));
    await device.settle();
    for (const [i, data] of (await Promise.all(reads)).entries()) {
      assert.deepEqual(data, new Uint8Array(4096).fill(i + 100));
    }
    assert.equal(device.vbd.statistics().retries, 0);
  }));

Deno.test("NBD driver: data and holes in chunks, from the last to the first", () =>
  withScript("chunks", async (device) => {
    await assertReads(device, EIGHT_READS);
    const zeroed = [
      device.change(RequestKind.Zero, 10, 20),
      device.change(RequestKind.Discard, 40, 4),
    ];
    await device.settle();
    assert.deepEqual(await Promise.all(zeroed), [0, 0]);
    const reads = [device.read(0, 64), device.read(200, 3)];
    await device.settle();
    const expected = original(0, 64);
    expected.fill(0, 10 * 512, 30 * 512).fill(0, 40 * 512, 44 * 512);
    assert.deepEqual(await reads[0], expected);
    assert.deepEqual(await reads[1], original(200, 3));
    assert.equal(device.vbd.statistics().retries, 0);
  }));

const BREACHES: [Habit, string][] = [
  ["stranger", "EPROTO"],
  ["cut", "ECONNRESET"],
  ["overrun", "EPROTO"],
];
for (const [habit, code] of BREACHES) {
  Deno.test(`NBD driver: a connection lost (${habit}) costs time and nothing else`, () =>
    withScript(habit, async (device) => {
      const descriptors = openDescriptors(Deno.pid);
      await assertReads(device, EIGHT_READS);
      assert.ok(device.vbd.statistics().retries > 0);
      assert.ok(device.log.some((line) => line.includes(`lost the connection (${code})`)));
      assert.ok(device.log.some((line) => line.endsWith("connected again")));
      assert.equal(openDescriptors(Deno.pid), descriptors);
    }));
}

/** The extents that the scripted server reports. */
function runs(sector: number, count: number): number[] {
  const found: number[] = [];
  for (let at = sector; at < sector + count;) {
    const end = Math.min(sector + count, (Math.floor(at / 8) + 1) * 8);
    found.push(Math.floor(at / 8) % 2 === 0 ? end - at : at - end);
    at = end;
  }
  return found;
}

for (const habit of ["leaves", "cut", "stranger", "fails"] as const) {
  Deno.test(`NBD driver: extents asked of a server that misbehaves (${habit}) come in the end`, () =>
    withScript(habit, async (device) => {
      const asked = [0, 3, 100, 1000].map((sector) => device.status(sector, 500));
      const reads = [device.read(7, 9), device.read(900, 30)];
      await device.settle();
      for (const [i, sector] of [0, 3, 100, 1000].entries()) {
        assert.deepEqual(await asked[i], runs(sector, 500));
      }
      assert.deepEqual(await reads[0], original(7, 9));
      assert.deepEqual(await reads[1], original(900, 30));
      assert.ok(device.vbd.statistics().retries > 0);
    }));
}

Deno.test("NBD driver: extents asked for while there is no connection are an error in the end", () =>
  withScript("shrinks", async (device) => {
    const first = [device.read(0, 8), device.read(8, 8), device.read(16, 8)];
    await device.settle();
    await Promise.all(first);
    const asked = [device.status(0, 8), device.status(100, SECTORS - 100)];
    const read = device.read(0, 8);
    await device.settle();
    assert.deepEqual(await Promise.all(asked), [Errno.ENOTCONN, Errno.ENOTCONN]);
    assert.equal(await read, Errno.ENOTCONN);
  }));

Deno.test("NBD driver: extents that end within sectors, empty ones and ones past the end", () =>
  withScript("odd", async (device) => {
    const asked = [device.status(0, 32), device.status(8, 8), device.status(0, SECTORS, 1)];
    await device.settle();
    // An extent that ends within a sector or has no bytes counts as data; the rest is asked for
    // again.
    assert.deepEqual(await asked[0], [-1, 8, -8, 8, -7]);
    assert.deepEqual(await asked[1], [1, -7]);
    assert.deepEqual(await asked[2], [-1]);
    assert.equal(device.vbd.statistics().retries, 0);
  }));

Deno.test("NBD driver: what a server forbids is handed up at once", () =>
  withScript("forbids", async (device) => {
    const read = device.read(0, 8);
    await device.settle();
    assert.equal(await read, Errno.EPERM);
    assert.equal(device.vbd.statistics().retries, 0);
  }));

Deno.test("NBD driver: another disk behind the same name is not taken for this one", () =>
  withScript("shrinks", async (device) => {
    const reads = EIGHT_READS.map(([sector, count]) => device.read(sector, count));
    await device.settle();
    const results = await Promise.all(reads);
    assert.deepEqual(results[0], original(...EIGHT_READS[0]));
    assert.deepEqual(results[7], Errno.ENOTCONN);
    assert.equal(device.vbd.sectors, SECTORS);
    assert.equal(device.log.filter((line) => line.includes("its size has changed")).length, 1);
  }));

Deno.test("NBD driver: a server that hangs up after each handshake is not asked all the time", () =>
  withScript("flaps", async (device) => {
    const reads = [device.read(0, 8), device.read(8, 8)];
    await device.settle();
    await Promise.all(reads);
    const again = device.log.filter((line) => line.endsWith("connected again")).length;
    assert.ok(again >= 2 && again <= 8, `connected ${again} times in about three seconds`);
  }));

Deno.test("NBD driver: a device whose server answers nothing closes in bounded time", () =>
  withScript("hangs", async (device) => {
    const read = device.read(0, 8);
    const startMs = performance.now();
    await device.close();
    const tookMs = performance.now() - startMs;
    assert.ok(tookMs > 9_000 && tookMs < 28_000, `closed after ${tookMs} ms`);
    assert.equal(await read, Errno.ESHUTDOWN);
  }, { closes: true }));

Deno.test("NBD driver: a device whose server answers nothing closes at once when told to", () =>
  withScript("hangs", async (device) => {
    const read = device.read(0, 8);
    const startMs = performance.now();
    const closed = device.close();
    device.vbd.hurry();
    await closed;
    assert.ok(performance.now() - startMs < 8_000);
    assert.equal(await read, Errno.ESHUTDOWN);
  }, { closes: true }));
