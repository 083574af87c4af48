/**
 * A connection whose TLS the kernel has both ways, and that goes on without OpenSSL: data, and the records that
 * a client may send besides. Must run in the machine, where OpenSSL is kept at TLS 1.2.
 *
 *     deno run -A tls_records.ts FOLDER
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { tcpAddress } from "../../../ffi/addresses.ts";
import { KernelTlsStream } from "../../../ffi/kernel_tls.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { SecureStream } from "../../../ffi/secure_stream.ts";
import {
  acceptConnection,
  beginConnect,
  boundAddress,
  putIovec,
  putMsghdr,
  tcpListen,
} from "../../../ffi/sockets.ts";
import { TlsContext } from "../../../ffi/tls_context.ts";
import { sendRecord } from "../../../ffi/tls_records.ts";
import { TlsStream } from "../../../ffi/tls_stream.ts";

const ALERT = 21;
const HANDSHAKE = 22;
const IOVECS_AT = 64;
const DATA_AT = 512;
const [folder] = Deno.args;
const memory = new Arena(4096);
const msghdr = memory.pointerAt(0);
const own = { certificate: `${folder}/server-cert.pem`, key: `${folder}/server-key.pem` };
const server = new TlsContext("server", { authorities: null, own, verifyPeer: false });
const client = new TlsContext("client", { authorities: null, verifyPeer: false });

function prepare(bytes: number): void {
  putIovec(memory.view, IOVECS_AT, memory.sector, DATA_AT, bytes);
  putMsghdr(memory.view, 0, memory.sector, IOVECS_AT, 1);
}

function send(stream: SecureStream, text: string): void {
  const bytes = new TextEncoder().encode(text);
  memory.bytes.set(bytes, DATA_AT);
  prepare(bytes.length);
  assert.equal(stream.send(msghdr, memory.view, IOVECS_AT, 1), bytes.length);
  assert.equal(stream.flush(), 0);
}

/** Receives a text; a number is how the stream ended. */
async function receive(stream: SecureStream): Promise<string | number> {
  for (;;) {
    prepare(1024);
    const got = stream.receive(msghdr, memory.view, IOVECS_AT, 1);
    if (got > 0) return new TextDecoder().decode(memory.bytes.slice(DATA_AT, DATA_AT + got));
    if (got !== -Errno.EAGAIN) return got;
    await pause();
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 1));
}

/** A connection whose server goes on without OpenSSL. */
class Pair {
  constructor(
    readonly fds: readonly [number, number],
    readonly served: KernelTlsStream,
    readonly peer: TlsStream,
  ) {}

  static async make(): Promise<Pair> {
    const listener = tcpListen(tcpAddress("127.0.0.1", 0), "a port", { backlog: 1, isDual: false });
    const to = beginConnect(boundAddress(listener), "the port");
    let from = -1;
    while ((from = acceptConnection(listener)) < 0) await pause();
    closeFile(listener);
    const [one, other] = [new TlsStream(from, server), new TlsStream(to, client)];
    for (let left = 2; left > 0;) {
      left = [one, other].filter((stream) => stream.handshake() !== 0).length;
      await pause();
    }
    assert.equal(one.version, "TLSv1.2");
    assert.equal(one.isInKernel, true, "the kernel has the keys of both ways");
    return new Pair([from, to], new KernelTlsStream(from), other);
  }

  end(): void {
    for (const fd of this.fds) closeFile(fd);
  }
}

async function withPair(body: (pair: Pair) => Promise<void>): Promise<void> {
  const pair = await Pair.make();
  await body(pair);
  pair.end();
}

await withPair(async ({ served, peer, fds }) => {
  send(peer, "a request");
  assert.equal(await receive(served), "a request");
  send(served, "an answer");
  assert.equal(await receive(peer), "an answer");
  // A warning of TLS 1.2: no_renegotiation. What follows is data.
  assert.equal(sendRecord(fds[1], ALERT, Uint8Array.of(1, 100)), 2);
  send(peer, "more");
  assert.equal(await receive(served), "more");
  assert.equal(served.isInKernel, true);
  sendRecord(fds[1], ALERT, Uint8Array.of(1, 0));
  assert.equal(await receive(served), 0, "close_notify ends the stream");
  assert.equal(served.why, "");
  assert.equal(served.isInKernel, false);
  assert.equal(served.hasPending, true);
});

await withPair(async ({ served, peer }) => {
  served.close();
  assert.equal(await receive(peer), 0, "close_notify arrives ahead of the end of the socket");
});

const ENDS: [type: number, bytes: number[], why: RegExp][] = [
  [HANDSHAKE, [24, 0, 0, 1, 0], /changes its keys, which the kernel cannot follow/],
  [HANDSHAKE, [1, 0, 0, 0], /wants another handshake/],
  [HANDSHAKE, [4, 0, 0, 0], /message 4 of a handshake that has ended/],
  [ALERT, [2, 40], /sends alert 40/],
  [20, [1], /a record of type 20/],
];
for (const [type, bytes, why] of ENDS) {
  await withPair(async ({ served, fds }) => {
    assert.ok(sendRecord(fds[1], type, Uint8Array.from(bytes)) > 0);
    assert.equal(await receive(served), -Errno.EPROTO);
    assert.match(served.why, why);
    assert.equal(await receive(served), -Errno.EPROTO, "it stays ended");
  });
}

await withPair(async ({ served, fds }) => {
  for (let i = 0; i < 40; i++) sendRecord(fds[1], ALERT, Uint8Array.of(1, 100));
  assert.equal(await receive(served), -Errno.EPROTO);
  assert.match(served.why, /too many records/);
});
console.log("as it should be");
