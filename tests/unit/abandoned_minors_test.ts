import assert from "node:assert/strict";
import { noXen } from "../support/xen/played_xen.ts";
import { Devices } from "../../src/control/daemon/devices.ts";
import { Room } from "../../src/control/daemon/room.ts";
import { allocateMinor, freeMinor } from "../../src/control/minors/minors.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import { Logger } from "../../src/log/log.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";

const DELAY_MS = 50;

Deno.test("after a signal, minors that never had an image are detached, and no others", () =>
  withTempDir(async (folder) => {
    Deno.env.set("BLKTAP_CONTROL_DIR", `${folder}/control`);
    const real = new RealDevice("ram:1");
    const { scheduler } = real;
    const log = new Logger([]);
    let idle = 0;
    const room: Room = new Room({
      ...{ scheduler, log, disks: 8, idleMs: 1 },
      attached: () => devices.count,
      idle: () => void idle++,
    });
    const devices: Devices = new Devices({
      ...{ room, scheduler, log, frontends: [], makers: [], xen: noXen },
      contextOf: () => real.context,
      emptied: () => {},
      runExclusive: (_minor, job) => job(() => {}),
      failed: () => {},
      processors: () => ({ idle: 0, all: 0 }),
    });
    const [abandoned, late, closed, other] = Array.from({ length: 4 }, () => allocateMinor());
    const open = (minor: number): void => {
      const request = { ...OPEN_DEFAULTS, image: "ram:1", device: "none" as const };
      devices.find(minor, "open").open({ request }, (...[error]) => assert.equal(error, null));
    };
    const run = async (ms: number): Promise<void> => {
      scheduler.addTimer(ms, () => scheduler.stop());
      await scheduler.run();
    };
    for (const minor of [abandoned, late, closed]) devices.attach(minor);
    open(closed);
    devices.find(closed, "close").close({ force: false }, () => {});
    await run(1);
    devices.detachAbandoned(DELAY_MS);
    // Its caller was slow, and one came after the signal.
    open(late);
    devices.attach(other);
    await run(2 * DELAY_MS);
    assert.deepEqual(devices.list().map(({ minor }) => minor), [late, closed, other]);
    freeMinor(abandoned);

    devices.find(late, "close").close({ force: false }, () => {});
    await run(1);
    for (const minor of [late, closed, other]) devices.detach(minor);
    assert.equal(room.kept, 0);
    await run(20);
    assert.equal(idle, 1);
    await real.close();
    real.vbd.destroy();
    Deno.env.delete("BLKTAP_CONTROL_DIR");
  }));
