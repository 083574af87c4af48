/** A resize of a QCOW2 that is killed at any of its writes leaves a sound image, on a block device, too. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { changesOnly, type SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { assertHolds, Simulation, stampedSectors } from "../support/sim.ts";

const MIB = 1 << 20;
const SECTORS = 2 * MIB / 512;

/** An image whose last refcount block lies behind all of its data. */
function makeImage(kind: "file" | "device"): SimulatedDisk {
  const simulation = new Simulation({ seed: 1 });
  const { disk: storage } = simulation;
  if (kind === "device") storage.addBlockDevice("/a", { sizeBytes: 112 * MIB });
  createQcow2("/a", { storage, sizeBytes: 2 * MIB, clusterBytes: 512, refcountBits: 64 });
  const device = simulation.open("qcow2:/a");
  for (let at = 0; at < SECTORS; at += 256) device.write(at, stampedSectors(at, 256, 1));
  device.settle();
  device.discard(SECTORS - 1024, 1024);
  device.settle();
  device.flush();
  device.settle();
  device.close();
  const made = storage.copy();
  simulation.close();
  return made;
}

function assertServed(disk: SimulatedDisk): void {
  const after = new Simulation({ seed: 1, disk });
  const device = after.open("qcow2:/a");
  assertHolds(device, 0, 512, 1);
  for (let at = 0; at < 1024; at += 512) assertHolds(device, SECTORS - 1024 + at, 512, 0);
  device.close();
  after.connection.die();
  after.context.queue.close();
}

class Killed extends Error {}

for (const kind of ["file", "device"] as const) {
  Deno.test(`a resize of an image on a ${kind} can be killed at any write`, () => {
    const made = makeImage(kind);
    let isDone = false;
    for (let kill = 1; !isDone; kill++) {
      const disk = made.copy();
      let changes = 0;
      disk.beforeOperation = changesOnly(() => {
        if (++changes === kill) throw new Killed();
      });
      try {
        resizeQcow2("/a", { storage: disk, sizeBytes: 12 * MIB });
        isDone = true;
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
      }
      disk.beforeOperation = null;
      disk.killProcesses();
      const image = openQcow2("/a", { storage: disk });
      const { errors } = checkQcow2(image);
      image.close();
      assert.deepEqual(errors, [], `killed at change ${kill}`);
      if (isDone) assert.equal(image.sizeBytes, 12 * MIB);
      if (isDone || kill % 16 === 0) assertServed(disk);
      disk.close();
    }
    made.close();
  });
}
