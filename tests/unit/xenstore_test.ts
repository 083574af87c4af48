/** The client of xenstored, on a played one. */
import assert from "node:assert/strict";
import { Errno, errnoOf } from "../../ffi/errno.ts";
import { Xenstore } from "../../src/xenstore/store.ts";
import { RefusedMessage } from "../../src/xenstore/stream.ts";
import {
  decodeTexts,
  decodeXsMessage,
  encodeTexts,
  encodeXsMessage,
  errnoOfXsError,
  XsType,
} from "../../src/xenstore/wire.ts";
import { PlayedXenstored } from "../support/xen/played_xenstored.ts";

function errnoFrom(call: () => unknown): number {
  try {
    call();
  } catch (error) {
    return errnoOf(error);
  }
  return 0;
}

Deno.test("xenstore: messages have the layout of xs_wire.h", () => {
  const message = {
    type: XsType.WRITE,
    request: 7,
    transaction: 9,
    payload: encodeTexts("/a", "b"),
  };
  const bytes = encodeXsMessage(message);
  assert.deepEqual(
    [...bytes],
    [11, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 47, 97, 0, 98, 0],
  );
  assert.deepEqual(decodeXsMessage(bytes), { message, lengthBytes: 21 });
  for (let length = 0; length < bytes.length; length++) {
    assert.equal(decodeXsMessage(bytes.subarray(0, length)), null);
  }
  new DataView(bytes.buffer).setUint32(12, 4097, true);
  assert.equal(decodeXsMessage(bytes), null);
  new DataView(bytes.buffer).setUint32(12, 2 ** 20 + 1, true);
  assert.equal(errnoFrom(() => decodeXsMessage(bytes)), Errno.EPROTO);
  const payload = new Uint8Array(4097);
  assert.equal(errnoFrom(() => encodeXsMessage({ ...message, payload })), Errno.E2BIG);
});

Deno.test("xenstore: texts and names of errors", () => {
  assert.deepEqual(decodeTexts(encodeTexts("a", "", "c")), ["a", "", "c"]);
  assert.deepEqual(decodeTexts(new Uint8Array()), []);
  assert.deepEqual(decodeTexts(new Uint8Array([97])), ["a"]);
  const names = ["ENOENT", "EAGAIN", "EACCES", "E2BIG", "EINVAL", "ENOSPC", "EEXIST", "nonsense"];
  assert.deepEqual(names.map((name) => errnoOfXsError(encodeTexts(name))), [
    Errno.ENOENT,
    Errno.EAGAIN,
    Errno.EACCES,
    Errno.E2BIG,
    Errno.EINVAL,
    Errno.ENOSPC,
    Errno.EEXIST,
    Errno.EPROTO,
  ]);
});

Deno.test("xenstore: nodes are written, read, listed and removed", () => {
  const store = new Xenstore(new PlayedXenstored().connect());
  assert.equal(store.read("/a/b"), null);
  assert.equal(store.list("/a"), null);
  store.write("/a/b", "one");
  store.write("/a/c", "");
  store.make("/a/d");
  store.make("/a/b");
  assert.equal(store.read("/a/b"), "one");
  assert.equal(store.read("/a/c"), "");
  assert.deepEqual(store.list("/a"), ["b", "c", "d"]);
  assert.deepEqual(store.permissions("/a/b"), ["n0"]);
  // A relative path is below the own domain's folder.
  store.write("backend/x", "2");
  assert.equal(store.read("/local/domain/0/backend/x"), "2");
  store.remove("/a");
  assert.deepEqual([store.read("/a/b"), store.list("/a")], [null, null]);
  store.remove("/a");
  store.remove("/z/y/x");
  assert.equal(errnoFrom(() => store.write("/a//b", "")), Errno.EINVAL);
  assert.equal(errnoFrom(() => store.write("/a", "x".repeat(5000))), Errno.E2BIG);
  assert.equal(store.isLost, false);
});

Deno.test("xenstore: a list that is too long for a message comes in parts", () => {
  const played = new PlayedXenstored();
  const names = Array.from({ length: 900 }, (_, i) => `node-${i}`);
  played.write(Object.fromEntries(names.map((name) => [`/long/${name}`, ""])));
  assert.deepEqual(new Xenstore(played.connect()).list("/long"), names);
  // The list changes while it is read.
  let parts = 0;
  played.beforeRequest = ({ type }) => {
    if (type === XsType.DIRECTORY_PART && ++parts === 3) played.write({ "/long/new": "" });
  };
  assert.deepEqual(new Xenstore(played.connect()).list("/long"), [...names, "new"]);
});

Deno.test("xenstore: watches tell once at the start, and of every change below", () => {
  const played = new PlayedXenstored();
  const store = new Xenstore(played.connect());
  store.watch("backend/x", "t");
  assert.equal(errnoFrom(() => store.watch("backend/x", "t")), Errno.EEXIST);
  played.write({ "/local/domain/0/backend/x/1": "a" });
  // An event that comes before an answer is kept.
  assert.equal(store.read("/nothing"), null);
  const events: string[] = [];
  for (let event = store.nextEvent(); event !== null; event = store.nextEvent()) {
    events.push(`${event.path} ${event.token}`);
  }
  assert.deepEqual(events, ["backend/x t", "backend/x/1 t"]);
  played.remove("/local/domain/0/backend/x");
  store.unwatch("backend/x", "t");
  store.unwatch("backend/x", "t");
  assert.equal(store.nextEvent(), null);
});

Deno.test("xenstore: events of the same meaning are kept once, however many there are", () => {
  const played = new PlayedXenstored();
  const stream = played.connect();
  let more = 0;
  const payload = encodeTexts("/a/state", "t");
  const event = { type: XsType.WATCH_EVENT, request: 0, transaction: 0, payload };
  const store = new Xenstore({
    ...stream,
    receive: (timeoutMs) => more-- > 0 ? event : stream.receive(timeoutMs),
  });
  store.watch("/a", "t");
  more = 100_000;
  assert.equal(store.read("/a"), null);
  played.write({ "/a/other": "" });
  const events = [];
  for (let event = store.nextEvent(); event !== null; event = store.nextEvent()) {
    events.push(event.path);
  }
  assert.deepEqual(events, ["/a/state", "/a", "/a/other"]);
});

Deno.test("xenstore: nodes that a guest makes below a watched one are one event", () => {
  const stream = new PlayedXenstored().connect();
  let more = 0;
  const store = new Xenstore({
    ...stream,
    receive(timeoutMs) {
      if (more === 0) return stream.receive(timeoutMs);
      const payload = encodeTexts(`/guest/state/${more--}`, "t");
      return { type: XsType.WATCH_EVENT, request: 0, transaction: 0, payload };
    },
  });
  store.watch("/guest/state", "t", { tellsBelow: false });
  more = 100_000;
  assert.deepEqual([store.read("/a"), store.isLost], [null, false]);
  assert.deepEqual(store.nextEvent(), { path: "/guest/state", token: "t" });
  assert.equal(store.nextEvent(), null);
});

Deno.test("xenstore: the kernel's device answers watches without the number of the request", () => {
  const played = new PlayedXenstored();
  played.isKernel = true;
  const stream = played.connect();
  const store = new Xenstore({
    ...stream,
    send(message): void {
      if (message.type === XsType.WATCH && message.payload.includes(0x20)) {
        throw new RefusedMessage(Errno.EINVAL, "Cannot send to xenstored");
      }
      stream.send(message);
    },
  });
  store.watch("/a", "t");
  // A watch that it refuses is no end of the connection.
  assert.equal(errnoFrom(() => store.watch("/a b", "t")), Errno.EINVAL);
  played.write({ "/a": "1" });
  assert.deepEqual([store.read("/a"), store.isLost], ["1", false]);
  assert.deepEqual(store.nextEvent(), { path: "/a", token: "t" });
  store.unwatch("/a", "t");
  assert.deepEqual([store.nextEvent(), store.isLost], [null, false]);
});

Deno.test("xenstore: a transaction is done again until nobody interferes", () => {
  const played = new PlayedXenstored();
  const store = new Xenstore(played.connect());
  played.write({ "/count": "0" });
  let others = 3;
  const add = (): boolean =>
    store.transaction((nodes) => {
      const count = Number(nodes.read("/count"));
      if (others-- > 0) played.write({ "/count": String(count + 10) });
      nodes.write("/count", String(count + 1));
      nodes.write("/other", `${count}`);
      assert.notEqual(played.get("/other"), `${count}`, "nobody sees what is not ended");
      return true;
    });
  assert.equal(add(), true);
  assert.deepEqual([played.get("/count"), played.get("/other"), played.conflicts], ["31", "30", 3]);
  assert.equal(
    store.transaction((nodes) => {
      nodes.remove("/count");
      nodes.make("/made");
      return nodes.list("/count") !== null;
    }),
    false,
  );
  assert.deepEqual([played.get("/count"), played.get("/made")], ["31", undefined]);
  const thrown = new RangeError("x");
  assert.throws(() =>
    store.transaction(() => {
      throw thrown;
    }), thrown);
  others = Infinity;
  assert.equal(errnoFrom(add), Errno.EAGAIN);
  assert.equal(store.isLost, false);
});

Deno.test("xenstore: a node that must not be read is like none; other errors are errors", () => {
  const played = new PlayedXenstored();
  const store = new Xenstore(played.connect());
  played.write({ "/secret": "x" });
  played.hidden.add("/secret");
  assert.equal(store.read("/secret"), null);
  played.beforeRequest = () => {
    throw played.error("EIO");
  };
  assert.equal(errnoFrom(() => store.read("/secret")), Errno.EIO);
  assert.equal(store.isLost, false);
});

Deno.test("xenstore: an answer that breaks the protocol ends the connection", () => {
  const wrong = [
    { type: XsType.READ, request: 99, transaction: 0, payload: new Uint8Array() },
    { type: XsType.MKDIR, request: 1, transaction: 0, payload: new Uint8Array() },
  ];
  for (const message of wrong) {
    const store = new Xenstore({
      fd: -1,
      send: () => {},
      receive: () => message,
      close: () => {},
    });
    assert.equal(errnoFrom(() => store.read("/a")), Errno.EPROTO);
    assert.equal(store.isLost, true);
  }
  const silent = new Xenstore({ fd: -1, send: () => {}, receive: () => null, close: () => {} });
  assert.equal(errnoFrom(() => silent.read("/a")), Errno.ETIMEDOUT);
  assert.equal(silent.isLost, true);
  const unasked = new Xenstore({
    fd: -1,
    send: () => {},
    receive: () => wrong[0],
    close: () => {},
  });
  assert.equal(errnoFrom(() => unasked.nextEvent()), Errno.EPROTO);
});
