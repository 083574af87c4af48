/** A disk that failed while the disk queue moves its data: nobody gets the memory of its requests yet. */
import assert from "node:assert/strict";
import { SLOTS } from "../../src/vbd/slots.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { SECTOR_BYTES, Simulation, stampedSectors } from "../support/sim.ts";

const COUNT = 64;

/** Whether sectors hold what was written before, or what was under way; whatever the queue did last. */
function assertOldOrNew(data: Uint8Array, older: Uint8Array, newer: Uint8Array): void {
  for (let at = 0; at < data.length; at += SECTOR_BYTES) {
    const [sector, old, now] = [data, older, newer].map((bytes) =>
      bytes.subarray(at, at + SECTOR_BYTES).toString()
    );
    assert.ok(sector === old || sector === now, `sector ${at / SECTOR_BYTES} has other data`);
  }
}

Deno.test("the data of a request to a disk that fails is not overwritten by that of the next one", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const simulation = new Simulation({ seed, latencyMs: 50 });
    simulation.expectsFaults = true;
    createDynamic("/disk.vhd", { storage: simulation.disk, sizeBytes: 4 << 20 });
    const device = simulation.open("vhd:/disk.vhd");
    const { vbd } = device;
    const { requests } = vbd;
    const older = stampedSectors(0, COUNT, 1);
    const newer = stampedSectors(0, COUNT, 2);
    const first = device.write(0, older);
    simulation.runUntil(() => first.errno !== null, "The first write");
    const second = device.write(0, newer);
    for (let turns = seed % 3; turns > 0; turns--) simulation.scheduler.turn();
    const wasUnderWay = second.errno === null;
    vbd.fault(new Error("a fault of the test"));
    simulation.runUntil(() => second.errno !== null, "The write");
    if (wasUnderWay) assert.equal(second.errno, 5);
    // Whoever comes next writes to all slots that there are.
    const taken: number[] = [];
    for (let slot = requests.takeSlot(); slot >= 0; slot = requests.takeSlot()) {
      taken.push(slot);
      requests.memory.bytes.fill(
        0xff,
        requests.slotOffset(slot),
        requests.slotOffset(slot) + 65536,
      );
    }
    assert.ok(taken.length >= SLOTS - 1);
    while (simulation.scheduler.turn());
    taken.forEach((slot) => requests.releaseSlot(slot));
    assert.equal(requests.freeSlots, SLOTS);
    let error: unknown = "never called";
    vbd.resume(null, (resumed) => error = resumed);
    simulation.runUntil(() => error === null, "The unpause");
    const read = device.read(0, COUNT);
    simulation.runUntil(() => read.data !== null, "The read");
    assertOldOrNew(read.data ?? new Uint8Array(0), older, newer);
    simulation.close();
  }
});
