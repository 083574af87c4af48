import assert from "node:assert/strict";
import { decodePid, decodeResponse } from "../../src/control/protocol/answers.ts";
import { decodeListEntry } from "../../src/control/protocol/list.ts";
import {
  ALL_MINORS,
  encodePlain,
  MESSAGE_BYTES,
  MessageType,
  messageType,
} from "../../src/control/protocol/message.ts";
import { encodeParams, encodeTrailer, MessageFlag } from "../../src/control/protocol/params.ts";
import { type ControlBench, withControlBench } from "../support/control.ts";

function test(name: string, body: (bench: ControlBench, pid: number) => Promise<void>): void {
  Deno.test(`control: ${name}`, () =>
    withControlBench(async (bench) => {
      await bench.ok("allocate");
      const pid = await bench.spawn();
      await bench.ok(`attach -p ${pid} -m 0`);
      await body(bench, pid);
      assert.match((await bench.list()).join(), new RegExp(`^pid=${pid} minor=0 state=(0|0x2)$`));
    }));
}

async function connect(bench: ControlBench, pid: number): Promise<Deno.UnixConn> {
  return await Deno.connect({ transport: "unix", path: `${bench.control}/ctl${pid}` });
}

async function send(connection: Deno.UnixConn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

/** All data until the tapdisk closes the connection. */
async function receive(connection: Deno.UnixConn): Promise<Uint8Array> {
  return new Uint8Array(await new Response(connection.readable).arrayBuffer());
}

async function ask(bench: ControlBench, pid: number, request: Uint8Array): Promise<Uint8Array> {
  const connection = await connect(bench, pid);
  await send(connection, request);
  return await receive(connection);
}

const OPEN = {
  flags: 0,
  minor: 0,
  path: "aio:/none",
  parentMinor: -1,
  requestTimeoutSeconds: 0,
  secondary: "",
};

test("a request that comes byte by byte is a request", async (bench, pid) => {
  const connection = await connect(bench, pid);
  const request = encodePlain(MessageType.PID, 9);
  for (const byte of request) await send(connection, Uint8Array.of(byte));
  const answer = await receive(connection);
  assert.equal(answer.length, MESSAGE_BYTES);
  assert.equal(messageType(answer), MessageType.PID_RSP);
  assert.equal(decodePid(answer), pid);
});

test("half requests, and peers that are gone, disturb nobody", async (bench, pid) => {
  const connections: Deno.UnixConn[] = [];
  for (let i = 0; i < 20; i++) {
    const connection = await connect(bench, pid);
    await send(connection, new Uint8Array(i * 25));
    connections.push(connection);
  }
  assert.equal((await bench.list()).length, 1);
  for (const connection of connections) connection.close();
  for (let i = 0; i < 20; i++) {
    const connection = await connect(bench, pid);
    await send(connection, encodePlain(MessageType.LIST, ALL_MINORS));
    connection.close();
  }
});

test("more connections than it takes wait for their turn", async (bench, pid) => {
  const idle = await Promise.all(Array.from({ length: 32 }, () => connect(bench, pid)));
  const late = await connect(bench, pid);
  await send(late, encodePlain(MessageType.PID, 0));
  const answer = receive(late);
  idle[7].close();
  assert.equal(decodePid(await answer), pid);
  for (const connection of idle.filter((_, index) => index !== 7)) connection.close();
});

test("what it does not know is refused", async (bench, pid) => {
  const unknown = [0, 2, MessageType.LIST_MINORS, MessageType.EXIT, 31, 77, 65535];
  for (const type of [...unknown, MessageType.PID_RSP, MessageType.XENBLKIF_CONNECT_RSP]) {
    const answer = await ask(bench, pid, encodePlain(type, 0));
    assert.equal(messageType(answer), MessageType.ERROR, `type ${type}`);
    assert.equal(decodeResponse(answer).error, 22, `type ${type}`);
  }
});

test("requests that make no sense are refused", async (bench, pid) => {
  const endless = encodeParams(MessageType.OPEN, 0, OPEN).fill(0x61, 20, 276);
  assert.equal(decodeResponse(await ask(bench, pid, endless)).error, 22);
  const flags = MessageFlag.ADD_LOG;
  const log = Uint8Array.of(
    ...encodeParams(MessageType.OPEN, 0, { ...OPEN, flags }),
    ...new Uint8Array(256).fill(0x61),
  );
  assert.equal(decodeResponse(await ask(bench, pid, log)).error, 22, "a log's path without an end");
  const empty = encodeParams(MessageType.OPEN, 0, { ...OPEN, path: "" });
  assert.equal(decodeResponse(await ask(bench, pid, empty)).error, 22);
  const tooLarge = encodePlain(MessageType.ATTACH, 16384);
  assert.equal(decodeResponse(await ask(bench, pid, tooLarge)).error, 22);
});

const KEY = new Uint8Array(32).fill(7);

test("a key may come in parts, and a refusal shows nothing of it", async (bench, pid) => {
  const flags = MessageFlag.OPEN_ENCRYPTED;
  const message = encodeParams(MessageType.OPEN, 0, { ...OPEN, path: "vhd:/none", flags });
  const trailer = Uint8Array.of(...encodeTrailer({ logPath: null, keyBytes: 32 }), ...KEY);
  const connection = await connect(bench, pid);
  await send(connection, message);
  await send(connection, trailer.subarray(0, 10));
  await send(connection, trailer.subarray(10));
  const refusal = decodeResponse(await receive(connection));
  assert.equal(refusal.error, 2);
  assert.equal(refusal.message, "Cannot open /none: No such file or directory (ENOENT)");
});

test("a list has an end, and statistics are as long as they say", async (bench, pid) => {
  const list = await ask(bench, pid, encodePlain(MessageType.LIST, ALL_MINORS));
  assert.equal(list.length, 2 * MESSAGE_BYTES);
  const [first, end] = [list.subarray(0, MESSAGE_BYTES), list.subarray(MESSAGE_BYTES)];
  assert.deepEqual(decodeListEntry(first), { count: 1, minor: 0, state: 0, path: "" });
  assert.deepEqual(decodeListEntry(end), { count: 0, minor: -1, state: 0, path: "" });

  const all = await ask(bench, pid, encodePlain(MessageType.STATS, ALL_MINORS));
  assert.equal(messageType(all), MessageType.STATS_RSP);
  const length = Number(new DataView(all.buffer).getBigUint64(16, true));
  const text = new TextDecoder().decode(all.subarray(MESSAGE_BYTES));
  assert.equal(text.length, length);
  assert.equal(JSON.parse(text).length, 1);
});

test("changes that come at once are made one after the other", async (bench, pid) => {
  const image = bench.rawImage("a.raw");
  const open = encodeParams(MessageType.OPEN, 0, { ...OPEN, path: `aio:${image}` });
  const requests = [
    open,
    encodePlain(MessageType.PAUSE, 0),
    encodeParams(MessageType.RESUME, 0, { ...OPEN, path: "" }),
    encodePlain(MessageType.CLOSE, 0),
  ];
  for (let round = 0; round < 10; round++) {
    const answers = await Promise.all(
      [...requests, ...requests, ...requests].map((request) => ask(bench, pid, request)),
    );
    for (const answer of answers) assert.equal(answer.length, MESSAGE_BYTES);
  }
  await ask(bench, pid, encodePlain(MessageType.CLOSE, 0));
});
