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
import { Simulation } from "../support/sim.ts";

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

Deno.test("a client beside another takes 16 requests a turn, and alone as many as came", () => {
  const loop = new PlayedLoop();
  // Two disks of one process: each has its clients, all have one loop.
  const disks = ["/busy.vhd", "/quiet.vhd"].map((path) => {
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
  });
  const [busy, quiet] = disks.map(({ end }) => end);
  /** Runs a turn of the loop; returns how many requests of each were answered. */
  const turn = (): number[] => {
    loop.poll();
    // What is left of a client's work waits for a timer.
    loop.turn();
    for (const { simulation } of disks) simulation.scheduler.turn();
    return [busy, quiet].map((end) => (end.receive()?.length ?? 0) / REPLY_BYTES);
  };
  busy.send(reads(60));
  let answered = 0;
  for (let i = 0; answered < 60; i++) {
    assert.ok(i < 2, "it has the turns for itself");
    answered += turn()[0];
  }

  quiet.send(reads(1));
  turn();
  turn();
  busy.send(reads(60));
  quiet.send(reads(1));
  let answeredQuiet = 0;
  let turns = 0;
  for (answered = 0; answered < 60; turns++) {
    assert.ok(turns < 20, `${answered} are answered`);
    const [ofBusy, ofQuiet] = turn();
    assert.ok(ofBusy <= 32, `${ofBusy} in one turn`);
    answered += ofBusy;
    answeredQuiet += ofQuiet;
    if (turns === 1) assert.equal(answeredQuiet, 1, "the other disk's request is not late");
  }
  assert.ok(turns >= 3, `${turns}`);

  // After a long time alone it has the turns for itself again.
  for (let work = 0; work <= 1 << 16; work += 60) {
    busy.send(reads(60));
    for (answered = 0; answered < 60;) answered += turn()[0];
  }
  busy.send(reads(60));
  for (answered = 0, turns = 0; answered < 60; turns++) answered += turn()[0];
  assert.ok(turns <= 2, `${turns}`);
  for (const { simulation, connections, device, end } of disks) {
    connections.close();
    end.close();
    device.close();
    simulation.close();
  }
});
