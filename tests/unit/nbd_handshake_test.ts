import assert from "node:assert/strict";
import fc from "fast-check";
import { Handshake } from "../../src/frontend/nbd/handshake.ts";
import {
  infoContent,
  joined,
  lengthAndText,
  metaContent,
  Opt,
  packed,
  Rep,
} from "../support/nbd_client.ts";

const SIZE_BYTES = 0x1_2345_6000;
const FLAGS = 0x16d;
const SEND_DF = 0x80;
const GREETING = joined(
  packed([8, 0x4e42444d41474943n], [8, 0x49484156454f5054n], [2, 3]),
);

/** A handshake, the bytes it has sent, and a buffer like that of a connection. */
class Peer {
  readonly sent: number[] = [];
  readonly handshake: Handshake;
  #waiting: Uint8Array = new Uint8Array(0);

  constructor() {
    this.handshake = new Handshake(
      () => ({ sizeBytes: SIZE_BYTES, flags: FLAGS | SEND_DF, hasLog: false }),
      (bytes) => this.sent.push(...bytes),
    );
    this.handshake.start();
  }

  /** Passes received bytes to the handshake; returns how many are left. */
  receive(bytes: Uint8Array): number {
    const all = joined(this.#waiting, bytes);
    const taken = this.handshake.consume(new DataView(all.buffer, 0, all.length));
    assert.ok(taken >= 0 && taken <= all.length);
    this.#waiting = all.subarray(taken);
    return this.#waiting.length;
  }

  /** The bytes that were sent since the last call. */
  take(): Uint8Array {
    return Uint8Array.from(this.sent.splice(0));
  }
}

function greeted(clientFlags = 3): Peer {
  const peer = new Peer();
  peer.receive(packed([4, clientFlags]));
  peer.take();
  return peer;
}

function option(code: number, content: Uint8Array = new Uint8Array(0)): Uint8Array {
  return joined(packed([8, 0x49484156454f5054n], [4, code], [4, content.length]), content);
}

function reply(code: number, type: number, content: Uint8Array = new Uint8Array(0)): Uint8Array {
  return joined(
    packed([8, 0x0003e889045565a9n], [4, code], [4, type], [4, content.length]),
    content,
  );
}

const EXPORT_INFO = packed([2, 0], [8, SIZE_BYTES], [2, FLAGS]);
const SIZE_INFO = packed([2, 3], [4, 512], [4, 4096], [4, 32 * 1024 * 1024]);

Deno.test("handshake: greets at once", () => {
  const peer = new Peer();
  assert.deepEqual(peer.take(), GREETING);
  assert.equal(peer.handshake.stage, "flags");
  peer.receive(packed([4, 1]));
  assert.equal(peer.handshake.stage, "options");
});

Deno.test("handshake: a client with flags that there are not is turned away", () => {
  const peer = new Peer();
  peer.receive(packed([4, 4]));
  assert.equal(peer.handshake.stage, "closed");
});

Deno.test("handshake: EXPORT_NAME is answered bare, or padded for who did not say no", () => {
  for (const [clientFlags, padding] of [[3, 0], [1, 124], [0, 124]] as const) {
    const peer = greeted(clientFlags);
    peer.receive(option(Opt.ExportName, new TextEncoder().encode("x")));
    const expected = joined(packed([8, SIZE_BYTES], [2, FLAGS]), new Uint8Array(padding));
    assert.deepEqual(peer.take(), expected);
    assert.equal(peer.handshake.stage, "transmission");
  }
});

Deno.test("handshake: INFO and GO answer to the byte; only GO goes on to requests", () => {
  for (const code of [Opt.Info, Opt.Go]) {
    const peer = greeted();
    peer.receive(option(code, infoContent("n", [1, 3])));
    assert.deepEqual(
      peer.take(),
      joined(
        reply(code, Rep.Info, EXPORT_INFO),
        reply(code, Rep.Info, joined(packed([2, 1]), new TextEncoder().encode("n"))),
        reply(code, Rep.Info, SIZE_INFO),
        reply(code, Rep.Ack),
      ),
    );
    assert.equal(peer.handshake.stage, code === Opt.Go ? "transmission" : "options");
  }
});

Deno.test("handshake: SEND_DF comes with structured replies only, whichever option tells", () => {
  const flagsOf = (structured: boolean, code: number): number => {
    const peer = greeted();
    if (structured) peer.receive(option(Opt.StructuredReply));
    peer.take();
    const content = code === Opt.ExportName ? new Uint8Array(0) : infoContent("");
    peer.receive(option(code, content));
    const answer = peer.take();
    return new DataView(answer.buffer).getUint16(code === Opt.ExportName ? 8 : 30);
  };
  for (const code of [Opt.ExportName, Opt.Info, Opt.Go]) {
    assert.equal(flagsOf(false, code), FLAGS, `option ${code}`);
    assert.equal(flagsOf(true, code), FLAGS | SEND_DF, `option ${code}`);
  }
});

Deno.test("handshake: a name comes back byte by byte, whether it is UTF-8 or not", () => {
  const names = [
    new Uint8Array(2000).fill(0xff),
    new Uint8Array(4096).fill(0xfe),
    Uint8Array.of(0xc3, 0x28, 0, 0x41),
    Uint8Array.of(0xef, 0xbb, 0xbf, 0x61),
    new TextEncoder().encode("Größe"),
    new Uint8Array(0),
  ];
  for (const name of names) {
    for (const code of [Opt.Info, Opt.Go]) {
      const peer = greeted();
      peer.receive(option(code, joined(packed([4, name.length]), name, packed([2, 1], [2, 1]))));
      assert.deepEqual(
        peer.take(),
        joined(
          reply(code, Rep.Info, EXPORT_INFO),
          reply(code, Rep.Info, joined(packed([2, 1]), name)),
          reply(code, Rep.Info, SIZE_INFO),
          reply(code, Rep.Ack),
        ),
      );
    }
  }
});

Deno.test("handshake: a query that is not UTF-8 matches nothing, and the next is read right", () => {
  const peer = greeted();
  peer.receive(option(Opt.StructuredReply));
  peer.take();
  const odd = new Uint8Array(15).fill(0xff);
  const base = lengthAndText("base:allocation");
  peer.receive(
    option(Opt.SetMetaContext, joined(packed([4, 0], [4, 2], [4, odd.length]), odd, base)),
  );
  const chosen = joined(packed([4, 1]), new TextEncoder().encode("base:allocation"));
  assert.deepEqual(
    peer.take(),
    joined(
      reply(Opt.SetMetaContext, Rep.MetaContext, chosen),
      reply(Opt.SetMetaContext, Rep.Ack),
    ),
  );
});

Deno.test("handshake: whoever sends options without end is hung up on", () => {
  const peer = greeted();
  for (let i = 0; i < 256; i++) peer.receive(option(Opt.List));
  assert.equal(peer.handshake.stage, "options");
  peer.receive(option(Opt.List));
  assert.equal(peer.handshake.stage, "closed");
});

Deno.test("handshake: what follows GO is left for the requests", () => {
  const peer = greeted();
  const requests = Uint8Array.of(0x25, 0x60, 0x95, 0x13, 0, 0);
  assert.equal(peer.receive(joined(option(Opt.Go, infoContent("")), requests)), requests.length);
  assert.equal(peer.receive(new Uint8Array(1)), requests.length + 1);
});

Deno.test("handshake: LIST, ABORT, STRUCTURED_REPLY and what it does not know", () => {
  const peer = greeted();
  peer.receive(option(Opt.List));
  assert.deepEqual(
    peer.take(),
    joined(reply(Opt.List, Rep.Server, packed([4, 0])), reply(Opt.List, Rep.Ack)),
  );
  assert.equal(peer.handshake.structuredReplies, false);
  peer.receive(option(Opt.StructuredReply));
  assert.deepEqual(peer.take(), reply(Opt.StructuredReply, Rep.Ack));
  assert.equal(peer.handshake.structuredReplies, true);
  for (const code of [Opt.StartTls, 4, 11, 0, 0xffffffff]) {
    peer.receive(option(code, new Uint8Array(3)));
    assert.deepEqual(peer.take(), reply(code, Rep.ErrUnsup));
  }
  peer.receive(option(Opt.Abort));
  assert.deepEqual(peer.take(), reply(Opt.Abort, Rep.Ack));
  assert.equal(peer.handshake.stage, "closed");
});

Deno.test("handshake: meta contexts need structured replies; the last choice counts", () => {
  const peer = greeted();
  const set = (...queries: string[]): Uint8Array => {
    peer.receive(option(Opt.SetMetaContext, metaContent("", queries)));
    return peer.take();
  };
  assert.deepEqual(set("base:allocation"), reply(Opt.SetMetaContext, Rep.ErrInvalid));
  peer.receive(option(Opt.StructuredReply));
  peer.take();
  const chosen = joined(packed([4, 1]), new TextEncoder().encode("base:allocation"));
  const acknowledged = reply(Opt.SetMetaContext, Rep.Ack);
  assert.deepEqual(
    set("x:y", "base:allocation"),
    joined(reply(Opt.SetMetaContext, Rep.MetaContext, chosen), acknowledged),
  );
  assert.equal(peer.handshake.contexts.length, 1);
  // A wildcard is valid in LIST only.
  assert.deepEqual(set("base:"), acknowledged);
  assert.equal(peer.handshake.contexts.length, 0);
  peer.receive(option(Opt.ListMetaContext, metaContent("", ["base:"])));
  const listed = joined(packed([4, 0]), new TextEncoder().encode("base:allocation"));
  assert.deepEqual(
    peer.take(),
    joined(
      reply(Opt.ListMetaContext, Rep.MetaContext, listed),
      reply(Opt.ListMetaContext, Rep.Ack),
    ),
  );
  assert.equal(peer.handshake.contexts.length, 0);
});

Deno.test("handshake: wrong content is invalid, and the next option is read right", () => {
  const wrong: [number, Uint8Array][] = [
    [Opt.List, Uint8Array.of(0)],
    [Opt.StructuredReply, Uint8Array.of(0)],
    [Opt.Go, new Uint8Array(0)],
    [Opt.Go, packed([4, 1], [2, 0])],
    [Opt.Go, packed([4, 0xffffffff], [2, 0])],
    [Opt.Go, packed([4, 0], [2, 2], [2, 1])],
    [Opt.Go, packed([4, 0], [2, 0], [1, 0])],
    [Opt.Go, joined(lengthAndText("n".repeat(4097)), packed([2, 0]))],
    [Opt.SetMetaContext, packed([4, 0], [4, 0xffffffff])],
  ];
  const peer = greeted();
  peer.receive(option(Opt.StructuredReply));
  peer.take();
  for (const [code, content] of wrong) {
    const isStructured = code === Opt.StructuredReply;
    peer.receive(option(code, content));
    assert.deepEqual(
      peer.take(),
      reply(code, Rep.ErrInvalid),
      `${code}: ${content.subarray(0, 9)}`,
    );
    assert.equal(peer.handshake.stage, "options");
    if (isStructured) assert.equal(peer.handshake.structuredReplies, true);
  }
  peer.receive(option(Opt.Go, infoContent("n".repeat(4096))));
  assert.equal(peer.handshake.stage, "transmission");
});

Deno.test("handshake: of an option that is too long only the length matters", () => {
  const peer = greeted();
  peer.receive(packed([8, 0x49484156454f5054n], [4, Opt.Info], [4, 100_000]));
  assert.deepEqual(peer.take(), reply(Opt.Info, Rep.ErrTooBig));
  for (let left = 100_000; left > 0; left -= 10_000) {
    assert.equal(peer.receive(new Uint8Array(10_000).fill(0xee)), 0);
  }
  peer.receive(option(Opt.List));
  assert.equal(peer.take().length, 20 + 4 + 20);
  peer.receive(packed([8, 0x49484156454f5054n], [4, Opt.ExportName], [4, 100_000]));
  assert.equal(peer.handshake.stage, "closed");
});

Deno.test("handshake: a wrong magic number ends it", () => {
  const peer = greeted();
  const bytes = option(Opt.List);
  bytes[7] ^= 1;
  peer.receive(bytes);
  assert.equal(peer.handshake.stage, "closed");
  assert.equal(peer.take().length, 0);
});

Deno.test("handshake: bytes may come one by one, or in any pieces", () => {
  const conversation = joined(
    packed([4, 1]),
    option(Opt.StartTls),
    option(Opt.StructuredReply),
    option(Opt.Info, new Uint8Array(20_000)),
    option(Opt.SetMetaContext, metaContent("disk", ["base:allocation"])),
    option(Opt.Info, infoContent("disk", [1])),
    option(Opt.ExportName, new TextEncoder().encode("disk")),
  );
  const whole = new Peer();
  whole.receive(conversation);
  assert.equal(whole.handshake.stage, "transmission");
  const expected = whole.take();

  const single = new Peer();
  for (let i = 0; i < conversation.length; i++) single.receive(conversation.subarray(i, i + 1));
  assert.deepEqual(single.take(), expected);

  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1 }), (pieces) => {
      const peer = new Peer();
      let at = 0;
      for (let i = 0; at < conversation.length; i++) {
        const end = at + pieces[i % pieces.length];
        peer.receive(conversation.subarray(at, end));
        at = end;
      }
      assert.deepEqual(peer.take(), expected);
      assert.equal(peer.handshake.stage, "transmission");
      assert.equal(peer.handshake.contexts.length, 1);
    }),
    { numRuns: 50 },
  );
});

Deno.test("handshake: garbage neither throws nor keeps it busy", () => {
  const someOption = fc.tuple(
    fc.constantFrom(...Object.values(Opt)),
    fc.uint8Array({ maxLength: 64 }),
  ).map(([code, content]) => option(code, content));
  const piece = fc.oneof(fc.uint8Array({ maxLength: 64 }), someOption);
  fc.assert(
    fc.property(fc.array(piece), (pieces) => {
      const peer = new Peer();
      peer.receive(packed([4, 3]));
      for (const bytes of pieces) peer.receive(Uint8Array.from(bytes));
      const { stage } = peer.handshake;
      assert.ok(["options", "transmission", "closed"].includes(stage));
    }),
    { numRuns: 500 },
  );
});
