/**
 * The record of a minor: whatever the moment at which its writer is killed, there is a whole one; and a process that
 * is to take a device over leaves it alone until it serves.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Devices } from "../../src/control/daemon/devices.ts";
import {
  type MinorRecord,
  readMinorRecord,
  writeMinorRecord,
} from "../../src/control/minors/minor_record.ts";
import { allocateMinor, freeMinor, listMinors } from "../../src/control/minors/minors.ts";
import { minorPath, minorRecordPath } from "../../src/control/paths.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import type { BlockDevice, DeviceMaker } from "../../src/frontend/block_device.ts";
import { Logger } from "../../src/log/log.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";
import { PlayedXen } from "../support/xen/played_xen.ts";
import { realEvents } from "../support/xen/guest_tapdisk.ts";

const IMAGE = "ram:4";
const SERVED = {
  ...{ addresses: ["127.0.0.1"], port: 10809, name: "disk" },
  tls: { mode: "off", certificates: null, psk: null, verifyPeer: false },
  ...{ maxClients: 9, maxClientsPerAddress: 9 },
} as const;

function recordTest(
  name: string,
  body: (minor: number, record: MinorRecord, folder: string) => void | Promise<void>,
): void {
  Deno.test(`minor record: ${name}`, () =>
    withTempDir(async (folder) => {
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        const node = `${folder}/node`;
        Deno.writeTextFileSync(node, "");
        const serve = [SERVED];
        const record = { ...OPEN_DEFAULTS, image: IMAGE, serve, node, encrypted: false };
        await body(allocateMinor(), { ...record, device: "nbd" }, folder);
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      }
    }));
}

recordTest("a writer that is killed leaves the record before or the new one", (minor, record) => {
  const path = minorPath(minor);
  const { ino } = Deno.statSync(path);
  writeMinorRecord(minor, record);
  const first = Deno.readTextFileSync(path);
  const later = { ...record, readOnly: true };
  const second = `${JSON.stringify(later)}\n`;
  // It was killed while it wrote the file beside, and then at each place of the file itself.
  Deno.writeTextFileSync(`${minorRecordPath(minor)}.draft`, second.slice(0, 40));
  assert.deepEqual(readMinorRecord(minor), record);
  Deno.writeTextFileSync(minorRecordPath(minor), second);
  assert.deepEqual(readMinorRecord(minor), record);
  for (const cut of [0, 1, 40, second.length - 2]) {
    Deno.writeTextFileSync(path, second.slice(0, cut));
    assert.deepEqual(readMinorRecord(minor), later, `${cut}`);
  }
  writeMinorRecord(minor, record);
  assert.equal(Deno.readTextFileSync(path), first);
  assert.equal(Deno.statSync(path).ino, ino, "a lock of the file would be lost");
  Deno.writeTextFileSync(minorRecordPath(minor), second);
  writeMinorRecord(minor, null);
  assert.equal(readMinorRecord(minor), null, "what is over comes back");
});

recordTest("nothing is left of a minor that was freed", (minor, record, folder) => {
  writeMinorRecord(minor, record);
  Deno.writeTextFileSync(minorRecordPath(minor), JSON.stringify(record));
  Deno.writeTextFileSync(`${minorRecordPath(minor)}.draft`, "{");
  assert.deepEqual(listMinors(), [minor]);
  Deno.removeSync(record.node);
  freeMinor(minor);
  assert.deepEqual([...Deno.readDirSync(`${folder}/tapdisk`)], []);
  assert.equal(allocateMinor(), minor);
  Deno.writeTextFileSync(record.node, "");
  assert.equal(readMinorRecord(minor), null);
});

recordTest("without room for the file beside, no record of before stays", (minor, record) => {
  writeMinorRecord(minor, record);
  const draft = `${minorRecordPath(minor)}.draft`;
  Deno.mkdirSync(`${draft}/full`, { recursive: true });
  const later = { ...record, readOnly: true };
  writeMinorRecord(minor, later);
  assert.deepEqual(readMinorRecord(minor), later);
  // A file beside it that an earlier process has left is not the record any more.
  Deno.writeTextFileSync(minorRecordPath(minor), JSON.stringify(record));
  Deno.removeSync(minorPath(minor));
  Deno.mkdirSync(minorPath(minor));
  assert.throws(() => writeMinorRecord(minor, later));
  assert.equal(readMinorRecord(minor), null);
  Deno.removeSync(minorPath(minor));
  Deno.removeSync(draft, { recursive: true });
});

recordTest("a minor that is allocated has no record", (minor, record) => {
  // A version freed it that does not know of the file beside.
  Deno.writeTextFileSync(minorRecordPath(minor), JSON.stringify(record));
  Deno.removeSync(minorPath(minor));
  assert.equal(allocateMinor(), minor);
  assert.equal(readMinorRecord(minor), null);
});

function deviceAt(node: string): BlockDevice {
  return {
    ...{ kind: "nbd", node, outlives: true, resized: () => true, abandon() {} },
    detach: (ended) => ended(null),
  };
}

/** Goes on with a device that there is. */
const maker: DeviceMaker = {
  kind: "nbd",
  missing: () => null,
  attach: () => assert.fail("A new device is made"),
  adopt: (_host, node, done) => done(null, deviceAt(node)),
};

function devicesOf({ scheduler, context }: RealDevice, maker: DeviceMaker): Devices {
  return new Devices({
    ...{ scheduler, contextOf: () => context, frontends: [], makers: [maker] },
    ...{ log: new Logger([]), emptied: () => {}, failed: () => {} },
    runExclusive: (_minor, job) => job(() => {}),
    xen: new PlayedXen(realEvents()),
    processors: () => ({ idle: 0, all: 0 }),
  });
}

/** Runs a step, and the loop until it has ended. */
async function runOn(
  { scheduler }: RealDevice,
  step: (done: () => void) => void,
): Promise<void> {
  step(() => scheduler.addTimer(0, () => scheduler.stop()));
  await scheduler.run();
}

recordTest("one that was written in part goes with its device", async (minor, record) => {
  const real = new RealDevice(IMAGE);
  const attach: DeviceMaker["attach"] = (_host, _recover, done) =>
    done(null, deviceAt(record.node));
  const devices = devicesOf(real, { ...maker, attach });
  devices.attach(minor);
  const device = devices.find(minor, "open");
  const path = minorPath(minor);
  Deno.renameSync(path, `${path}.away`);
  Deno.mkdirSync(path);
  const { node: _node, encrypted: _encrypted, ...request } = record;
  await runOn(
    real,
    (done) =>
      device.open({ request: { ...request, serve: [] } }, (error, _disk) => {
        assert.equal(error, null);
        done();
      }),
  );
  Deno.removeSync(path);
  Deno.renameSync(`${path}.away`, path);
  assert.notEqual(readMinorRecord(minor), null, "nothing was written");
  await runOn(real, (done) => device.close({ force: true }, () => done()));
  assert.equal(readMinorRecord(minor), null);
  devices.detach(minor);
  await real.close();
});

recordTest("one that is to take over leaves it until it serves", async (minor, record) => {
  const real = new RealDevice(IMAGE);
  const devices = devicesOf(real, maker);
  writeMinorRecord(minor, record);
  devices.attach(minor);
  const device = devices.find(minor, "open");
  const { node: _node, encrypted: _encrypted, ...request } = record;
  await runOn(
    real,
    (done) =>
      device.open({ request: { ...request, serve: [] }, adopt: true }, (error, _disk) => {
        assert.equal(error, null);
        done();
      }),
  );
  assert.deepEqual(readMinorRecord(minor), record, "it ends now, and the old process serves on");
  device.servedHere();
  assert.deepEqual(readMinorRecord(minor)?.serve, []);
  await runOn(real, (done) => device.close({ force: true }, () => done()));
  devices.detach(minor);
  await real.close();
});
