/** How much a client of the NBD server does in one turn of the loop, alone and beside others. */
import assert from "node:assert/strict";
import { socketPair } from "../../ffi/sockets.ts";
import { REQUEST_SLOTS } from "../../src/driver/driver.ts";
import { clientMemoryOf } from "../../src/frontend/nbd/client_memory.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { SeenPages } from "../support/metrics.ts";
import { Cmd, joined, requestHeader } from "../support/nbd_client.ts";
import { PlayedLoop, SocketEnd } from "../support/played_loop.ts";
import { type SimulatedDevice, Simulation } from "../support/sim.ts";

const MIB = 1 << 20;
const REPLY_BYTES = 16 + 512;

/** `count` reads of a sector each. */
function reads(count: number): Uint8Array<ArrayBuffer> {
  return joined(
    ...Array.from(
      { length: count },
      (_, i) => requestHeader({ command: Cmd.Read, offset: i * 512, length: 512, cookie: i }),
    ),
  );
}

interface TestDisk {
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;
  readonly connections: NbdConnections;
  readonly end: SocketEnd;
}

/** A disk of a process, with one client. All disks have one loop. */
function diskWithClient(loop: PlayedLoop, path: string): TestDisk {
  const simulation = new Simulation({ seed: 1, metrics: new SeenPages() });
  createDynamic(path, { storage: simulation.disk, sizeBytes: 64 * MIB });
  const device = simulation.open(`vhd:${path}`);
  const { vbd } = device;
  const meter = vbd.meters.open({ of: "nbd", minor: 0 }, REQUEST_SLOTS);
  const connections = new NbdConnections(loop, vbd, { log: () => {}, meter });
  const [ours, theirs] = socketPair();
  const memory = clientMemoryOf(vbd.requests).take();
  connections.add(ours, memory, { style: "none", handedOver: false });
  return { simulation, device, connections, end: new SocketEnd(theirs) };
}

/** Runs a turn of the loop; returns how many requests of each disk were answered. */
function turn(loop: PlayedLoop, disks: readonly TestDisk[]): number[] {
  loop.poll();
  // What is left of a client's work waits for a timer.
  loop.turn();
  for (const { simulation } of disks) simulation.scheduler.turn();
  return disks.map(({ end }) => (end.receive()?.length ?? 0) / REPLY_BYTES);
}

function close({ simulation, connections, device, end }: TestDisk): void {
  connections.close();
  end.close();
  device.close();
  simulation.close();
}

Deno.test("a client after one that has left takes as many requests a turn as came", () => {
  const loop = new PlayedLoop();
  const before = diskWithClient(loop, "/before.vhd");
  const disk = diskWithClient(loop, "/disk.vhd");
  before.end.send(reads(1));
  assert.deepEqual(turn(loop, [before, disk]), [1, 0]);
  close(before);
  disk.end.send(reads(60));
  let answered = 0;
  for (let turns = 0; answered < 60; turns++) {
    assert.ok(turns < 2, `${answered} are answered`);
    answered += turn(loop, [disk])[0];
  }
  close(disk);
});

Deno.test("a client beside another takes 16 requests a turn, and alone as many as came", () => {
  const loop = new PlayedLoop();
  const disks = ["/busy.vhd", "/quiet.vhd"].map((path) => diskWithClient(loop, path));
  const [busy, quiet] = disks.map(({ end }) => end);
  busy.send(reads(60));
  let answered = 0;
  for (let i = 0; answered < 60; i++) {
    assert.ok(i < 2, "it has the turns for itself");
    answered += turn(loop, disks)[0];
  }

  quiet.send(reads(1));
  turn(loop, disks);
  turn(loop, disks);
  busy.send(reads(60));
  quiet.send(reads(1));
  let answeredQuiet = 0;
  let turns = 0;
  for (answered = 0; answered < 60; turns++) {
    assert.ok(turns < 20, `${answered} are answered`);
    const [ofBusy, ofQuiet] = turn(loop, disks);
    assert.ok(ofBusy <= 32, `${ofBusy} in one turn`);
    answered += ofBusy;
    answeredQuiet += ofQuiet;
    if (turns === 1) assert.equal(answeredQuiet, 1, "the other disk's request is not late");
  }
  assert.ok(turns >= 3, `${turns}`);

  // After a long time alone it has the turns for itself again.
  for (let work = 0; work <= 1 << 16; work += 60) {
    busy.send(reads(60));
    for (answered = 0; answered < 60;) answered += turn(loop, disks)[0];
  }
  busy.send(reads(60));
  for (answered = 0, turns = 0; answered < 60; turns++) answered += turn(loop, disks)[0];
  assert.ok(turns <= 2, `${turns}`);
  for (const disk of disks) close(disk);
});
