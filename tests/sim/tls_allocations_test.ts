/**
 * Heap allocations of a connection with TLS for a transfer: none, except occasional allocations of the
 * runtime. The bytes that arrive are those that were sent.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { libssl } from "../../ffi/libssl.ts";
import { Arena } from "../../ffi/memory.ts";
import { IOVEC_BYTES, putIovec, putMsghdr, socketPair } from "../../ffi/sockets.ts";
import { TlsContext } from "../../ffi/tls_context.ts";
import { TlsStream } from "../../ffi/tls_stream.ts";
import { findPreSharedKey } from "../../src/tls/psk_file.ts";
import { watchAllocations } from "../support/allocations.ts";
import { PSK_TEXT } from "../support/pki.ts";

/** The runtime reports a library that is opened within a test as a leak. */
const hasTls = ((): boolean => {
  try {
    libssl();
    return true;
  } catch {
    return false;
  }
})();

/** Permitted average bytes for a transfer. An object has at least 16 bytes. */
const MOST_BYTES = 4;
/** On a busy machine code is compiled late, and uncompiled code allocates. */
const ATTEMPTS = 3;
const WARM_UP = 30_000;
const TRANSFERS = 40_000;
const HEADER_BYTES = 16;
const DATA_BYTES = 4096;
const IOVECS_AT = 64;
const SENT_AT = 8192;
const RECEIVED_AT = 16384 + 100;

/** Both ends of a connection on a pair of sockets, and memory with a message for each. */
class Pair {
  readonly server: TlsStream;
  readonly client: TlsStream;
  readonly memory = new Arena(64 * 1024);
  readonly msghdr = this.memory.pointerAt(0);
  readonly #contexts: TlsContext[];
  readonly #fds = socketPair();
  readonly #folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });

  constructor() {
    const path = `${this.#folder}/keys`;
    Deno.writeTextFileSync(path, PSK_TEXT);
    const keys = {
      identity: "alice",
      find: (name: string): ReturnType<typeof findPreSharedKey> => findPreSharedKey(path, name),
    };
    this.#contexts = [new TlsContext("server", keys), new TlsContext("client", keys)];
    this.server = new TlsStream(this.#fds[0], this.#contexts[0]);
    this.client = new TlsStream(this.#fds[1], this.#contexts[1]);
    let [a, b] = [-Errno.EAGAIN, -Errno.EAGAIN];
    for (let i = 0; i < 10 && (a < 0 || b < 0); i++) {
      if (b < 0) b = this.client.handshake();
      if (a < 0) a = this.server.handshake();
    }
    assert.deepEqual([a, b], [0, 0], this.server.why);
  }

  /** Two iovecs of a message: a header, and data `at` bytes after the start of the memory. */
  #message(at: number): void {
    const { view, sector } = this.memory;
    putIovec(view, IOVECS_AT, sector, at, HEADER_BYTES);
    putIovec(view, IOVECS_AT + IOVEC_BYTES, sector, at + HEADER_BYTES, DATA_BYTES);
    putMsghdr(view, 0, sector, IOVECS_AT, 2);
  }

  transfer(count: number): void {
    const { view } = this.memory;
    for (let i = 0; i < count; i++) {
      this.#message(SENT_AT);
      if (this.server.send(this.msghdr, view, IOVECS_AT, 2) !== HEADER_BYTES + DATA_BYTES) {
        throw new Error(`Not all was sent: ${this.server.why}`);
      }
      this.#message(RECEIVED_AT);
      if (this.client.receive(this.msghdr, view, IOVECS_AT, 2) !== HEADER_BYTES + DATA_BYTES) {
        throw new Error(`Not all was received: ${this.client.why}`);
      }
    }
  }

  close(): void {
    this.server.close();
    this.client.close();
    for (const context of this.#contexts) context.close();
    for (const fd of this.#fds) closeFile(fd);
    this.memory.release();
    Deno.removeSync(this.#folder, { recursive: true });
  }
}

Deno.test({
  name: `TLS: a transfer allocates nothing${hasTls ? "" : " (skipped: needs libssl)"}`,
  ignore: !hasTls,
  async fn() {
    const pair = new Pair();
    const { bytes } = pair.memory;
    crypto.getRandomValues(bytes.subarray(SENT_AT, SENT_AT + HEADER_BYTES + DATA_BYTES));
    pair.transfer(WARM_UP);
    const whole = (at: number): Uint8Array => bytes.slice(at, at + HEADER_BYTES + DATA_BYTES);
    assert.deepEqual(whole(RECEIVED_AT), whole(SENT_AT));
    let each = Infinity;
    let most: [string, number][] = [];
    for (let attempt = 0; attempt < ATTEMPTS && each > MOST_BYTES; attempt++) {
      const allocated = watchAllocations();
      pair.transfer(TRANSFERS);
      const parts = [...await allocated()];
      each = parts.reduce((sum, [, count]) => sum + count, 0) / TRANSFERS;
      most = parts.toSorted(([, a], [, b]) => b - a).slice(0, 4);
    }
    pair.close();
    assert.ok(each <= MOST_BYTES, `${each} bytes a transfer: ${JSON.stringify(most)}`);
  },
});
