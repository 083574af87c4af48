import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { acceptConnection, receiveAt, unixListen } from "../../ffi/sockets.ts";
import type { Devices } from "../../src/control/daemon/devices.ts";
import { HandoverChannel } from "../../src/control/handover/channel.ts";
import { TakeOver } from "../../src/control/handover/take_over.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { holdAccepting } from "../../src/frontend/listening.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { withTempDir } from "../support/tools.ts";

const soon = (): number => performance.now() + 5_000;

/** A process that takes over from this one, which the test plays. */
class Rig {
  readonly did: string[] = [];
  readonly taking: TakeOver;
  readonly channel: HandoverChannel;
  readonly #scheduler = new EpollScheduler();
  readonly #listener: number;
  #isClosed = false;

  /** @param held What each client of its disks does when it is let go. */
  constructor(folder: string, held: readonly (() => void)[] = []) {
    this.#listener = unixListen(`${folder}/ctl${Deno.pid}`);
    const handovers = held.map((hold) => ({ hold }));
    const rings = { begin: () => void this.did.push("takes requests") };
    const device = {
      minor: 7,
      parts: { access: { handovers, rings } },
      servedHere: (sectors?: number) =>
        this.did.push(`is served here${sectors === undefined ? "" : `, had ${sectors} sectors`}`),
    };
    const devices = { all: [device] } as unknown as Devices;
    const note = (message: string): void => void this.did.push(message);
    this.taking = new TakeOver({
      scheduler: this.#scheduler,
      log: { info(): void {}, warn: note, error: note },
      devices,
      rehearse: (_images, done) => done(null),
      openSockets: () => {
        throw new Error("It opens no sockets");
      },
      serving: () => note("serves"),
      failed: ({ message }) => note(message),
    }, Deno.pid);
    const fd = acceptConnection(this.#listener);
    const wish = new Uint8Array(MESSAGE_BYTES);
    assert.equal(receiveAt(fd, addressOf(wish), wish.length), MESSAGE_BYTES);
    this.channel = new HandoverChannel(fd);
  }

  /** The old process tells it to serve. */
  tell(): void {
    this.channel.send({ kind: "serve" }, [], soon());
    this.taking.ready();
    assert.deepEqual(this.channel.receive(soon()).value, { kind: "serving", waits: true });
  }

  /** The old process lets go of its disks. */
  letGo(): void {
    this.channel.close();
    this.#isClosed = true;
    this.taking.ready();
  }

  close(): void {
    holdAccepting(false);
    if (!this.#isClosed) this.channel.close();
    closeFile(this.#listener);
    this.#scheduler.close();
  }
}

function takeOverTest(name: string, body: (folder: string) => void): void {
  Deno.test(`take over: ${name}`, () =>
    withTempDir((folder) => {
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        body(folder);
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      }
    }));
}

takeOverTest("a signal before it serves leaves the disks to the other process", (folder) => {
  const rig = new Rig(folder);
  assert.equal(rig.taking.giveUp(), true);
  assert.equal(rig.did.length, 1);
  assert.match(rig.did[0], /Cannot take over from process \d+: .*a signal ended/);
  const { kind, errno } = rig.channel.receive(soon()).value as { kind: string; errno: number };
  assert.deepEqual([kind, errno], ["failed", Errno.EINTR]);
  rig.close();
});

takeOverTest("a signal once it serves is for its own disks", (folder) => {
  const rig = new Rig(folder);
  rig.tell();
  assert.equal(rig.taking.giveUp(), false);
  rig.letGo();
  assert.deepEqual(rig.did, ["takes requests", "is served here", "serves"]);
  assert.equal(rig.taking.giveUp(), false);
  rig.close();
});

takeOverTest("nothing is begun before the other process has let go of its disks", (folder) => {
  const rig = new Rig(folder, [(): void => void rig.did.push("a client is let go")]);
  rig.tell();
  // What the channel brings is no end of it.
  rig.taking.ready();
  rig.channel.send({ kind: "serve" }, [], soon());
  rig.taking.ready();
  assert.deepEqual(rig.did, []);
  rig.letGo();
  assert.deepEqual(rig.did, ["a client is let go", "takes requests", "is served here", "serves"]);
  rig.close();
});

takeOverTest("a disk that has become larger is told so, with what its users know", (folder) => {
  const rig = new Rig(folder);
  const disk = { kind: "disk", minor: 7, request: null, sectors: 100, counts: {} };
  rig.channel.send(disk, [], soon());
  rig.tell();
  rig.letGo();
  assert.deepEqual(rig.did, ["takes requests", "is served here, had 100 sectors", "serves"]);
  rig.close();
});

takeOverTest(
  "what goes wrong once it serves does not keep the rest from being served",
  (folder) => {
    const went: string[] = [];
    const rig = new Rig(folder, [
      (): void => {
        throw new Error("a fault");
      },
      (): void => void went.push("second"),
    ]);
    rig.tell();
    rig.letGo();
    assert.deepEqual(went, ["second"]);
    assert.match(rig.did[0], /something is missing: a fault/);
    assert.deepEqual(rig.did.slice(1), ["takes requests", "is served here", "serves"]);
    rig.close();
  },
);

takeOverTest("the end of the other process before its disks are taken ends this one", (folder) => {
  for (const isTold of [false, true]) {
    const rig = new Rig(folder);
    if (isTold) rig.channel.send({ kind: "serve" }, [], soon());
    rig.close();
    rig.taking.ready();
    assert.equal(rig.did.length, 1);
    assert.match(rig.did[0], /EPIPE/);
    Deno.removeSync(`${folder}/ctl${Deno.pid}`);
  }
});
