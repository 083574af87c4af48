/** What becomes of a connection to an NBD server that the loop cannot watch. */
import assert from "node:assert/strict";
import { EPOLLOUT } from "../../ffi/epoll.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { FdHandler } from "../../src/scheduler/scheduler.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { HostileNbdServer } from "../search/fuzz/wire/hostile_nbd_server.ts";
import { BothEnds, RemoteDisk } from "../search/fuzz/wire/remote_disk.ts";
import { withTempDir } from "../support/tools.ts";

/** Makes those of the next watches fail that have these numbers, from 1 on. */
function failWatches(ends: BothEnds, numbers: readonly number[]): void {
  const { scheduler } = ends;
  const watch = scheduler.watch.bind(scheduler);
  let calls = 0;
  scheduler.watch = (fd, events, handler, owner): void => {
    if (numbers.includes(++calls)) throw new SystemError(Errno.ENOSPC, "Cannot watch descriptor");
    watch(fd, events, handler, owner);
  };
}

async function open(ends: BothEnds, disk: RemoteDisk, name: string): Promise<SystemError | null> {
  let result: SystemError | null | undefined;
  disk.vbd.openLater(name, {}, (error) => result = error);
  await ends.until("opening", () => result !== undefined);
  return result ?? null;
}

function descriptors(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

Deno.test("NBD driver: a connection that cannot be watched is closed, and the open fails", () =>
  withTempDir(async (folder) => {
    for (const number of [1, 2]) {
      const path = `${folder}/${number}.sock`;
      const server = new HostileNbdServer(path);
      const ends = new BothEnds(server);
      const disk = new RemoteDisk(ends.context);
      const before = descriptors();
      failWatches(ends, [number]);
      const error = await open(ends, disk, `nbd:unix:${path}`);
      assert.equal(error?.errno, Errno.ENOSPC);
      await ends.pass(10);
      assert.equal(descriptors(), before, `watch ${number}`);
      assert.equal(await open(ends, disk, `nbd:unix:${path}`), null);
      server.close();
    }
  }));

Deno.test("NBD driver: a new connection that cannot be watched is left, and another is made", () =>
  withTempDir(async (folder) => {
    const server = new HostileNbdServer(`${folder}/n.sock`);
    const ends = new BothEnds(server);
    const disk = new RemoteDisk(ends.context);
    server.deaf = 1;
    assert.equal(await open(ends, disk, `nbd:unix:${folder}/n.sock`), null);
    const before = descriptors();
    // The first connection is dialled and used; of the next ones one of the two watches fails.
    failWatches(ends, [1, 3]);
    disk.start(RequestKind.Write, 8, 8);
    await ends.until("the request", () => disk.open === 0);
    assert.equal(disk.lastErrno, 0);
    assert.equal(disk.vbd.failed, false);
    assert.equal(descriptors(), before);
    server.close();
  }));

Deno.test("NBD driver: a device that has failed sends nothing when its socket has room again", () =>
  withTempDir(async (folder) => {
    const server = new HostileNbdServer(`${folder}/n.sock`);
    const ends = new BothEnds(server);
    const disk = new RemoteDisk(ends.context);
    let image: FdHandler | null = null;
    const watch = ends.scheduler.watch.bind(ends.scheduler);
    ends.scheduler.watch = (fd, events, handler, owner): void => {
      image = handler;
      watch(fd, events, handler, owner);
    };
    assert.equal(await open(ends, disk, `nbd:unix:${folder}/n.sock`), null);
    while (server.step());
    for (const fails of [false, true]) {
      disk.start(RequestKind.Write, 8, 8);
      if (fails) disk.vbd.fault(new Error("a planted fault"));
      (image as FdHandler | null)?.ready(EPOLLOUT);
      assert.equal(server.step(), !fails);
    }
    server.close();
  }));
