/**
 * The NBD driver's requests and replies byte by byte, on a pair of sockets: the test is the server.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";
import { socketPair } from "../../ffi/sockets.ts";
import { Operations } from "../../src/driver/nbd/operations.ts";
import { type AnswerSink, ReplyReceiver } from "../../src/driver/nbd/reply_receiver.ts";
import { RequestSender } from "../../src/driver/nbd/request_sender.ts";
import { PieceTable } from "../../src/driver/pieces.ts";
import { Chunk, Cmd, joined, packed } from "../support/nbd_client.ts";
import { SocketEnd } from "../support/played_loop.ts";

const SIMPLE_MAGIC = 0x67446698;
const STRUCTURED_MAGIC = 0x668e33ef;
const REQUEST_MAGIC = 0x25609513;
const DONE = 1;
const READ_SECTORS = 2;
const READ_BYTES = 1024;
/** Beyond 4 GiB. */
const SECTOR = 2 ** 24 + 8;

/** A driver's connection with one read under way, which is operation 0. */
class Rig implements AnswerSink {
  readonly pieces = new PieceTable(16);
  readonly operations = new Operations();
  readonly memory = new Arena(8 * READ_BYTES);
  readonly receiver = new ReplyReceiver(this.pieces, this.operations, this);
  readonly sender = new RequestSender(this.pieces);
  readonly server: SocketEnd;
  readonly ended: [operation: number, errno: number][] = [];
  readonly #fd: number;

  constructor({ structured }: { structured: boolean }) {
    const [ours, theirs] = socketPair();
    this.#fd = ours;
    this.server = new SocketEnd(theirs);
    this.receiver.reset(structured, 1);
    this.start(Cmd.Read);
  }

  /** Starts an operation, and returns what is sent for it. */
  start(command: number): Uint8Array | null {
    const memory = this.memory.sector + 2;
    const piece = this.pieces.take(command, 0, SECTOR, READ_SECTORS, memory);
    const operation = this.operations.take(piece, 0);
    if (command === Cmd.Read) this.operations.reads++;
    this.sender.add(operation, piece);
    assert.equal(this.sender.send(this.#fd), 0);
    return this.server.receive();
  }

  answered(operation: number, errno: number): void {
    this.ended.push([operation, errno]);
    this.operations.give(operation);
    this.operations.reads--;
  }

  answeredExtents(): void {}

  /** Receives what the server sends. */
  receive(...parts: readonly Uint8Array[]): number {
    this.server.send(joined(...parts));
    return this.receiver.receive(this.#fd);
  }

  /** The memory of the read; all around it must be as it was. */
  get data(): Uint8Array {
    const { bytes } = this.memory;
    for (const [from, to] of [[0, 1024], [2048, bytes.length]]) {
      assert.ok(bytes.subarray(from, to).every((byte) => byte === 0), "a byte beside the read");
    }
    return bytes.slice(1024, 2048);
  }

  close(): void {
    this.receiver.release();
    this.sender.release();
    this.server.close();
    closeFile(this.#fd);
    this.memory.release();
  }
}

const DATA = Uint8Array.from({ length: READ_BYTES }, (_, i) => 1 + i % 250);

function simple(cookie: number | bigint, error = 0): Uint8Array {
  return packed([4, SIMPLE_MAGIC], [4, error], [8, cookie]);
}

function chunk(type: number, content: Uint8Array, { flags = 0, cookie = 0 } = {}): Uint8Array {
  const head = packed([4, STRUCTURED_MAGIC], [2, flags], [2, type], [8, cookie]);
  return joined(head, packed([4, content.length]), content);
}

function dataAt(offset: number, data: Uint8Array, flags = 0): Uint8Array {
  return chunk(Chunk.OffsetData, joined(packed([8, SECTOR * 512 + offset]), data), { flags });
}

function holeAt(offset: number, length: number, flags = 0): Uint8Array {
  return chunk(Chunk.OffsetHole, packed([8, SECTOR * 512 + offset], [4, length]), { flags });
}

Deno.test("NBD driver: a request names its command, its place beyond 4 GiB, and its operation", () => {
  const rig = new Rig({ structured: false });
  const sent = rig.start(Cmd.WriteZeroes);
  assert.deepEqual(
    sent,
    packed([4, REQUEST_MAGIC], [2, 0], [2, 6], [8, 1], [8, SECTOR * 512], [4, READ_BYTES]),
  );
  rig.close();
});

Deno.test("NBD driver: a simple reply ends its own operation, with its data or its error", () => {
  const rig = new Rig({ structured: false });
  assert.equal(rig.receive(simple(0), DATA), 0);
  assert.deepEqual([rig.ended, rig.data], [[[0, 0]], DATA]);
  rig.close();
  const failing = new Rig({ structured: false });
  assert.equal(failing.receive(simple(0, Errno.EIO)), 0);
  assert.deepEqual(failing.ended, [[0, Errno.EIO]]);
  failing.close();
});

Deno.test("NBD driver: chunks may come in any order and in any pieces", () => {
  const bytes = joined(holeAt(0, 512), dataAt(512, DATA.subarray(512), DONE));
  for (const step of [bytes.length, 7, 1]) {
    const rig = new Rig({ structured: true });
    for (let at = 0; at < bytes.length; at += step) {
      assert.equal(rig.receive(bytes.subarray(at, at + step)), 0);
    }
    assert.deepEqual(rig.ended, [[0, 0]]);
    assert.deepEqual(rig.data, joined(new Uint8Array(512), DATA.subarray(512)));
    rig.close();
  }
});

const BREACHES: readonly [what: string, structured: boolean, bytes: Uint8Array][] = [
  ["the cookie of no request", false, joined(simple(5), DATA)],
  ["a cookie whose upper half is wrong", false, joined(simple(2n ** 32n), DATA)],
  ["a cookie beyond all", false, simple(2 ** 31)],
  ["another magic number", false, packed([4, 1], [4, 0], [8, 0])],
  ["a chunk where none was agreed on", false, dataAt(0, DATA, DONE)],
  ["data that begins before the request", true, dataAt(-512, DATA.subarray(512), DONE)],
  ["data that ends behind it", true, dataAt(512, DATA, DONE)],
  ["data of another place", true, dataAt(2 ** 30, DATA, DONE)],
  ["a hole that ends behind it", true, holeAt(512, 1024, DONE)],
  ["less data than was asked for", true, dataAt(0, DATA.subarray(512), DONE)],
  ["more data than was asked for", true, joined(dataAt(0, DATA), dataAt(0, DATA, DONE))],
  ["no data at all", true, chunk(Chunk.None, new Uint8Array(0), { flags: DONE })],
  ["a simple reply with data", true, joined(simple(0), DATA)],
  ["a chunk without data", true, chunk(Chunk.OffsetData, packed([8, SECTOR * 512]))],
  ["an error too short for one", true, chunk(Chunk.Error, packed([4, 5]), { flags: DONE })],
];

for (const [what, structured, bytes] of BREACHES) {
  Deno.test(`NBD driver: a server that sends ${what} is hung up on`, () => {
    const rig = new Rig({ structured });
    assert.equal(rig.receive(bytes), -Errno.EPROTO);
    assert.deepEqual(rig.ended.filter(([, errno]) => errno === 0), []);
    assert.equal(rig.data.length, READ_BYTES);
    rig.close();
  });
}

Deno.test("NBD driver: the first error of an answer counts", () => {
  const rig = new Rig({ structured: true });
  const error = (errno: number, flags: number): Uint8Array =>
    chunk(Chunk.Error, packed([4, errno], [2, 0]), { flags });
  assert.equal(rig.receive(error(Errno.ENOSPC, 0), error(Errno.EINVAL, DONE)), 0);
  assert.deepEqual(rig.ended, [[0, Errno.ENOSPC]]);
  rig.close();
});
