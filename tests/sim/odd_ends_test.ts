import assert from "node:assert/strict";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { type Outcome, type SimulatedDevice, Simulation } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1 << 20;
const SECTOR = 512;

/** Waits for the end of a request. */
function ended(device: SimulatedDevice, outcome: Outcome): Outcome {
  device.settle();
  return outcome;
}

for (const rawBytes of [100, 3 * MIB + 1, 3 * MIB + 511, 2 * MIB + 512 + 300]) {
  Deno.test(`a raw parent of ${rawBytes} bytes is served to its last byte`, () => {
    const simulation = new Simulation({ seed: 1, latencyMs: 2 });
    const storage = simulation.disk;
    putFile(storage, "/raw", new Uint8Array(rawBytes).fill(0x72));
    snapshot("/a.vhd", { storage, parent: "/raw", rawParent: true });
    const chain = openChain("/a.vhd", { storage });
    const wanted = new Uint8Array(chain.images[0].sizeBytes);
    readRange(chain, wanted, 0);
    chain.close();
    assert.deepEqual([wanted.length % SECTOR, wanted.indexOf(0)], [0, rawBytes]);
    const device = simulation.open("vhd:/a.vhd");
    const last = Math.floor(rawBytes / SECTOR);
    const read = (sector: number, count: number): void => {
      const { errno, data } = ended(device, device.read(sector, count));
      assert.equal(errno, 0);
      const part = wanted.subarray(sector * SECTOR, (sector + count) * SECTOR);
      assert.deepEqual(data, part, `${count} sectors from ${sector}`);
    };
    for (let before = 0; before < 4; before++) {
      const from = Math.max(0, last - before);
      for (let count = 1; from + count <= last + 1; count++) read(from, count);
    }
    const extents = ended(device, device.status(0, last + 1)).extents ?? [];
    assert.equal(extents.reduce((sum, run) => sum + Math.abs(run), 0), last + 1);
    assert.ok((extents.at(-1) ?? 0) > 0);
    assert.equal(ended(device, device.write(last, new Uint8Array(SECTOR))).errno, 0);
    assert.equal(ended(device, device.read(last, 1)).errno, 0);
    device.close();
    assert.equal(getFile(storage, "/raw").length, rawBytes);
    const direct = simulation.open("aio:/raw", { readOnly: true });
    const end = ended(direct, direct.read(last, 1));
    assert.equal(end.errno, 0);
    assert.deepEqual(end.data, wanted.subarray(last * SECTOR, (last + 1) * SECTOR));
    direct.close();
    simulation.close();
  });
}

for (const slackSectors of [0, 1, 7, 40]) {
  for (const change of ["nothing", "a sector that is there", "a new block"]) {
    Deno.test(`a footer of 511 bytes behind ${slackSectors} spare sectors, ${change} written`, () => {
      const simulation = new Simulation({ seed: 1, latencyMs: 2 });
      const storage = simulation.disk;
      createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
      const image = openVhd("/a.vhd", { storage, readOnly: false });
      writeRange(image, new Uint8Array(SECTOR).fill(1), 0);
      finishWriting(image);
      image.close();
      const whole = getFile(storage, "/a.vhd");
      const bytes = new Uint8Array(whole.length + slackSectors * SECTOR - 1).fill(0xee);
      bytes.set(whole.subarray(0, -SECTOR));
      bytes.set(whole.subarray(-SECTOR, -1), bytes.length - 511);
      putFile(storage, "/a.vhd", bytes);
      assert.equal(openVhd("/a.vhd", { storage }).footerSource, "short");
      assert.ok(checkImage("/a.vhd", { storage }).valid);
      const device = simulation.open("vhd:/a.vhd");
      if (change !== "nothing") {
        const sector = change === "a new block" ? 9000 : 1;
        assert.equal(ended(device, device.write(sector, new Uint8Array(SECTOR))).errno, 0);
      }
      device.close();
      assert.equal(openVhd("/a.vhd", { storage }).footerSource, "primary");
      const { valid, findings } = checkImage("/a.vhd", { storage });
      assert.ok(valid, JSON.stringify(findings));
      simulation.close();
    });
  }
}

for (const footerBytes of [SECTOR, 511, 0]) {
  for (const slackSectors of [1, 40, 600, 9000]) {
    const footer = footerBytes === 0 ? "no footer" : `a footer of ${footerBytes} bytes`;
    Deno.test(`a new block has nothing of ${slackSectors} spare sectors and ${footer}`, () => {
      const simulation = new Simulation({ seed: 1, latencyMs: 2 });
      const storage = simulation.disk;
      createDynamic("/a.vhd", { storage, sizeBytes: 8 * MIB });
      const whole = getFile(storage, "/a.vhd");
      const bytes = new Uint8Array(whole.length - SECTOR + slackSectors * SECTOR + footerBytes);
      bytes.fill(0xee).set(whole.subarray(0, -SECTOR));
      const end = whole.subarray(whole.length - SECTOR, whole.length - SECTOR + footerBytes);
      bytes.set(end, bytes.length - footerBytes);
      putFile(storage, "/a.vhd", bytes);
      const device = simulation.open("vhd:/a.vhd");
      for (const sector of [5000, 9000, 100]) {
        const data = new Uint8Array(SECTOR).fill(7);
        assert.equal(ended(device, device.write(sector, data)).errno, 0);
      }
      device.close();
      const { valid, findings } = checkImage("/a.vhd", { storage, checkData: true });
      assert.ok(valid, JSON.stringify(findings));
      // Programs that ignore the bitmaps of dynamic images read the blocks as they are.
      const { bat, bitmapSectors } = openVhd("/a.vhd", { storage });
      const file = getFile(storage, "/a.vhd");
      for (const location of bat) {
        if (location === 0xffff_ffff) continue;
        const from = (location + bitmapSectors) * SECTOR;
        const others = file.subarray(from, from + 2 * MIB).filter((byte) =>
          byte !== 0 && byte !== 7
        );
        assert.equal(others.length, 0);
      }
      simulation.close();
    });
  }
}
