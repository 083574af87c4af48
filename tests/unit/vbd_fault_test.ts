import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";

Deno.test("a fault while a resume waits for a server fails the device, which can resume then", () =>
  withTempDir(async (dir) => {
    const path = `${dir}/disk.raw`;
    Deno.writeFileSync(path, new Uint8Array(1 << 20));
    // A server that never accepts, so its client waits.
    const server = Deno.listen({ transport: "unix", path: `${dir}/server` });
    const device = new RealDevice(`aio:${path}`);
    const { vbd, scheduler } = device;
    try {
      const ends: unknown[] = [];
      vbd.pause((error) => {
        ends.push(error?.errno ?? null);
        vbd.resume(`nbd:unix:${dir}/server`, (error) => ends.push(error?.errno ?? null));
        scheduler.addTimer(20, () => {
          throw new Error("A fault of the test");
        }, vbd);
      });
      vbd.whenFailed = () => void scheduler.addTimer(0, () => scheduler.stop());
      await scheduler.run();
      assert.deepEqual([...ends], [null, Errno.ECANCELED]);
      assert.deepEqual([vbd.phase, vbd.failed], ["failed", true]);
      vbd.resume(null, (error) => ends.push(error?.errno ?? null));
      assert.deepEqual([ends.at(-1), vbd.phase, vbd.failed], [null, "open", false]);
      const read = device.read(0, 8);
      await device.settle();
      assert.deepEqual(await read, new Uint8Array(4096));
    } finally {
      server.close();
      await device.close();
    }
  }));
