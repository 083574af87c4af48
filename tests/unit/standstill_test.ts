/**
 * The moment in which a process hands its disks over.
 *
 * @module
 */
import assert from "node:assert/strict";
import { EPOLLIN } from "../../ffi/epoll.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { sendAt, socketPair } from "../../ffi/sockets.ts";
import { Devices } from "../../src/control/daemon/devices.ts";
import { Standstill } from "../../src/control/handover/standstill.ts";
import { Logger } from "../../src/log/log.ts";
import { RealDevice } from "../support/real_device.ts";
import { PlayedXen } from "../support/xen/played_xen.ts";
import { realEvents } from "../support/xen/guest_tapdisk.ts";

Deno.test("without a disk that runs, it is reached behind all events of the turn", async () => {
  const real = new RealDevice("ram:4");
  const { scheduler, context } = real;
  const log = new Logger([]);
  const devices = new Devices({
    ...{ scheduler, contextOf: () => context, frontends: [], makers: [] },
    ...{ log, emptied: () => {}, failed: () => {} },
    runExclusive: (_minor, job) => job(() => {}),
    xen: new PlayedXen(realEvents()),
    processors: () => ({ idle: 0, all: 0 }),
  });
  const seen: string[] = [];
  const reached = (): void => {
    seen.push("reached");
    scheduler.stop();
  };
  const owner = { failed: false, fault: assert.fail };
  const standstill = new Standstill({
    ...{ scheduler, log, devices, owner, reached },
    requireReady: () => {},
    failed: assert.fail,
  });
  // Two descriptors are ready in one turn; the first one begins it.
  const pairs = [socketPair(), socketPair()];
  for (const [fd, other] of pairs) {
    sendAt(other, addressOf(new Uint8Array(1)), 1);
    scheduler.watch(fd, EPOLLIN, {
      ready(): void {
        scheduler.unwatch(fd);
        seen.push("event");
        if (seen.length === 1) standstill.begin();
      },
    });
  }
  await scheduler.run();
  assert.deepEqual(seen, ["event", "event", "reached"]);
  standstill.end(() => scheduler.stop());
  for (const fd of pairs.flat()) closeFile(fd);
  await real.close();
});
