/**
 * A driver with its own completion queue and eventfd works on the loop that all disks share, keeps
 * its own limit of operations, and is closed only when its library is idle.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { registerDriver } from "../../src/driver/registry.ts";
import { RequestKind } from "../../src/vbd/slots.ts";
import { LIBRARY_OPERATIONS, libraryDriver } from "../support/library_driver.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";

const SECTOR = 512;
const SECTORS = 16384;
const { driver, control } = libraryDriver("library");
registerDriver(driver);

function withDevice(
  name: string,
  body: (device: RealDevice, path: string) => Promise<void>,
): Promise<void> {
  return withTempDir(async (folder) => {
    const path = `${folder}/disk`;
    Deno.writeFileSync(path, new Uint8Array(SECTORS * SECTOR).map((_, i) => (i >> 9) * 7));
    Object.assign(control, { isHeld: false, throwNext: false, mostPending: 0, abandoned: 0 });
    await body(new RealDevice(`${name}:${path}`), path);
  });
}

function sectorsOf(sector: number, count: number): Uint8Array {
  return new Uint8Array(count * SECTOR).map((_, i) => (sector + (i >> 9)) * 7);
}

for (const name of ["library", "log:library", "bc:4:library"]) {
  Deno.test(`${name}: more requests than it takes at once all end, with the right data`, () =>
    withDevice(name, async (device, path) => {
      const reads = Array.from({ length: 100 }, (_, i) => device.read(i * 64, 64));
      await device.settle();
      for (const [i, data] of (await Promise.all(reads)).entries()) {
        assert.deepEqual(data, sectorsOf(i * 64, 64));
      }
      assert.equal(control.mostPending, LIBRARY_OPERATIONS);
      const fresh = new Uint8Array(3 * SECTOR).fill(200);
      const writes = [
        device.write(5, fresh),
        device.change(RequestKind.Zero, 100, 9000),
        device.change(RequestKind.Fill, 9100, 5000),
        device.change(RequestKind.Discard, 0, 1),
      ];
      await device.settle();
      const flush = device.change(RequestKind.Flush);
      await device.settle();
      assert.deepEqual(await Promise.all([...writes, flush]), [0, 0, 0, 0, 0]);
      const extents = device.status(0, SECTORS);
      await device.settle();
      assert.deepEqual(await extents, [SECTORS]);
      await device.close();
      const expected = sectorsOf(0, SECTORS);
      expected.set(fresh, 5 * SECTOR);
      expected.fill(0, 100 * SECTOR, 14100 * SECTOR);
      assert.deepEqual(Deno.readFileSync(path), expected);
      assert.deepEqual(device.log, []);
    }));
}

Deno.test("it takes nothing of the disk queue", () =>
  withDevice("library", async (device) => {
    const { queue } = device.context;
    assert.ok(queue.reserve(queue.capacity));
    const read = device.read(0, 512);
    await device.settle();
    assert.deepEqual(await read, sectorsOf(0, 512));
    queue.release(queue.capacity);
    await device.close();
  }));

Deno.test("after a fault it is let go of when its library has ended all, not before", () =>
  withDevice("library", async (device) => {
    const { scheduler, vbd } = device;
    control.isHeld = true;
    const reads = [device.read(0, 64), device.read(64, 64), device.read(128, 64)];
    scheduler.addTimer(20, () => {
      control.throwNext = true;
      scheduler.addTimer(0, () => {
        try {
          control.image?.takeCompletions();
        } catch (error) {
          vbd.fault(error);
        }
      });
    });
    await device.settle();
    assert.deepEqual(await Promise.all(reads), [Errno.EIO, Errno.EIO, Errno.EIO]);
    scheduler.addTimer(100, () => scheduler.stop());
    await scheduler.run();
    assert.equal(control.image?.pending, 2);
    assert.equal(control.abandoned, 0);
    control.isHeld = false;
    control.image?.takeCompletions();
    scheduler.addTimer(100, () => scheduler.stop());
    await scheduler.run();
    assert.equal(control.image?.pending, 0);
    assert.equal(control.abandoned, 1);
    assert.ok(device.log.some((line) => line.includes("A fault of the driver")));
    const first = control.image;
    let resumed = false;
    vbd.resume(null, (error) => resumed = error === null);
    assert.ok(resumed);
    assert.notEqual(control.image, first);
    const again = device.read(0, 8);
    await device.settle();
    assert.deepEqual(await again, sectorsOf(0, 8));
    await device.close();
  }));
