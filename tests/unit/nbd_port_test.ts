/**
 * Ports that disks share: clients before and after their handshake, with and without TLS, and those
 * that mean harm.
 *
 * @module
 */
import assert from "node:assert/strict";
import { addressPort, addressText, siteText, tcpAddress } from "../../ffi/addresses.ts";
import { EPOLLOUT } from "../../ffi/epoll.ts";
import { closeFile } from "../../ffi/files.ts";
import { waitForDescriptor } from "../../ffi/poll.ts";
import { enlargeSendBuffer, socketPair } from "../../ffi/sockets.ts";
import type { TlsContext } from "../../ffi/tls_context.ts";
import { parseListen } from "../../src/control/client/serve_choices.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { ClientsHandover } from "../../src/frontend/nbd/clients_handover.ts";
import { greet } from "../../src/frontend/nbd/port_client.ts";
import type { ServeRequest } from "../../src/frontend/nbd/ports.ts";
import { findPreSharedKey } from "../../src/tls/psk_file.ts";
import {
  Cmd,
  infoContent,
  joined,
  metaContent,
  Opt,
  packed,
  Rep,
  requestHeader,
} from "../support/nbd_client.ts";
import { SocketEnd } from "../support/played_loop.ts";
import {
  folder,
  hasTls,
  KEYED,
  MIB,
  option,
  PLAIN,
  replyTypes,
  Rig,
  TlsEnd,
} from "../support/port_rig.ts";

const ERR_TLS_REQD = 0x80000005;

function portTest(name: string, request: ServeRequest, body: (rig: Rig) => void): void {
  const isKeyed = request.tls.mode !== "off";
  Deno.test({
    name: `port: ${name}${isKeyed && !hasTls ? " (skipped: needs libssl)" : ""}`,
    ignore: isKeyed && !hasTls,
    fn: () => {
      const rig = new Rig(request);
      try {
        body(rig);
      } finally {
        rig.close();
      }
    },
  });
}

portTest("a client enters the export that it names", PLAIN, (rig) => {
  for (const name of ["disk", ""]) {
    const end = rig.greeted();
    const reply = rig.exchange(end, option(Opt.Go, infoContent(name)));
    assert.equal(replyTypes(reply ?? new Uint8Array(0)).at(-1), Rep.Ack);
  }
  assert.equal(rig.connections.size, 2);
  const end = rig.greeted();
  const reply = rig.exchange(end, option(Opt.Go, infoContent("disc")));
  assert.deepEqual(replyTypes(reply ?? new Uint8Array(0)), [Rep.ErrUnknown]);
  // Requests may follow the last option at once.
  const request = requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 9 });
  const answer = rig.exchange(end, option(Opt.Go, infoContent("disk")), request) ?? [];
  assert.equal(answer.length, 20 + 12 + 20 + 14 + 20 + 16 + 512);
  assert.equal(rig.connections.size, 3);
});

portTest("clients that say nothing are dropped", PLAIN, (rig) => {
  const silent = Array.from({ length: 40 }, () => rig.connect());
  // There are 32 of one address. Those that come at the same time are turned away.
  const isDropped = (end: SocketEnd): boolean => (end.receive(), end.receive() === null);
  assert.deepEqual(silent.map(isDropped), silent.map((_, i) => i >= 32));
  assert.match(rig.log.join(), /too many are in the handshake/);
  // After a second, the oldest one makes room.
  rig.loop.addTimer(1000, () => {});
  while (rig.loop.nowMs() < 1000) rig.loop.turn();
  const late = rig.connect();
  assert.equal(late.receive()?.length, 18);
  assert.ok(isDropped(silent[0]) && !isDropped(silent[1]));
  assert.match(rig.log.join(), /others wanted to connect/);
  const prompt = rig.greeted();
  rig.exchange(prompt, option(Opt.Go, infoContent("disk")));
  for (let i = 0; i < 80 && rig.loop.nowMs() < 31_000; i++) rig.loop.turn();
  rig.run();
  assert.ok([...silent, late].every((end) => end.receive() === null), "a silent client is kept");
  assert.match(rig.log.join(), /did not finish the handshake in 30 s/);
  assert.equal(rig.connections.size, 1);
});

portTest("a client that does not read the answers is dropped", PLAIN, (rig) => {
  const end = rig.greeted();
  // Each is answered by 40 bytes; the answers are more than a client may leave unread.
  const options = joined(...Array.from({ length: 255 }, () => option(Opt.List)));
  for (let i = 0; i < 255 && !rig.log.join().includes("hung up"); i++) {
    try {
      end.send(options);
    } catch {
      break;
    }
    rig.run();
  }
  assert.equal(rig.connections.size, 0);
  assert.ok(rig.ports.list(rig.connections)[0].clients === 0);
});

portTest("clients are limited in all and by address", {
  ...PLAIN,
  maxClients: 3,
  maxClientsPerAddress: 2,
}, (rig) => {
  const go = option(Opt.Go, infoContent("disk"));
  const first = rig.greeted();
  rig.exchange(first, go);
  rig.exchange(rig.greeted(), go);
  const third = rig.greeted();
  assert.deepEqual(replyTypes(rig.exchange(third, go) ?? new Uint8Array(0)), [Rep.ErrPolicy]);
  const [{ clients, turned_away }] = rig.ports.list(rig.connections);
  assert.deepEqual([clients, turned_away], [2, 1]);
  first.send(requestHeader({ command: Cmd.Disc }));
  rig.run();
  assert.equal(replyTypes(rig.exchange(third, go) ?? new Uint8Array(0)).at(-1), Rep.Ack);
});

portTest("contexts that were chosen for another export do not apply", PLAIN, (rig) => {
  rig.ports.serve(rig.connections, { ...PLAIN, port: rig.port, name: "other" });
  const end = rig.greeted();
  const choose = option(Opt.SetMetaContext, metaContent("other", ["base:allocation"]));
  rig.exchange(end, option(Opt.StructuredReply), choose);
  rig.exchange(end, option(Opt.Go, infoContent("disk")));
  const status = { command: Cmd.BlockStatus, offset: 0, length: 512, cookie: 3 };
  const answer = rig.exchange(end, requestHeader(status));
  // A chunk of an error: EINVAL.
  const view = new DataView(answer?.buffer ?? new ArrayBuffer(0));
  assert.deepEqual([view.getUint16(6), view.getUint32(20)], [0x8001, 22]);
});

portTest("nothing but STARTTLS and ABORT goes without TLS", KEYED, (rig) => {
  const end = rig.greeted();
  const codes = [Opt.List, Opt.StructuredReply, 77];
  for (const code of codes) {
    const reply = rig.exchange(end, option(code));
    assert.deepEqual(replyTypes(reply ?? new Uint8Array(0)), [ERR_TLS_REQD]);
  }
  const long = rig.exchange(end, option(Opt.Info, new Uint8Array(10_000)));
  assert.deepEqual(replyTypes(long ?? new Uint8Array(0)), [ERR_TLS_REQD]);
  for (const code of [Opt.Go, Opt.Info]) {
    const reply = rig.exchange(end, option(code, infoContent("disk")));
    assert.deepEqual(replyTypes(reply ?? new Uint8Array(0)), [ERR_TLS_REQD]);
  }
  assert.deepEqual(replyTypes(rig.exchange(end, option(Opt.Abort)) ?? new Uint8Array()), [Rep.Ack]);
  assert.equal(end.receive(), null);
  const old = rig.greeted();
  assert.equal(rig.exchange(old, option(Opt.ExportName, new TextEncoder().encode("disk"))), null);
  assert.equal(rig.connections.size, 0);
});

portTest("data ahead of TLS ends the connection", KEYED, (rig) => {
  const end = rig.greeted();
  const injected = joined(option(Opt.StartTls), option(Opt.StructuredReply));
  end.send(injected);
  rig.run();
  end.receive();
  assert.equal(end.receive(), null);
  assert.match(rig.log.join(), /sent data ahead of TLS/);
});

portTest("what was said before TLS does not count", {
  ...KEYED,
  tls: { ...KEYED.tls, mode: "on" },
}, (rig) => {
  const end = rig.greeted();
  const structured = rig.exchange(end, option(Opt.StructuredReply)) ?? new Uint8Array(0);
  assert.deepEqual(replyTypes(structured), [Rep.Ack]);
  rig.exchange(end, option(Opt.StartTls));
  const tls = new TlsEnd(rig, end);
  assert.equal(tls.handshake(), 0);
  tls.send(option(Opt.Go, infoContent("disk")));
  tls.receive();
  tls.send(requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 1 }));
  const answer = tls.receive() ?? new Uint8Array(4);
  assert.equal(new DataView(answer.buffer).getUint32(0), 0x67446698, "a simple reply");
  // A second STARTTLS is refused.
  const other = rig.secured();
  assert.equal(other.handshake(), 0);
  other.send(option(Opt.StartTls));
  assert.deepEqual(replyTypes(other.receive() ?? new Uint8Array(0)), [Rep.ErrInvalid]);
  tls.close();
});

portTest("a client with another key, or none of its name, is refused", KEYED, (rig) => {
  for (const username of ["carol", "alice"]) {
    const tls = rig.secured(username);
    if (username === "alice") {
      assert.equal(tls.handshake(), 0);
      continue;
    }
    assert.ok(tls.handshake() < 0, "carol has no key");
    assert.match(rig.log.join(), /hung up on an NBD client from 127.0.0.1/);
  }
});

portTest("a client that stops within the handshake of TLS is dropped", KEYED, (rig) => {
  const end = rig.greeted();
  rig.exchange(end, option(Opt.StartTls));
  // The header of a record whose body does not come.
  rig.exchange(end, packed([1, 22], [2, 0x0301], [2, 512]), new Uint8Array(100));
  for (let i = 0; i < 40 && rig.loop.nowMs() < 30_000; i++) rig.loop.turn();
  rig.run();
  assert.equal(end.receive(), null);
  assert.match(rig.log.join(), /did not finish the handshake/);
});

portTest("records that are none end one connection", KEYED, (rig) => {
  const good = rig.entered();
  const noise = [
    new Uint8Array(300).fill(0x41),
    packed([1, 23], [2, 0x0303], [2, 0xffff]),
    joined(packed([1, 23], [2, 0x0303], [2, 64]), new Uint8Array(64).fill(7)),
    joined(packed([1, 21], [2, 0x0303], [2, 2]), packed([1, 2], [1, 40])),
    joined(packed([1, 22], [2, 0x0303], [2, 40]), new Uint8Array(40).fill(1)),
    joined(...Array.from({ length: 200 }, () => packed([1, 20], [2, 0x0303], [2, 1], [1, 1]))),
  ];
  for (const bytes of noise) {
    const bad = rig.entered();
    assert.equal(rig.connections.size, 2);
    bad.end.send(bytes);
    rig.run();
    assert.equal(rig.connections.size, 1, `${bytes.slice(0, 5)}`);
    good.send(requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 4 }));
    assert.equal(good.receive()?.length, 16 + 512);
  }
  // In the handshake as well.
  for (const bytes of noise) {
    const end = rig.greeted();
    rig.exchange(end, option(Opt.StartTls));
    end.send(bytes);
    rig.run();
  }
  assert.equal(rig.connections.size, 1);
});

portTest("many requests in one record, and a request in many", KEYED, (rig) => {
  const tls = rig.entered();
  // More than one turn takes; the socket is empty after the first receive.
  const count = 580;
  const reads = Array.from(
    { length: count },
    (_, i) => requestHeader({ command: Cmd.Read, offset: 512 * i, length: 512, cookie: i }),
  );
  const all = joined(...reads);
  assert.ok(all.length < 16384);
  tls.send(all);
  let got = 0;
  for (let i = 0; i < 200 && got < count * 528; i++) {
    rig.run();
    got += tls.receive()?.length ?? 0;
  }
  assert.equal(got, count * 528);
  const write = joined(
    requestHeader({ command: Cmd.Write, offset: 0, length: 512, cookie: 1 }),
    new Uint8Array(512).fill(9),
  );
  for (const byte of write) tls.send(Uint8Array.of(byte));
  assert.equal(tls.receive()?.length, 16);
});

portTest("long writes and reads, by a client that reads late", KEYED, (rig) => {
  const tls = rig.entered();
  const bytes = crypto.getRandomValues(new Uint8Array(65536));
  const parts = Array.from({ length: 16 }, () => bytes);
  tls.send(requestHeader({ command: Cmd.Write, offset: 0, length: MIB, cookie: 1 }), ...parts);
  rig.run();
  assert.equal(tls.receive()?.length, 16);
  // The answers of 40 MiB do not fit in the socket; the client receives them afterwards.
  const reads = 40;
  for (let i = 0; i < reads; i++) {
    tls.send(requestHeader({ command: Cmd.Read, offset: 0, length: MIB, cookie: i }));
  }
  const wanted = reads * (MIB + 16);
  let total = 0;
  for (let i = 0; i < 5000 && total < wanted; i++) {
    rig.run();
    const part = tls.receive(MIB);
    assert.ok(part !== null, rig.log.join());
    const start = total;
    total += part.length;
    if (start === 0) assert.deepEqual(part.slice(16, 16 + 4096), bytes.slice(0, 4096));
  }
  assert.equal(total, wanted);
});

/** Notes the descriptors that the loop watches from now on. */
function watchedBy({ loop }: Rig): number[] {
  const watch = loop.watch.bind(loop);
  const fds: number[] = [];
  loop.watch = (fd, events, handler, owner): void => {
    fds.push(fd);
    watch(fd, events, handler, owner);
  };
  return fds;
}

portTest("what the socket has no room for is sent when it has, be it the last", KEYED, (rig) => {
  const fds = watchedBy(rig);
  const tls = rig.entered();
  const fd = fds[fds.length - 1];
  enlargeSendBuffer(fd, 64 * 1024);
  const bytes = 4096;
  let cookie = 0;
  const ask = (): void =>
    tls.send(requestHeader({ command: Cmd.Read, offset: 0, length: bytes, cookie: cookie++ }));
  // One more request each time, so that the last answer once is all that does not fit.
  for (let more = 0; more < 32; more++) {
    const first = cookie;
    while (waitForDescriptor(fd, EPOLLOUT, 0)) ask();
    for (let i = 0; i < more; i++) ask();
    const wanted = (cookie - first) * (bytes + 16);
    let got = 0;
    for (let i = 0; i < 400 && got < wanted; i++) {
      rig.run();
      got += tls.receive()?.length ?? 0;
    }
    assert.equal(got, wanted, `with ${more} more`);
  }
});

portTest(
  "a client that says good-bye to TLS is gone, whatever came ahead of that",
  KEYED,
  (rig) => {
    for (const request of [[], [requestHeader({ command: Cmd.Read, offset: 0, length: 512 })]]) {
      const tls = rig.entered();
      assert.equal(rig.connections.size, 1);
      for (const part of request) tls.stream.sendBytes(part);
      // The socket stays open.
      tls.stream.close();
      rig.run();
      assert.equal(rig.connections.size, 0, `${request.length} requests`);
    }
  },
);

portTest(
  "a client that enters with TLS while clients are held is not handed over",
  KEYED,
  (rig) => {
    const { connections } = rig;
    const tls = rig.secured();
    // Another process is about to take the clients over. This one ends its handshake meanwhile.
    assert.equal(connections.whyStaying, null);
    connections.hold(true);
    assert.equal(tls.handshake(), 0);
    tls.send(option(Opt.Go, infoContent("disk")));
    assert.equal(replyTypes(tls.receive() ?? new Uint8Array(0)).at(-1), Rep.Ack);
    assert.ok(connections.areQuiet);
    assert.match(connections.whyStaying ?? "", /TLS/);
    assert.throws(() => connections.handOver(), /would go on without it/);
    connections.hold(false);
    tls.send(requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 4 }));
    assert.equal(tls.receive()?.length, 16 + 512);
  },
);

portTest("clients that do not end their handshake do not hold up an upgrade", PLAIN, (rig) => {
  const handover = new ClientsHandover(rig.connections, rig.ports);
  const silent = rig.greeted();
  const entered = rig.greeted();
  rig.exchange(entered, option(Opt.Go, infoContent("disk")));
  handover.hold(true);
  assert.equal(handover.areQuiet, false);
  handover.dropGreetings();
  assert.equal(handover.areQuiet, true);
  assert.equal(silent.receive(), null);
  handover.hold(false);
  const request = requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 4 });
  assert.equal(rig.exchange(entered, request)?.length, 16 + 512);
});

portTest(
  "a client of another process counts on its own port, not on one of its number",
  PLAIN,
  (rig) => {
    const { connections, ports, port } = rig;
    ports.serve(connections, { ...PLAIN, addresses: ["127.0.0.2"], port });
    const clients = (): [string, number][] =>
      ports.list(connections).map(({ listen, clients }) => [listen, clients]);
    const place = { port, name: "disk", from: "127.0.0.9" };
    const at = `127.0.0.2:${port}`;
    const left = ports.countResumed(connections, { ...place, at });
    assert.deepEqual(clients(), [[`127.0.0.1:${port}`, 0], [at, 1]]);
    left();
    assert.deepEqual(clients(), [[`127.0.0.1:${port}`, 0], [at, 0]]);
    // A process of an earlier version tells the number only.
    ports.countResumed(connections, place)();
    // An export that is another disk's now, and one that there is no more.
    const others = new NbdConnections(rig.loop, rig.device.vbd);
    ports.countResumed(others, { ...place, at })();
    ports.countResumed(connections, { ...place, at: `127.0.0.3:${port}` })();
    assert.deepEqual(clients().map(([, count]) => count), [0, 0]);
    ports.unserve(connections, { at });
    others.close();
  },
);

portTest("a fault with the first bytes of a client ends it once", PLAIN, (rig) => {
  const peers = socketPair();
  const end = new SocketEnd(peers[0]);
  end.send(packed([4, 3]), option(Opt.StartTls));
  let gone = 0;
  const client = greet(peers[1], "here", {
    scheduler: rig.loop,
    get tls(): TlsContext {
      throw new RangeError("no memory");
    },
    serverFor: () => ({ names: () => [], find: () => null, enter: () => "no", tls: "require" }),
    maySecure: () => true,
    entered: () => {},
    gone: () => gone++,
  });
  assert.ok(typeof client !== "string" && client.failed);
  assert.ok(!rig.loop.isWatched(peers[1]));
  // Another gets the number of the descriptor. Nobody may close it.
  const others = socketPair();
  assert.ok(others.includes(peers[1]));
  for (let i = 0; i < 40 && rig.loop.nowMs() < 31_000; i++) rig.loop.turn();
  assert.equal(gone, 1);
  end.close();
  for (const fd of others) closeFile(fd);
});

portTest("a fault with the first request of a client ends it alone", PLAIN, (rig) => {
  const end = rig.greeted();
  const note = rig.loop.noteRequest;
  rig.loop.noteRequest = (): void => {
    rig.loop.noteRequest = note;
    throw new RangeError("a fault");
  };
  const read = requestHeader({ command: Cmd.Read, offset: 0, length: 512 });
  rig.exchange(end, option(Opt.Go, infoContent("disk")), read);
  assert.equal(end.receive(), null);
  // The descriptor is not closed behind the loop's back.
  assert.doesNotMatch(rig.log.join(), /cannot be served/);
  assert.equal(rig.connections.size, 0);
  assert.equal(rig.ports.list(rig.connections)[0].clients, 0);
  const other = rig.greeted();
  const answer = rig.exchange(other, option(Opt.Go, infoContent("disk")), read) ?? [];
  assert.equal(answer.length, 20 + 12 + 20 + 14 + 20 + 16 + 512);
});

Deno.test("port: addresses and ports as they are written", () => {
  const cases: [string, string | null, number][] = [
    ["host:5", "host", 5],
    ["host", "host", 10809],
    [":5", null, 5],
    ["*:5", null, 5],
    ["", null, 10809],
    ["[::1]", "::1", 10809],
    ["[::1]:0", "::1", 0],
    ["192.0.2.1:65535", "192.0.2.1", 65535],
  ];
  for (const [text, host, port] of cases) assert.deepEqual(parseListen(text), { host, port }, text);
  for (const text of ["host:65536", "::1", "host:x", "[::1", "a:1:2"]) {
    assert.equal(parseListen(text), null, text);
  }
});

Deno.test("port: keys in a file", () => {
  const path = `${folder}/many.psk`;
  const lines = Array.from(
    { length: 3000 },
    (_, i) => `user${i}:${i.toString(16).padStart(8, "0")}`,
  );
  const odd = ["bad:0", "bad:xyz", "none:", "crlf:0a0B\r", `long:${"00".repeat(3000)}`];
  Deno.writeTextFileSync(path, [...odd, ...lines, "last:ff"].join("\n"));
  const key = (name: string): string | null => {
    const secret = findPreSharedKey(path, name);
    const text = secret === null ? null : Array.from(secret.bytes).join();
    secret?.release();
    return text;
  };
  assert.equal(key("user0"), "0,0,0,0");
  assert.equal(key("user2999"), "0,0,11,183");
  assert.equal(key("crlf"), "10,11");
  assert.equal(key("last"), "255");
  for (const name of ["user3000", "bad", "none", "long", "", "user", "a:b"]) {
    assert.equal(key(name), null, name);
  }
  assert.throws(() => findPreSharedKey(`${folder}/missing`, "a"), { code: "ENOENT" });
});

Deno.test("port: addresses in numbers, and what clients are counted by", () => {
  const cases: [string, string, string][] = [
    ["192.0.2.7", "192.0.2.7", "192.0.2.7"],
    ["::", "::", "::/64"],
    ["::1", "::1", "::/64"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1", "2001:db8::/64"],
    ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"],
    ["fe80:0:0:0:1::", "fe80::1:0:0:0", "fe80::/64"],
    ["::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7"],
    ["1:0:2:0:3:0:4:0", "1:0:2:0:3:0:4:0", "1:0:2::/64"],
  ];
  for (const [text, shown, site] of cases) {
    const address = tcpAddress(text, 5);
    assert.deepEqual([addressText(address), siteText(address)], [shown, site], text);
    assert.equal(addressPort(address), 5);
  }
  assert.throws(() => tcpAddress("localhost", 5), { code: "EHOSTUNREACH" });
});
