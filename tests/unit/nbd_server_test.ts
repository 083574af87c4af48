/**
 * What the NBD server makes of requests, on a simulated disk: which request of the disk it starts,
 * what it refuses, and what it answers.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { socketPair } from "../../ffi/sockets.ts";
import { clientMemoryOf } from "../../src/frontend/nbd/client_memory.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { REQUEST_SLOTS } from "../../src/driver/driver.ts";
import type { GreetingStyle } from "../../src/frontend/nbd/handshake.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import {
  Chunk,
  Cmd,
  CmdFlag,
  infoContent,
  joined,
  metaContent,
  Opt,
  packed,
  requestHeader,
  WireError,
} from "../support/nbd_client.ts";
import { SeenPages } from "../support/metrics.ts";
import { PlayedLoop, SocketEnd } from "../support/played_loop.ts";
import { assertHolds, SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
/** More than the longest request. */
const DISK_BYTES = 64 * MIB;
const BLOCK_BYTES = 2 * MIB;
const SLOT_BYTES = 256 * 1024;
/** Sockets have room for more than that. */
const PIECE_BYTES = 64 * 1024;
const OPTION_MAGIC = 0x49484156454f5054n;
const SIMPLE_REPLY_MAGIC = 0x67446698;

/** A server of one simulated disk. */
class Rig {
  readonly metrics = new SeenPages();
  readonly simulation = new Simulation({ seed: 1, metrics: this.metrics });
  readonly loop = new PlayedLoop();
  readonly device;
  readonly log: string[] = [];
  readonly connections: NbdConnections;
  readonly #ends = new Set<SocketEnd>();

  constructor() {
    createDynamic("/disk.vhd", { storage: this.simulation.disk, sizeBytes: DISK_BYTES });
    this.device = this.simulation.open("vhd:/disk.vhd");
    const log = (line: string): void => void this.log.push(line);
    const meter = this.device.vbd.meters.open({ of: "nbd", minor: 0 }, REQUEST_SLOTS);
    this.connections = new NbdConnections(this.loop, this.device.vbd, { log, meter });
  }

  connect(style: GreetingStyle): SocketEnd {
    const [ours, theirs] = socketPair();
    const memory = clientMemoryOf(this.device.vbd.requests).take();
    this.connections.add(ours, memory, { style, handedOver: false });
    return this.#keep(theirs);
  }

  /** Connects on a descriptor that another process handed over. */
  handOver(style: GreetingStyle): SocketEnd {
    const [ours, theirs] = socketPair();
    this.connections.addHandedOver(ours, style);
    return this.#keep(theirs);
  }

  #keep(fd: number): SocketEnd {
    const end = new SocketEnd(fd);
    this.#ends.add(end);
    return end;
  }

  disconnect(end: SocketEnd): void {
    this.#ends.delete(end);
    end.close();
    this.run();
  }

  /** Runs both loops until nothing happens any more; time does not pass for the server. */
  run(): void {
    for (let i = 0; i < 50; i++) {
      this.loop.poll();
      this.simulation.scheduler.turn();
    }
  }

  /** Sends bytes and returns the answer. */
  exchange(end: SocketEnd, ...parts: readonly Uint8Array[]): DataView {
    for (const part of parts) {
      for (let at = 0; at < part.length; at += PIECE_BYTES) {
        end.send(part.subarray(at, at + PIECE_BYTES));
        this.run();
      }
    }
    const answer = end.receive();
    assert.ok(answer !== null, `the server hung up: ${this.log.join()}`);
    return new DataView(answer.buffer);
  }

  close(): void {
    this.connections.close();
    for (const end of this.#ends) end.close();
    this.run();
    this.device.close();
    this.simulation.close();
  }
}

/** Sends a request whose reply is simple and has no data; returns the error. */
function errorOf(rig: Rig, end: SocketEnd, request: Parameters<typeof requestHeader>[0]): number {
  const { payload = new Uint8Array(0) } = request;
  const answer = rig.exchange(end, requestHeader({ ...request, cookie: 7 }), payload);
  assert.equal(answer.getUint32(0), SIMPLE_REPLY_MAGIC);
  assert.equal(answer.getUint32(12), 7);
  return answer.getUint32(4);
}

/** Writes the first two blocks as a whole, so that later writes are one operation each. */
function fillBlocks({ device }: Rig): void {
  for (let sector = 0; sector < 2 * BLOCK_BYTES / SECTOR_BYTES; sector += 512) {
    device.write(sector, stampedSectors(sector, 512, 1));
  }
  device.settle();
}

Deno.test("a fault of a client that is held, or let go, ends that client only", () => {
  for (const isFirst of [true, false]) {
    const rig = new Rig();
    const ends = [rig.connect("none"), rig.connect("none"), rig.connect("none")];
    const rewatch = rig.loop.rewatch.bind(rig.loop);
    if (!isFirst) rig.connections.hold(true);
    let calls = 0;
    rig.loop.rewatch = (fd, events): void => {
      if (++calls === 2) throw new Error("a fault");
      rewatch(fd, events);
    };
    rig.connections.hold(isFirst);
    assert.equal(rig.connections.size, 2);
    assert.equal(rig.connections.areQuiet, isFirst);
    rig.connections.hold(false);
    assert.equal(errorOf(rig, ends[0], { command: Cmd.Flush }), 0);
    assert.equal(errorOf(rig, ends[2], { command: Cmd.Flush }), 0);
    rig.close();
  }
});

Deno.test("WRITE_ZEROES takes room with NO_HOLE, and none without", () => {
  const rig = new Rig();
  const end = rig.connect("none");
  const written = (): number => rig.device.vbd.statistics().images[0].written_bytes;
  const request = { command: Cmd.WriteZeroes, offset: BLOCK_BYTES, length: 65536 };
  assert.equal(errorOf(rig, end, request), 0);
  assert.equal(written(), 0);
  assert.equal(errorOf(rig, end, { ...request, flags: CmdFlag.NoHole }), 0);
  assert.equal(written(), 65536);
  rig.close();
});

Deno.test("requests that make no sense are refused, and the next one is read right", () => {
  const rig = new Rig();
  const end = rig.connect("none");
  const read = { command: Cmd.Read, length: 512 };
  const payload = new Uint8Array(512).fill(1);
  const wrong: Parameters<typeof requestHeader>[0][] = [
    { command: 77 },
    { command: Cmd.Cache, length: 512 },
    { ...read, flags: CmdFlag.NoHole },
    { ...read, flags: CmdFlag.ReqOne },
    { ...read, flags: CmdFlag.Df },
    { ...read, flags: 1 << 15 },
    { ...read, offset: 256 },
    { ...read, length: 100 },
    { ...read, length: 32 * MIB + 512 },
    { ...read, offset: 2n ** 32n + 256n },
    { ...read, offset: DISK_BYTES },
    { command: Cmd.Write, offset: 256, length: 512, payload },
    { command: Cmd.Flush, length: 512 },
    { command: Cmd.Flush, offset: 512 },
    { command: Cmd.BlockStatus, length: 512 },
  ];
  for (const request of wrong) {
    assert.equal(errorOf(rig, end, request), WireError.Inval, JSON.stringify(request, String));
  }
  assert.equal(errorOf(rig, end, { command: Cmd.Flush }), 0);
  assertHolds(rig.device, 0, 8, 0);
  rig.close();
});

Deno.test("errors reach the client as the protocol has them", () => {
  const cases: [number, number][] = [
    [Errno.EFBIG, WireError.NoSpace],
    [Errno.EINVAL, WireError.Inval],
    [Errno.EPERM, WireError.Perm],
    [Errno.EFAULT, WireError.Io],
  ];
  for (const [errno, expected] of cases) {
    const rig = new Rig();
    const end = rig.connect("none");
    const payload = new Uint8Array(512);
    rig.simulation.lengthFault = errno;
    assert.equal(errorOf(rig, end, { command: Cmd.Write, length: 512, payload }), expected);
    rig.simulation.lengthFault = 0;
    rig.close();
  }
  const rig = new Rig();
  const end = rig.connect("none");
  const beyond = { command: Cmd.Write, offset: DISK_BYTES, length: 512 };
  const payload = new Uint8Array(512);
  assert.equal(errorOf(rig, end, { ...beyond, payload }), WireError.NoSpace);
  rig.close();
});

Deno.test("a write of a client that left is not tried again over what was written since", () => {
  const rig = new Rig();
  const slow = rig.connect("none");
  const write = (byte: number): Uint8Array =>
    joined(
      requestHeader({ command: Cmd.Write, offset: 10 * MIB, length: 512, cookie: byte }),
      new Uint8Array(512).fill(byte),
    );
  rig.simulation.lengthFault = Errno.ENOSPC;
  slow.send(write(1));
  rig.loop.poll();
  const { requests } = rig.device.vbd;
  while (requests.retrying.size === 0) rig.simulation.scheduler.turn();
  // It goes without an answer. What it has written on another connection is newer.
  rig.disconnect(slow);
  assert.equal(rig.connections.size, 0);
  rig.simulation.lengthFault = 0;
  const again = rig.connect("none");
  assert.equal(rig.exchange(again, write(2)).getUint32(4), 0);
  while (requests.outstanding > 0) rig.run();
  const read = { command: Cmd.Read, offset: 10 * MIB, length: 512 };
  assert.equal(rig.exchange(again, requestHeader(read)).getUint8(16), 2);
  rig.close();
});

Deno.test("each reply has the cookie and the data of its request", () => {
  const rig = new Rig();
  fillBlocks(rig);
  const end = rig.connect("none");
  const sectors = [4096, 0, 8191, 17];
  const requests = sectors.map((sector) =>
    requestHeader({ command: Cmd.Read, offset: sector * 512, length: 512, cookie: 1000 + sector })
  );
  const answer = rig.exchange(end, joined(...requests));
  assert.equal(answer.byteLength, sectors.length * (16 + 512));
  const found: number[] = [];
  for (let at = 0; at < answer.byteLength; at += 16 + 512) {
    assert.equal(answer.getUint32(at + 4), 0);
    const sector = answer.getUint32(at + 12) - 1000;
    assert.equal(answer.getUint32(at + 16, true), sector);
    found.push(sector);
  }
  assert.deepEqual(found.toSorted(), sectors.toSorted());
  rig.close();
});

Deno.test("a write with FUA is synced before its reply, another is not", () => {
  const rig = new Rig();
  fillBlocks(rig);
  const end = rig.connect("none");
  let syncs = 0;
  rig.simulation.fault = (kind) => {
    if (kind === "sync") syncs++;
    return 0;
  };
  for (const [command, length] of [[Cmd.Write, 512], [Cmd.WriteZeroes, 512]] as const) {
    const payload = command === Cmd.Write ? new Uint8Array(length) : undefined;
    syncs = 0;
    assert.equal(errorOf(rig, end, { command, length, payload }), 0);
    assert.equal(syncs, 0);
    assert.equal(errorOf(rig, end, { command, length, payload, flags: CmdFlag.Fua }), 0);
    assert.equal(syncs, 1);
  }
  rig.simulation.fault = null;
  rig.close();
});

Deno.test("a flush is answered after its sync, and with its error", () => {
  const rig = new Rig();
  fillBlocks(rig);
  const end = rig.connect("none");
  rig.simulation.fault = (kind) => kind === "sync" ? Errno.EINVAL : 0;
  assert.equal(errorOf(rig, end, { command: Cmd.Flush }), WireError.Inval);
  rig.simulation.fault = null;
  assert.equal(errorOf(rig, end, { command: Cmd.Flush }), 0);
  rig.close();
});

Deno.test("a long write that ends beyond the disk changes nothing", () => {
  const rig = new Rig();
  const end = rig.connect("none");
  const length = 2 * SLOT_BYTES;
  const payload = new Uint8Array(length).fill(1);
  const offset = DISK_BYTES - SLOT_BYTES;
  assert.equal(
    errorOf(rig, end, { command: Cmd.Write, offset, length, payload }),
    WireError.NoSpace,
  );
  assertHolds(rig.device, offset / SECTOR_BYTES, 512, 0);
  rig.close();
});

Deno.test("a long write fails if any part of it fails", () => {
  for (const failing of [1, 2]) {
    const rig = new Rig();
    fillBlocks(rig);
    const end = rig.connect("none");
    let writes = 0;
    rig.simulation.fault = (kind) => kind === "write" && ++writes === failing ? Errno.EINVAL : 0;
    // The parts are in different blocks, so that each is an operation.
    const request = {
      command: Cmd.Write,
      offset: BLOCK_BYTES - SLOT_BYTES,
      length: 2 * SLOT_BYTES,
      payload: new Uint8Array(2 * SLOT_BYTES),
    };
    assert.equal(errorOf(rig, end, request), WireError.Inval);
    assert.equal(writes, 2);
    rig.simulation.fault = null;
    rig.close();
  }
});

/** The bytes of an option of the handshake. */
function option(number: number, content: Uint8Array = new Uint8Array(0)): Uint8Array {
  return joined(packed([8, OPTION_MAGIC], [4, number], [4, content.length]), content);
}

Deno.test("extents tell clients data from holes", () => {
  const rig = new Rig();
  rig.device.write(0, stampedSectors(0, 16, 1));
  rig.device.settle();
  const end = rig.connect("newstyle");
  rig.exchange(end, packed([4, 3]));
  rig.exchange(end, option(Opt.StructuredReply));
  rig.exchange(end, option(Opt.SetMetaContext, metaContent("", ["base:allocation"])));
  rig.exchange(end, option(Opt.Go, infoContent("")));
  const request = requestHeader({ command: Cmd.BlockStatus, offset: 0, length: 65536, cookie: 5 });
  const answer = rig.exchange(end, request);
  assert.equal(answer.getUint16(6), Chunk.BlockStatus);
  const extents = Array.from({ length: (answer.getUint32(16) - 4) / 8 }, (_, i) => [
    answer.getUint32(24 + 8 * i),
    answer.getUint32(28 + 8 * i),
  ]);
  assert.deepEqual(extents, [[8192, 0], [65536 - 8192, 3]]);
  rig.close();
});

Deno.test("a client that does not end its handshake is hung up on after half a minute", () => {
  const rig = new Rig();
  const slow = rig.connect("newstyle");
  assert.equal(rig.exchange(slow, packed([4, 3])).byteLength, 18);
  assert.ok(rig.loop.turn());
  assert.equal(rig.loop.nowMs(), 30_000);
  rig.run();
  assert.equal(slow.receive(), null);
  assert.match(rig.log.join(), /did not finish the handshake/);
  assert.equal(rig.connections.size, 0);
  rig.close();
});

Deno.test("clients' requests are counted for monitoring programs, whatever their parts", () => {
  const rig = new Rig();
  const end = rig.connect("none");
  const payload = new Uint8Array(2 * SLOT_BYTES + 512).fill(1);
  const write = { command: Cmd.Write, offset: 0, length: payload.length, payload };
  assert.equal(errorOf(rig, end, write), 0);
  assert.equal(errorOf(rig, end, { command: Cmd.Flush }), 0);
  assert.equal(errorOf(rig, end, { ...write, offset: 256 }), Errno.EINVAL);
  const header = requestHeader({ command: Cmd.Read, length: 3 * SLOT_BYTES });
  assert.equal(rig.exchange(end, header).byteLength, 16 + 3 * SLOT_BYTES);
  const seen = rig.metrics.read("nbd-0");
  assert.deepEqual(
    [seen.oo_reqs, seen.read_reqs_submitted, seen.read_reqs_completed, seen.read_sectors],
    [0, 1, 1, 3 * SLOT_BYTES / 512],
  );
  assert.deepEqual(
    [seen.write_reqs_submitted, seen.write_reqs_completed, seen.write_sectors, seen.io_errors],
    [2, 2, payload.length / 512, 1],
  );
  assert.equal(rig.metrics.read("vdi-0").write_reqs_completed, 3);

  // A client that leaves within a write, and one that leaves before its read ends.
  const others = [rig.connect("none"), rig.connect("none")];
  others[0].send(requestHeader({ command: Cmd.Write, offset: 0, length: 4096 }));
  rig.run();
  assert.equal(rig.metrics.read("nbd-0").oo_reqs, 1);
  rig.device.pause();
  others[1].send(requestHeader({ command: Cmd.Read, offset: 0, length: 4096 }));
  rig.run();
  assert.equal(rig.metrics.read("nbd-0").oo_reqs, 2);
  for (const other of others) rig.disconnect(other);
  assert.equal(rig.metrics.read("nbd-0").oo_reqs, 1);
  rig.device.resume();
  rig.run();
  assert.equal(rig.metrics.read("nbd-0").oo_reqs, 0);
  // Nobody waits for what has not begun: it is given up.
  assert.equal(rig.metrics.read("nbd-0").io_errors, 3);
  rig.close();
});

const OLDSTYLE_BYTES = 152;

/** What an oldstyle server sends first. */
function requireOldstyle(view: DataView): void {
  assert.equal(view.byteLength, OLDSTYLE_BYTES);
  assert.equal(view.getBigUint64(0), 0x4e42444d41474943n);
  assert.equal(view.getBigUint64(8), 0x00420281861253n);
  assert.equal(view.getBigUint64(16), BigInt(DISK_BYTES));
  // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN; DF needs structured replies.
  assert.equal(view.getUint32(24), 0x16d);
  assert.ok(new Uint8Array(view.buffer, view.byteOffset + 28, 124).every((byte) => byte === 0));
}

Deno.test("an oldstyle client is told of the disk, and its requests are served", () => {
  const rig = new Rig();
  const end = rig.connect("oldstyle");
  requireOldstyle(rig.exchange(end));
  const payload = new Uint8Array(512).fill(7);
  assert.equal(errorOf(rig, end, { command: Cmd.Write, length: 512, payload }), 0);
  const answer = rig.exchange(end, requestHeader({ command: Cmd.Read, length: 512, cookie: 1 }));
  assert.deepEqual(new Uint8Array(answer.buffer, 16), payload);
  end.send(requestHeader({ command: Cmd.Disc }));
  rig.run();
  assert.equal(end.receive(), null, "it is hung up on, as it connected by itself");
  rig.close();
});

Deno.test("a client that was handed over is greeted again after it left", () => {
  const rig = new Rig();
  const end = rig.handOver("oldstyle");
  for (let i = 0; i < 3; i++) {
    requireOldstyle(rig.exchange(end));
    assert.equal(errorOf(rig, end, { command: Cmd.Flush }), 0);
    end.send(requestHeader({ command: Cmd.Disc }));
    rig.run();
  }
  requireOldstyle(rig.exchange(end));
  assert.equal(rig.connections.size, 1);
  const modern = rig.handOver("newstyle");
  for (let i = 0; i < 2; i++) {
    assert.equal(rig.exchange(modern).byteLength, 18);
    rig.exchange(modern, packed([4, 3]), option(Opt.Go, infoContent("")));
    end.send(requestHeader({ command: Cmd.Flush }));
    modern.send(requestHeader({ command: Cmd.Disc }));
    rig.run();
  }
  rig.close();
  assert.equal(rig.connections.size, 0);
});

Deno.test("a client that was handed over has time, and one that hangs up is gone", () => {
  const rig = new Rig();
  const end = rig.handOver("newstyle");
  assert.equal(rig.exchange(end).byteLength, 18);
  rig.loop.addTimer(60_000, () => {});
  while (rig.loop.turn());
  rig.run();
  assert.equal(rig.loop.nowMs(), 60_000);
  assert.equal(rig.connections.size, 1);
  const gone = rig.handOver("oldstyle");
  requireOldstyle(rig.exchange(gone));
  gone.send(requestHeader({ command: Cmd.Disc }));
  rig.disconnect(gone);
  rig.run();
  assert.equal(rig.connections.size, 1, "it is not greeted for ever");
  rig.close();
});

Deno.test("a client that was handed over to a disk with too many is hung up on", () => {
  const rig = new Rig();
  const memories = clientMemoryOf(rig.device.vbd.requests);
  const taken: number[] = [];
  for (let memory = memories.take(); memory >= 0; memory = memories.take()) taken.push(memory);
  const end = rig.handOver("oldstyle");
  assert.equal(end.receive(), null);
  assert.match(rig.log.join(), /Minor \d+: a client cannot be served: the disk has too many/);
  for (const memory of taken) memories.give(memory);
  rig.close();
});
