import assert from "node:assert/strict";
import { tcpAddress } from "../../ffi/addresses.ts";
import type { SystemError } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { beginConnect, boundAddress, tcpListen } from "../../ffi/sockets.ts";
import { handedOver } from "../../src/driver/nbd/handed_over.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { HostileNbdServer } from "../search/fuzz/wire/hostile_nbd_server.ts";
import { BothEnds, RemoteDisk } from "../search/fuzz/wire/remote_disk.ts";
import { withTempDir } from "../support/tools.ts";

async function open(ends: BothEnds, name: string): Promise<RemoteDisk> {
  const disk = new RemoteDisk(ends.context);
  let result: SystemError | null | undefined;
  disk.vbd.openLater(name, {}, (error) => result = error);
  await ends.until("opening", () => result !== undefined);
  assert.equal(result, null);
  return disk;
}

Deno.test("NBD driver: a server that never answers is left after 30 s, and asked again", () =>
  withTempDir(async (folder) => {
    const server = new HostileNbdServer(`${folder}/n.sock`);
    const ends = new BothEnds(server);
    server.deaf = 2;
    const disk = await open(ends, `nbd:unix:${folder}/n.sock`);
    const startMs = ends.scheduler.nowMs();
    const kinds = [RequestKind.Read, RequestKind.Write, RequestKind.Status, RequestKind.Flush];
    for (const kind of kinds) disk.start(kind, 8, kind === RequestKind.Flush ? 0 : 8);
    await ends.until("the requests", () => disk.open === 0);
    assert.equal(disk.lastErrno, 0);
    const tookMs = ends.scheduler.nowMs() - startMs;
    assert.ok(tookMs >= 60_000 && tookMs < 80_000, `${tookMs} ms for two servers`);
    assert.equal(ends.log.filter((line) => line.includes("(ETIMEDOUT)")).length, 2);
    server.close();
  }));

Deno.test("NBD driver: a server without requests to answer may be silent for hours", () =>
  withTempDir(async (folder) => {
    const server = new HostileNbdServer(`${folder}/n.sock`);
    const ends = new BothEnds(server);
    const disk = await open(ends, `nbd:unix:${folder}/n.sock`);
    for (let i = 0; i < 3; i++) {
      await ends.pass(1_000_000);
      disk.start(RequestKind.Read, 8, 8);
      await ends.until("a read", () => disk.open === 0);
      assert.equal(disk.lastErrno, 0);
    }
    assert.deepEqual(ends.log, []);
    server.close();
  }));

Deno.test("NBD driver: a connection over TCP that is given up is reset, so that nothing of it comes later", async () => {
  const listener = tcpListen(tcpAddress("127.0.0.1", 0), "a test", { backlog: 4, isDual: false });
  const connect = (): void => {
    handedOver.putBack("tcp-test", beginConnect(boundAddress(listener), "a test"));
  };
  const server = new HostileNbdServer(listener);
  const ends = new BothEnds(server);
  server.deaf = 1;
  connect();
  const disk = await open(ends, "nbd:tcp-test");
  disk.start(RequestKind.Write, 8, 8);
  await ends.until("the reset", () => server.resets === 1);
  connect();
  await ends.until("the request", () => disk.open === 0);
  assert.equal(disk.lastErrno, 0);
  let isClosed = false;
  disk.vbd.close(() => isClosed = true);
  await ends.until("the close", () => isClosed);
  assert.equal(server.resets, 1);
  // The driver keeps a connection that it was handed for the next time.
  closeFile(handedOver.take("tcp-test", "a test"));
  server.close();
});
