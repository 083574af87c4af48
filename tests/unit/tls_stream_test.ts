/**
 * A stream with TLS on small sockets: whatever the iovecs of both sides are, the bytes that arrive are
 * those that were sent, in their order. The seed of a case is in its failure.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { Arena } from "../../ffi/memory.ts";
import {
  enlargeSendBuffer,
  IOVEC_BYTES,
  putIovec,
  putMsghdr,
  socketPair,
} from "../../ffi/sockets.ts";
import { TlsContext } from "../../ffi/tls_context.ts";
import { TlsStream } from "../../ffi/tls_stream.ts";
import { kernelCanFollow } from "../../ffi/libssl.ts";
import { findPreSharedKey } from "../../src/tls/psk_file.ts";
import { Random } from "../../src/testing/random.ts";
import { folder, hasTls } from "../support/port_rig.ts";

const KIB = 1024;
const DATA_BYTES = 1024 * KIB;
const IOVECS_AT = 64;
const DATA_AT = 8 * KIB;
const MOST_IOVECS = 6;

/** One side of a connection. */
class Side {
  readonly stream: TlsStream;
  readonly context: TlsContext;
  readonly fd: number;

  constructor(fd: number, role: "server" | "client") {
    this.fd = fd;
    // Small: a message does not fit.
    enlargeSendBuffer(fd, 8 * KIB);
    const find = (name: string): ReturnType<typeof findPreSharedKey> =>
      findPreSharedKey(`${folder}/keys.psk`, name);
    this.context = new TlsContext(role, { identity: "alice", find });
    this.stream = new TlsStream(fd, this.context);
  }

  close(): void {
    this.stream.close();
    this.context.close();
    closeFile(this.fd);
  }
}

/** A message in memory of its own. */
class Message {
  readonly memory = new Arena(DATA_AT + DATA_BYTES);
  readonly msghdr = this.memory.pointerAt(0);

  /** Makes a message of random iovecs, which do not overlap; returns its pieces. */
  make(random: Random): [offset: number, length: number][] {
    const pieces: [number, number][] = [];
    let at = DATA_AT;
    for (let i = 1 + random.below(MOST_IOVECS); i > 0; i--) {
      // Headers, data that begins with a sector, and anything.
      if (random.chance(0.5)) at = Math.ceil(at / 512) * 512;
      else at += random.below(700);
      const most = random.chance(0.3) ? 150 * KIB : random.chance(0.5) ? 5000 : 40;
      const length = 1 + random.below(most);
      pieces.push([at, length]);
      at += length;
    }
    this.put(pieces);
    return pieces;
  }

  put(pieces: readonly (readonly [offset: number, length: number])[]): void {
    const { view, sector } = this.memory;
    pieces.forEach(([at, length], i) =>
      putIovec(view, IOVECS_AT + i * IOVEC_BYTES, sector, at, length)
    );
    putMsghdr(view, 0, sector, IOVECS_AT, pieces.length);
  }
}

/** The pieces without their first `bytes` bytes. */
function without(pieces: readonly [number, number][], bytes: number): [number, number][] {
  const left: [number, number][] = [];
  for (const [at, length] of pieces) {
    const gone = Math.min(bytes, length);
    bytes -= gone;
    if (gone < length) left.push([at + gone, length - gone]);
  }
  return left;
}

/** Passes a stream of numbers from one side to the other. */
class Flow {
  #sent = 0;
  #received = 0;
  #pieces: [number, number][] = [];
  readonly #out = new Message();
  readonly #in = new Message();

  constructor(readonly from: Side, readonly to: Side, readonly what: string) {}

  get bytes(): number {
    return this.#received;
  }

  get isOver(): boolean {
    return this.#pieces.length === 0 && this.#sent === this.#received;
  }

  release(): void {
    this.#out.memory.release();
    this.#in.memory.release();
  }

  /** Sends what is left of a message, or else another one. */
  send(random: Random, mayBegin: boolean): void {
    if (this.#pieces.length === 0) {
      if (!mayBegin) return void this.from.stream.flush();
      this.#pieces = this.#out.make(random);
      let at = this.#sent;
      for (const [offset, length] of this.#pieces) {
        for (let i = 0; i < length; i++) this.#out.memory.bytes[offset + i] = byteAt(at++);
      }
    } else this.#out.put(this.#pieces);
    const { view } = this.#out.memory;
    const sent = this.from.stream.send(this.#out.msghdr, view, IOVECS_AT, this.#pieces.length);
    if (sent < 0) return assert.equal(sent, -Errno.EAGAIN, this.what);
    this.#sent += sent;
    this.#pieces = without(this.#pieces, sent);
  }

  receive(random: Random): void {
    const pieces = this.#in.make(random);
    const { view, bytes } = this.#in.memory;
    const got = this.to.stream.receive(this.#in.msghdr, view, IOVECS_AT, pieces.length);
    if (got < 0) return assert.equal(got, -Errno.EAGAIN, this.what);
    assert.ok(got > 0, this.what);
    let left = got;
    for (const [offset, length] of pieces) {
      for (let i = 0; i < Math.min(length, left); i++) {
        if (bytes[offset + i] !== byteAt(this.#received++)) {
          assert.fail(`${this.what}: other bytes`);
        }
      }
      left -= Math.min(length, left);
    }
  }
}

/** Bytes that do not repeat with a power of two. */
function byteAt(at: number): number {
  return (at * 7 + Math.floor(at / 251)) & 0xff;
}

function runCase(seed: number): void {
  const random = new Random(seed);
  const [a, b] = socketPair();
  const server = new Side(a, "server");
  const client = new Side(b, "client");
  let [one, two] = [-Errno.EAGAIN, -Errno.EAGAIN];
  for (let i = 0; i < 20 && (one < 0 || two < 0); i++) {
    if (two < 0) two = client.stream.handshake();
    if (one < 0) one = server.stream.handshake();
  }
  assert.deepEqual([one, two], [0, 0], `seed ${seed}: ${server.stream.why}`);
  const flows = [
    new Flow(server, client, `seed ${seed}, to the client`),
    new Flow(client, server, `seed ${seed}, to the server`),
  ];
  let wasUnsent = false;
  for (let i = 0; i < 4000 && !(i > 60 && flows.every(({ isOver }) => isOver)); i++) {
    const flow = flows[random.below(2)];
    if (random.chance(0.5)) flow.send(random, i < 60);
    else flow.receive(random);
    wasUnsent ||= server.stream.hasUnsent || client.stream.hasUnsent;
  }
  assert.ok(flows.every(({ isOver, bytes }) => isOver && bytes > 0), `seed ${seed}: it stopped`);
  assert.ok(wasUnsent, `seed ${seed}: the sockets were never full`);
  for (const flow of flows) flow.release();
  server.close();
  client.close();
}

const CASES = 30;

Deno.test({
  name: `TLS: all bytes arrive, whatever the iovecs are${hasTls ? "" : " (skipped: needs libssl)"}`,
  ignore: !hasTls,
  fn() {
    const first = Number(Deno.env.get("BLKTAP_TEST_SEED") ?? Math.floor(Math.random() * 1e6));
    for (let seed = first; seed < first + CASES; seed++) runCase(seed);
  },
});

Deno.test({
  name: "no version of OpenSSL gives the kernel a key that a peer may change",
  ignore: !hasTls,
  // libssl stays open.
  sanitizeResources: false,
  fn(): void {
    const versions = [0x3000_0130, 0x3010_0080, 0x3020_0000, 0x3050_0010];
    assert.deepEqual(versions.map(kernelCanFollow), [true, true, false, false]);
    const keys = { find: () => null };
    const context = new TlsContext("server", keys);
    const version = Number(context.library.OpenSSL_version_num());
    assert.ok(version >= 0x1010_0000 && version < 0x1_0000_0000, version.toString(16));
    assert.equal(context.mayUseKernel, version < 0x3020_0000);
    context.close();
  },
});
