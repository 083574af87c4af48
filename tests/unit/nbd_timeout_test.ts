import assert from "node:assert/strict";
import type { SystemError } from "../../ffi/errno.ts";
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
