import assert from "node:assert/strict";
import { noXen } from "../support/xen/played_xen.ts";
import { closeFile } from "../../ffi/files.ts";
import { Arena, PAGE_BYTES } from "../../ffi/memory.ts";
import { Devices, type DevicesHost } from "../../src/control/daemon/devices.ts";
import { allocateMinor, holdMinor } from "../../src/control/minors/minors.ts";
import { NbdServer } from "../../src/frontend/nbd/server.ts";
import { Logger } from "../../src/log/log.ts";
import { openDescriptors } from "../support/served.ts";
import { NbdClient } from "../support/nbd_client.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";

/** Takes all address space for I/O; returns a function that releases it. */
function takeAllMemory(): () => void {
  const taken: Arena[] = [];
  for (let sizeBytes = 2 ** 30; sizeBytes >= PAGE_BYTES;) {
    try {
      taken.push(new Arena(sizeBytes));
    } catch {
      sizeBytes /= 2;
    }
  }
  return () => {
    for (const arena of taken.splice(0)) arena.release();
  };
}

async function withFullMemory(body: () => Promise<void>): Promise<void> {
  const giveBack = takeAllMemory();
  try {
    assert.throws(() => new Arena(PAGE_BYTES), { code: "ENOMEM" });
    await body();
  } finally {
    giveBack();
  }
}

Deno.test("I/O memory used up: clients of an open disk are served all the same", async () => {
  await withTempDir(async (folder) => {
    const device = new RealDevice("ram:4096");
    const socket = `${folder}/nbd`;
    const server = new NbdServer(device.scheduler, device.vbd, { newstyle: socket }, () => {});
    const running = device.scheduler.run();
    await withFullMemory(async () => {
      for (let i = 0; i < 3; i++) {
        const { client } = await NbdClient.open(socket, { structured: true });
        await client.write(0, new Uint8Array(4096).fill(i));
        assert.deepEqual(await client.read(0, 4096), new Uint8Array(4096).fill(i));
        await client.disconnect();
      }
    });
    device.scheduler.stop();
    await running;
    server.close();
    await device.close();
    device.vbd.destroy();
  });
});

Deno.test("I/O memory used up: a failed attach lets go of its minor", async () => {
  await withTempDir(async (folder) => {
    Deno.env.set("BLKTAP_CONTROL_DIR", `${folder}/control`);
    const device = new RealDevice("ram:4096");
    const host: DevicesHost = {
      scheduler: device.scheduler,
      contextOf: () => device.context,
      frontends: [],
      makers: [],
      log: new Logger([]),
      emptied: () => {},
      runExclusive: (_minor, job) => job(() => {}),
      failed: () => {},
      xen: noXen,
      processors: () => ({ idle: 0, all: 0 }),
    };
    const devices = new Devices(host);
    const minor = allocateMinor();
    const before = openDescriptors(Deno.pid);
    await withFullMemory(() => {
      assert.throws(() => devices.attach(minor), { code: "ENOMEM" });
      return Promise.resolve();
    });
    assert.deepEqual(devices.list(), []);
    assert.equal(openDescriptors(Deno.pid), before);
    closeFile(holdMinor(minor));
    devices.attach(minor);
    devices.detach(minor);
    await device.close();
    device.vbd.destroy();
    Deno.env.delete("BLKTAP_CONTROL_DIR");
  });
});
