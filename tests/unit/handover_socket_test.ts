/**
 * The socket on which other processes hand descriptors over, on a loop whose clock the test advances:
 * what is taken, what is refused, and that nothing of a hostile peer stays open.
 *
 * @module
 */
import assert from "node:assert/strict";
import { closeFile, O_RDONLY, openFile } from "../../ffi/files.ts";
import { socketPair, unixConnect } from "../../ffi/sockets.ts";
import { type DescriptorTaker, HandoverSocket } from "../../src/frontend/handover_socket.ts";
import {
  AF_UNIX,
  handOver,
  pipePair,
  plainSocket,
  sendDescriptors,
  SOCK_DGRAM,
  SOCK_STREAM,
  tcpListener,
  tcpPair,
} from "../support/hand_over.ts";
import { PlayedLoop, SocketEnd } from "../support/played_loop.ts";
import { openDescriptors } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";

const MOST_PEERS = 8;
const LONGEST_TEXT_BYTES = 16 * 1024;

/** A socket, and what was handed over on it. */
class Rig {
  readonly loop = new PlayedLoop();
  readonly path: string;
  readonly taken: [text: string, fd: number][] = [];
  readonly log: string[] = [];
  socket: HandoverSocket;

  constructor(folder: string) {
    this.path = `${folder}/nbdclient1`;
    this.socket = this.#listen((text, fd) => this.taken.push([text, fd]));
  }

  #listen(taken: DescriptorTaker): HandoverSocket {
    return new HandoverSocket(this.loop, this.path, { taken, log: (line) => this.log.push(line) });
  }

  /** Closes the socket and listens again. */
  reopen(taken: DescriptorTaker): void {
    this.socket.close();
    assert.throws(() => Deno.lstatSync(this.path), Deno.errors.NotFound);
    this.socket = this.#listen(taken);
  }

  run(): void {
    for (let i = 0; i < 5; i++) this.loop.poll();
  }

  /** Hands descriptors over and returns the log lines of that. */
  hand(text: string | Uint8Array, ...fds: number[]): string {
    handOver(this.path, text, ...fds);
    this.run();
    return this.log.splice(0).join("\n");
  }

  close(): void {
    for (const [, fd] of this.taken) closeFile(fd);
    this.socket.close();
  }
}

function rigTest(name: string, body: (rig: Rig) => void): void {
  Deno.test(`handover: ${name}`, () =>
    withTempDir((folder) => {
      const before = openDescriptors(Deno.pid);
      const rig = new Rig(folder);
      body(rig);
      rig.close();
      assert.deepEqual(openDescriptors(Deno.pid), before, "descriptors that stay open");
    }));
}

rigTest("a connected stream arrives with its text, by UNIX and by TCP", (rig) => {
  for (const pair of [socketPair, tcpPair]) {
    const [ours, theirs] = pair();
    assert.equal(rig.hand("vbd/20/xvda", theirs), "");
    const [text, fd] = rig.taken[rig.taken.length - 1];
    assert.equal(text, "vbd/20/xvda");
    const [here, there] = [new SocketEnd(ours), new SocketEnd(fd)];
    here.send(Uint8Array.of(1, 2, 3));
    assert.deepEqual([...there.receive() ?? []], [1, 2, 3]);
    here.close();
  }
});

rigTest("a text ends at its first NUL, and may have bytes that are not UTF-8", (rig) => {
  const [ours, theirs] = socketPair();
  assert.equal(rig.hand(Uint8Array.of(97, 0xff, 0, 98), theirs), "");
  assert.equal(rig.taken[0][0], "a\udcff");
  closeFile(ours);
});

rigTest("the socket is for its owner only, and gone when it is closed", (rig) => {
  assert.equal((Deno.lstatSync(rig.path).mode ?? 0) & 0o777, 0o600);
  rig.reopen(() => {});
});

rigTest("only connected stream sockets are taken", (rig) => {
  const { fd: listener } = tcpListener();
  const [input, output] = pipePair();
  const wrong: [number, RegExp][] = [
    [openFile("/dev/zero", O_RDONLY), /it is no socket \(ENOTSOCK\)/],
    [input, /it is no socket/],
    [output, /it is no socket/],
    [plainSocket(AF_UNIX, SOCK_DGRAM), /it is no stream socket/],
    [plainSocket(AF_UNIX, SOCK_STREAM), /it is not connected \(ENOTCONN\)/],
    [listener, /it listens for connections/],
  ];
  for (const [fd, why] of wrong) assert.match(rig.hand("name", fd), why);
  assert.equal(rig.taken.length, 0);
});

rigTest("a message without a descriptor, and an end without a message", (rig) => {
  assert.match(rig.hand("name"), /a message came without one/);
  const peer = unixConnect(rig.path);
  rig.run();
  closeFile(peer);
  rig.run();
  assert.match(
    rig.log.join(),
    /Refused a descriptor on .*nbdclient1 \(a message came without one\)/,
  );
});

rigTest("many descriptors at once are closed", (rig) => {
  for (const count of [2, 3, 250]) {
    const [ours, theirs] = socketPair();
    const socket = unixConnect(rig.path);
    sendDescriptors(socket, "name", new Array<number>(count).fill(theirs));
    closeFile(theirs);
    rig.run();
    assert.match(rig.log.splice(0).join(), /more than one came/);
    // All copies are closed: the other end sees the end of the stream.
    const end = new SocketEnd(ours);
    assert.equal(end.receive(), null, `${count} descriptors`);
    end.close();
    closeFile(socket);
  }
  assert.equal(rig.taken.length, 0);
});

rigTest("a text of 16 KiB is taken, and a longer one is not", (rig) => {
  const [ours, theirs] = socketPair();
  assert.equal(rig.hand(new Uint8Array(LONGEST_TEXT_BYTES).fill(120), theirs), "");
  assert.equal(rig.taken[0][0].length, LONGEST_TEXT_BYTES);
  const [others, long] = socketPair();
  const refusal = rig.hand(new Uint8Array(LONGEST_TEXT_BYTES + 1).fill(120), long);
  assert.match(refusal, /longer than 16384 bytes/);
  const end = new SocketEnd(others);
  assert.equal(end.receive(), null, "it is closed");
  end.close();
  closeFile(ours);
});

rigTest("a peer that sends nothing is hung up on after ten seconds", (rig) => {
  const slow = new SocketEnd(unixConnect(rig.path));
  rig.run();
  assert.equal(slow.receive()?.length, 0);
  assert.ok(rig.loop.turn());
  assert.equal(rig.loop.nowMs(), 10_000);
  assert.equal(slow.receive(), null);
  assert.match(rig.log.join(), /none came in 10 s/);
  slow.close();
});

rigTest("silent peers keep others waiting until their time is over, and no more of them", (rig) => {
  const silent = Array.from({ length: MOST_PEERS }, () => unixConnect(rig.path));
  rig.run();
  const [ours, theirs] = socketPair();
  rig.hand("waits", theirs);
  assert.equal(rig.taken.length, 0);
  closeFile(silent[0]);
  rig.run();
  assert.deepEqual(rig.taken.map(([text]) => text), ["waits"]);
  for (const fd of [ours, ...silent.slice(1)]) closeFile(fd);
  rig.run();
  const [mine, another] = socketPair();
  rig.hand("next", another);
  assert.deepEqual(rig.taken.map(([text]) => text), ["waits", "next"]);
  closeFile(mine);
});

rigTest("a descriptor that its taker refuses is logged, and the next one is taken", (rig) => {
  let refusing = true;
  rig.reopen((text, fd) => {
    if (!refusing) return void rig.taken.push([text, fd]);
    closeFile(fd);
    throw new Error("ten are kept");
  });
  const [ours, theirs] = socketPair();
  assert.match(rig.hand("one", theirs), /ten are kept/);
  refusing = false;
  const [mine, another] = socketPair();
  assert.equal(rig.hand("two", another), "");
  assert.deepEqual(rig.taken.map(([text]) => text), ["two"]);
  for (const fd of [ours, mine]) closeFile(fd);
});
