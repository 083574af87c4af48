/** How long the NBD driver waits for a server, on a simulated clock. */
import assert from "node:assert/strict";
import { resolveTcp } from "../../ffi/addresses.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import {
  acceptConnection,
  boundAddress,
  sendAt,
  tcpListen,
  unixAddress,
  unixListen,
} from "../../ffi/sockets.ts";
import { closeConnected, type Connected, Dial } from "../../src/driver/nbd/dial.ts";
import { HostileNbdServer } from "../search/fuzz/wire/hostile_nbd_server.ts";
import { SocketScheduler } from "../search/fuzz/wire/socket_scheduler.ts";
import { withTempDir } from "../support/tools.ts";

/** A client that dials on a clock of its own. */
class Client {
  readonly scheduler = new SocketScheduler();
  result: Connected | Error | null = null;

  constructor(route: Uint8Array<ArrayBuffer>) {
    const destination = { exportName: "", title: "nbd:there", route };
    new Dial(this.scheduler, destination, (result) => this.result = result);
  }

  /** Does something every so many milliseconds, from now on. */
  every(milliseconds: number, work: () => void): void {
    this.scheduler.addTimer(milliseconds, () => {
      work();
      this.every(milliseconds, work);
    });
  }

  /** Looks at the socket after each move of the clock, until the end of the attempt. */
  end(): Connected | Error {
    for (let turns = 0; this.result === null; turns++) {
      assert.ok(turns < 10_000, "The attempt ends");
      while (this.scheduler.poll());
      if (this.result === null) this.scheduler.turn();
    }
    return this.result;
  }
}

function requireError(result: Connected | Error, expected: RegExp): void {
  assert.ok(result instanceof Error);
  assert.match(result.message, expected);
}

function dialTest(name: string, body: (path: string) => void): void {
  Deno.test(`NBD driver: ${name}`, () => withTempDir((folder) => body(`${folder}/n.sock`)));
}

Deno.test("NBD driver: an address that does not answer is left after five seconds", () => {
  const [address] = resolveTcp("127.0.0.1", 0);
  const listener = tcpListen(address, "a port", { backlog: 0, isDual: false });
  // The kernel has room for one connection, and does not answer the next one.
  const clients = [1, 2, 3].map(() => new Client(boundAddress(listener)));
  clients[0].scheduler.poll();
  const last = clients[2];
  requireError(last.end(), /no answer in 5 s/);
  assert.equal(last.scheduler.nowMs(), 5000);
  for (const client of clients.slice(0, 2)) client.end();
  closeFile(listener);
});

dialTest("a server that says nothing is left after 15 seconds", (path) => {
  const listener = unixListen(path);
  const client = new Client(unixAddress(path));
  requireError(client.end(), /no answer in 15 s/);
  assert.equal(client.scheduler.nowMs(), 15_000);
  closeFile(listener);
});

dialTest("a slow server is waited for as long as it goes on", (path) => {
  const server = new HostileNbdServer(path);
  const client = new Client(unixAddress(path));
  client.every(8000, () => void server.step());
  const result = client.end();
  assert.ok(!(result instanceof Error), String(result));
  assert.ok(client.scheduler.nowMs() > 20_000, `${client.scheduler.nowMs()} ms`);
  closeConnected(result);
  server.close();
});

dialTest("a server that sends its greeting by the byte has a minute", (path) => {
  const listener = unixListen(path);
  const client = new Client(unixAddress(path));
  let fd = -1;
  const greeting = new TextEncoder().encode("NBDMAGICIHAVEOPT");
  let sent = 0;
  client.every(10_000, () => {
    if (fd < 0) fd = acceptConnection(listener);
    const byte = greeting.slice(sent, ++sent);
    assert.equal(sendAt(fd, addressOf(byte), 1), 1);
  });
  requireError(client.end(), /the handshake has not ended in 60 s/);
  assert.equal(client.scheduler.nowMs(), 60_000);
  for (const each of [fd, listener]) closeFile(each);
});

dialTest("what a server said while the loop was late counts", (path) => {
  const server = new HostileNbdServer(path);
  const client = new Client(unixAddress(path));
  client.scheduler.poll();
  server.step();
  // The clock passes the limit before the loop looks at the socket.
  client.scheduler.turn();
  assert.equal(client.scheduler.nowMs(), 15_000);
  client.every(10, () => void server.step());
  const result = client.end();
  assert.ok(!(result instanceof Error), String(result));
  closeConnected(result);
  server.close();
});
