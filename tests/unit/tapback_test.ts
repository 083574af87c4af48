/** tapback on a played Xen host: each life of a device, step by step. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import type { DeviceEvent } from "../../src/tapback/device_events.ts";
import { DeviceMachine } from "../../src/tapback/machine.ts";
import { observe } from "../../src/tapback/observation.ts";
import { type PlayedDevice, PlayedHost } from "../support/xen/played_host.ts";

Deno.test("tapback: a device goes from its first node to its last one", () => {
  const host = new PlayedHost(1);
  const device = host.add(3, 51712);
  device.plug();
  device.isAwake = false;
  host.run(1000);
  // libxl waits for this state before it runs the script.
  assert.deepEqual([device.backState, device.get("max-ring-page-order")], [2, "3"]);
  device.isAwake = true;
  host.run(1000);
  assert.deepEqual([device.frontState, device.backState], [3, 2]);
  device.attach(8192);
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  const values = ["sectors", "sector-size", "info", "kthread-pid", "feature-barrier"];
  assert.deepEqual(values.map((name) => device.get(name)), ["8192", "512", "0", "1000", "1"]);
  const features = ["feature-flush-cache", "feature-discard", "feature-max-indirect-segments"];
  assert.deepEqual(features.map((name) => device.get(name)), ["1", "1", "256"]);
  device.requestUnplug();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [6, 6]);
  device.remove();
  host.rest();
  assert.match(host.lines.at(-1) ?? "", /Device 51712 of domain 3: Ends/);
  assert.equal([...host.store.nodes.keys()].filter((path) => path.includes("51712")).length, 0);
});

Deno.test("tapback: a disk that is ready before the guest waits for it", () => {
  const host = new PlayedHost(2);
  const device = host.add(3, 51712);
  device.isAwake = false;
  device.plug({ mode: "r", "device-type": "cdrom" });
  device.attach();
  host.rest();
  assert.deepEqual([device.backState, host.tapdisks.holders(device.guest)], [2, []]);
  device.isAwake = true;
  host.rest();
  assert.deepEqual([device.backState, device.get("info")], [4, "5"]);
});

Deno.test("tapback: a guest that unloads its driver and loads it again gets its disk again", () => {
  const host = new PlayedHost(3);
  const device = host.addConnected(3, 51712);
  for (let round = 0; round < 3; round++) {
    device.frontState = 5;
    host.rest();
    assert.deepEqual([device.frontState, device.backState], [6, 6]);
    device.frontState = 1;
    host.rest();
    assert.deepEqual([device.frontState, device.backState], [4, 4]);
  }
});

Deno.test("tapback: a guest that crashed begins again; one that resumes has another ring", () => {
  const host = new PlayedHost(4);
  const device = host.addConnected(3, 51712);
  device.frontState = 1;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  // Resumed in the same domain.
  device.makeRing();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  const ring = host.tapdisks.processes.get(device.pid)?.rings.get("3/51712")?.ring;
  assert.equal(ring?.references[0], 300);
});

Deno.test("tapback: a domain that is destroyed has its devices closed, with their rings", () => {
  const host = new PlayedHost(5);
  const devices = [host.addConnected(3, 51712), host.addConnected(3, 51728)];
  const other = host.addConnected(4, 51712);
  host.store.remove("/local/domain/3");
  host.rest();
  assert.deepEqual(devices.map(({ backState }) => backState), [6, 6]);
  assert.deepEqual([other.frontState, other.backState], [4, 4]);
  // All of the domain goes at once.
  host.store.remove("/local/domain/0/backend/vbd3/3");
  host.rest();
  assert.equal(host.lines.filter((line) => line.endsWith("Ends")).length, 2);
});

Deno.test("tapback: a device that is removed at once loses its ring", () => {
  const host = new PlayedHost(6);
  const device = host.addConnected(3, 51712);
  host.store.remove(device.back);
  host.rest();
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  // And it may come again at once.
  device.remove();
  device.plug();
  device.attach();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: a disk in use stays connected while the toolstack asks for its end", () => {
  const host = new PlayedHost(7);
  const device = host.addConnected(3, 51712);
  device.isInUse = true;
  device.requestUnplug();
  host.run(20_000);
  assert.deepEqual([device.frontState, device.backState], [5, 5]);
  assert.deepEqual(host.tapdisks.holders(device.guest), [device.pid]);
  device.isInUse = false;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [6, 6]);
});

Deno.test("tapback: a device that the guest never used is closed at once", () => {
  const host = new PlayedHost(8);
  const device = host.add(3, 51712);
  device.isAwake = false;
  device.plug();
  device.attach();
  host.rest();
  device.requestUnplug();
  host.run(1000);
  assert.deepEqual([device.frontState, device.backState], [1, 6]);
});

Deno.test("tapback: a disk that grows is told to the guest, which stays connected", () => {
  const host = new PlayedHost(9);
  const device = host.addConnected(3, 51712, { sectors: 2048 });
  device.resize(4096);
  host.rest();
  assert.deepEqual([device.guestSectors, device.backState], [4096, 4]);
});

Deno.test("tapback: an empty drive gets a medium, another one, and none", () => {
  const host = new PlayedHost(10);
  const nodes = { "device-type": "cdrom", mode: "r" };
  const device = host.add(3, 51712);
  device.plug(nodes);
  device.put({ "physical-device-path": "", "hotplug-status": "connected" });
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [3, 2]);
  device.attach(1000);
  host.rest();
  assert.deepEqual([device.guestSectors, device.backState], [1000, 4]);
  const [old] = host.tapdisks.holders(device.guest);
  device.put({ "physical-device-path": "" });
  host.run(5000);
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  device.attach(3000);
  host.rest();
  assert.deepEqual([device.guestSectors, device.backState], [3000, 4]);
  assert.notEqual(device.pid, old);
});

Deno.test("tapback: a tapdisk dies, and another one takes over the disk with the guest's ring", () => {
  const host = new PlayedHost(11);
  const device = host.addConnected(3, 51712);
  const other = host.addConnected(4, 51712);
  const sectors = device.sectors;
  host.tapdisks.kill(device.pid);
  host.run(30_000);
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  host.tapdisks.start(++device.pid + 500, device.minor, sectors);
  device.pid += 500;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  const path = `/run/blktap-control/nbd${device.pid}.${device.minor}`;
  assert.deepEqual([device.get("physical-device-path"), device.get("pid")], [
    path,
    `${device.pid}`,
  ]);
  assert.deepEqual([other.frontState, other.backState], [4, 4]);
});

Deno.test("tapback: another process takes a tapdisk's disk over, with the guest's ring", () => {
  const host = new PlayedHost(41);
  const device = host.addConnected(3, 51712);
  const { tapdisks } = host;
  const ringNode = (): string => device.get("tapback-ring") ?? "";
  const [, ring] = ringNode().split(/ (.*)/);
  const calls = [tapdisks.connects, tapdisks.disconnects];
  const replace = (times: number): void => {
    for (let i = 0; i < times; i++) {
      tapdisks.handOver(device.pid, host.nextPid);
      device.pid = host.nextPid++;
    }
  };
  const check = (): void => {
    host.rest();
    assert.deepEqual([device.frontState, device.backState], [4, 4]);
    const path = `/run/blktap-control/nbd${device.pid}.${device.minor}`;
    assert.deepEqual(
      [device.get("physical-device-path"), device.get("pid"), device.get("kthread-pid")],
      [path, `${device.pid}`, `${device.pid}`],
    );
    assert.equal(ringNode(), `${device.pid}.${device.minor} ${ring}`);
  };
  replace(1);
  check();
  replace(3);
  check();
  assert.deepEqual([tapdisks.connects, tapdisks.disconnects], calls, "the ring stays where it is");
  // A tapback that starts later finds the ring there.
  host.stop();
  replace(2);
  host.start();
  check();
  assert.equal(tapdisks.disconnects, calls[1]);
  assert.deepEqual(tapdisks.holders(device.guest), [device.pid]);
  // The ring is its own: the device ends as any other.
  device.requestUnplug();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [6, 6]);
  assert.deepEqual(tapdisks.holders(device.guest), []);
});

Deno.test("tapback: the number of a freed minor is another guest's disk", () => {
  const host = new PlayedHost(29);
  const device = host.addConnected(3, 51712);
  const { minor } = device;
  host.tapdisks.kill(device.pid);
  // The administrator ends what is left of it. The next disk gets the lowest number that is free.
  host.tapdisks.free(minor);
  host.tapdisks.start(5000, minor, 9999);
  host.run(30_000);
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  assert.equal(device.get("kthread-pid"), String(device.pid));
  // Numbers of processes come again, too.
  host.tapdisks.start(device.pid, minor, 9999);
  host.run(30_000);
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  host.tapdisks.kill(device.pid);
  // A tapback that starts then does not know better.
  host.stop();
  host.start();
  host.run(30_000);
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  // Only the toolstack can say that it is the disk.
  device.pid = 5000;
  device.point();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: it starts again under running guests, which do not notice", () => {
  const host = new PlayedHost(12);
  const device = host.addConnected(3, 51712);
  const gone = host.addConnected(3, 51728);
  const again = host.addConnected(3, 51744);
  const removed = host.addConnected(3, 51760);
  host.stop();
  gone.frontState = 6;
  again.makeRing();
  removed.requestUnplug();
  host.run(1000);
  let writes = 0;
  const check = host.store.changed;
  host.store.changed = (path, value) => {
    if (path.startsWith(`${device.back}/`)) writes++;
    check(path, value);
  };
  host.start();
  host.rest();
  assert.deepEqual([device.frontState, device.backState, writes], [4, 4, 0]);
  assert.deepEqual([gone.frontState, gone.backState], [6, 6]);
  assert.deepEqual([again.frontState, again.backState], [4, 4]);
  const rings = host.tapdisks.processes.get(again.pid)?.rings;
  assert.equal(rings?.get("3/51744")?.ring.port, 2);
  assert.deepEqual([removed.frontState, removed.backState], [6, 6]);
});

Deno.test("tapback: a guest has begun again with the same numbers before tapback starts", () => {
  const host = new PlayedHost(31);
  const device = host.addConnected(3, 51712);
  const rings = host.tapdisks.processes.get(device.pid)?.rings;
  const old = rings?.get("3/51712");
  host.stop();
  device.frontState = 3;
  device.isAwake = false;
  host.run(1000);
  host.start();
  host.run(1000);
  device.isAwake = true;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  assert.deepEqual(rings?.get("3/51712")?.ring, old?.ring);
  assert.notEqual(rings?.get("3/51712"), old);
});

Deno.test("tapback: a guest begins again while a tapdisk is asked for the ring before", () => {
  const guest = { domain: 3, device: 51712 };
  const [back, front] = ["backend/vbd3/3/51712", "/local/domain/3/device/vbd/51712"];
  const nodes: Record<string, string> = {
    [`${back}/frontend`]: front,
    [`${back}/state`]: "4",
    [`${back}/mode`]: "w",
    [`${back}/hotplug-status`]: "connected",
    [`${back}/physical-device-path`]: "/run/blktap-control/nbd1000.2",
    [`${back}/tapback-ring`]: `1000.2 8 5 ${BlkifProtocol.Native}`,
    [`${front}/state`]: "4",
    [`${front}/ring-ref`]: "8",
    [`${front}/event-channel`]: "5",
    [`${front}/protocol`]: "x86_64-abi",
  };
  const machine = new DeviceMachine(guest, { barrier: true });
  const step = (event: DeviceEvent): string[] => machine.step(event).map(({ kind }) => kind);
  const seen = (): DeviceEvent => ({
    kind: "seen",
    seen: observe((path) => nodes[path] ?? null, back, guest),
  });
  const disk = { pid: 1000, minor: 2, major: null };
  const info = { sectors: 8192, sectorSizeBytes: 512, info: 0 };
  assert.deepEqual(step(seen()), ["find", "write"]);
  const found = step({ kind: "found", disk, found: { ...disk, info, file: "", ringFeatures: ~0 } });
  assert.equal(found.at(-1), "connect");
  nodes[`${front}/state`] = "3";
  assert.deepEqual(step(seen()), []);
  // The tapdisk has the ring that the guest has left.
  assert.equal(step({ kind: "connected", errno: 114 }).at(-1), "disconnect");
  assert.equal(step({ kind: "disconnected", errno: 0 }).at(-1), "connect");
  assert.equal(step({ kind: "connected", errno: 0 }).at(-1), "write");
});

Deno.test("tapback: a xenstored that drops the connection is found again", () => {
  const host = new PlayedHost(13);
  const device = host.addConnected(3, 51712);
  host.dropConnections();
  host.run(10);
  const other = host.addConnected(3, 51728);
  device.frontState = 5;
  host.rest();
  assert.deepEqual([device.backState, other.backState], [6, 4]);
  assert.ok(host.lines.some((line) => /Connected to xenstored again/.test(line)));
});

Deno.test("tapback: a xenstored that lost its nodes takes no guest's ring away", () => {
  const host = new PlayedHost(25);
  const device = host.addConnected(3, 51712);
  const nodes = new Map(host.store.nodes);
  host.dropConnections();
  host.store.nodes = new Map([["/", ""]]);
  host.run(20_000);
  assert.deepEqual(host.tapdisks.holders(device.guest), [device.pid]);
  assert.ok(host.lines.some((line) => /xenstored has lost its nodes/.test(line)));
  // The toolstack writes them again, and then removes the device.
  host.store.write(Object.fromEntries([...nodes].filter(([path]) => path.includes("/51712"))));
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  device.remove();
  host.rest();
  assert.match(host.lines.at(-1) ?? "", /Ends/);
});

Deno.test("tapback: a device that was made again at once gets its ring again", () => {
  const host = new PlayedHost(26);
  const device = host.add(3, 51712);
  device.plug();
  device.attach();
  device.isAwake = false;
  host.run(1000);
  device.makeRing();
  host.run(1000);
  assert.deepEqual([device.frontState, device.backState], [3, 4]);
  const rings = host.tapdisks.processes.get(device.pid)?.rings;
  const old = rings?.get("3/51712");
  assert.ok(old !== undefined);
  // All at once, with a ring that has the same numbers.
  const front = [...host.store.nodes].filter(([path]) => path.startsWith(`${device.front}/ring`));
  host.store.remove(device.back);
  host.store.remove(device.front);
  device.plug({ state: "2" });
  device.point();
  device.put({ "hotplug-status": "connected" });
  host.store.write(Object.fromEntries(front));
  device.putFront({ "event-channel": String(old.ring.port), protocol: "x86_64-abi", state: "3" });
  device.isAwake = true;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  assert.deepEqual(rings?.get("3/51712")?.ring, old.ring);
  assert.notEqual(rings?.get("3/51712"), old);
});

Deno.test("tapback: a tapdisk that does not answer delays no other device", () => {
  const host = new PlayedHost(14);
  const stuck = host.add(3, 51712);
  stuck.plug();
  host.tapdisks.silent.add(host.nextPid);
  stuck.attach();
  host.run(1000);
  assert.deepEqual([stuck.frontState, stuck.backState], [3, 2]);
  host.addConnected(3, 51728);
  host.addConnected(4, 51712);
});

Deno.test("tapback: nodes of a guest that make no sense are not used", () => {
  const long = "9".repeat(4000);
  const wrong: Record<string, string>[] = [
    { "ring-page-order": "4" },
    { "ring-page-order": "-1" },
    { "ring-page-order": long },
    { "ring-page-order": "0", "ring-ref": "" },
    { "ring-page-order": "0", "ring-ref": "4294967296" },
    { "ring-page-order": "0", "ring-ref": "0x10" },
    { "event-channel": "-5" },
    { "event-channel": "1 2" },
    { "protocol": "arm-abi" },
    { "protocol": long },
    { state: "9" },
    { state: long },
    { state: "" },
    { state: "4\u0000" },
  ];
  for (const [index, nodes] of wrong.entries()) {
    const host = new PlayedHost(100 + index);
    const device = host.add(3, 51712);
    const other = host.add(4, 51712);
    other.plug();
    other.attach();
    device.isAwake = false;
    device.plug();
    device.attach();
    host.run(100);
    device.makeRing();
    device.putFront(nodes);
    host.run(20_000);
    assert.deepEqual([device.backState, other.backState], [2, 4], JSON.stringify(nodes));
    assert.deepEqual(host.tapdisks.holders(device.guest), []);
    assert.ok(host.lines.every((line) => line.length < 400));
    // The guest comes to its senses.
    device.isAwake = true;
    device.frontState = 1;
    host.rest();
    assert.deepEqual([device.frontState, device.backState], [4, 4], JSON.stringify(nodes));
  }
});

Deno.test("tapback: nodes that vanish, and names that are no devices", () => {
  const host = new PlayedHost(15);
  const device = host.addConnected(3, 51712);
  host.store.remove(`${device.front}/ring-ref`);
  host.store.remove(`${device.front}/event-channel`);
  host.store.write({
    "/local/domain/0/backend/vbd3/x/1": "",
    "/local/domain/0/backend/vbd3/3/abc/frontend": "/local/domain/3/device/vbd/abc",
    "/local/domain/0/backend/vbd3/3/007/frontend": "/local/domain/3/device/vbd/007",
    "/local/domain/0/backend/vbd3/3/99999999999/frontend": "/x",
    "/local/domain/0/backend/vbd3/5/1/frontend": "nonsense",
    "/local/domain/0/backend/vbd3/5/2/frontend": "/a b/c",
    "/local/domain/0/backend/vbd3/5/3/frontend": "",
    "/local/domain/0/backend/vbd3/5/4/nothing": "",
  });
  for (const name of [1, 2, 3]) host.add(5, name);
  host.run(20_000);
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  host.addConnected(6, 51712);
});

Deno.test("tapback: a device whose writes are refused is tried again, and disturbs no other", () => {
  const host = new PlayedHost(16);
  let isRefused = true;
  host.store.beforeRequest = ({ type, payload }) => {
    const path = new TextDecoder().decode(payload);
    if (isRefused && type === 11 && path.includes("/3/51712/")) {
      throw host.store.error("ENOSPC");
    }
  };
  const device = host.add(3, 51712);
  device.plug();
  device.attach();
  host.addConnected(4, 51712);
  assert.equal(device.backState, 1);
  isRefused = false;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: a device whose transactions are always in vain delays no other", () => {
  const host = new PlayedHost(30);
  const device = host.add(3, 51712);
  let isBusy = true;
  let tries = 0;
  host.store.beforeRequest = ({ type, transaction, payload }) => {
    const path = new TextDecoder().decode(payload);
    if (!isBusy || type !== 2 || transaction === 0 || !path.includes("/3/51712/frontend")) return;
    tries++;
    // Another client writes what was read.
    device.put({ frontend: device.front });
  };
  device.plug();
  device.attach();
  host.run(1000);
  const other = host.add(4, 51712);
  other.plug();
  other.attach();
  host.run(1000);
  assert.deepEqual([other.frontState, other.backState, device.backState], [4, 4, 1]);
  // Each change of the other client is one more reason to look, 64 times and then 20 times a second.
  assert.ok(tries > 16 && tries < 2000, `${tries} tries`);
  isBusy = false;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: of one domain only, until that has no devices", () => {
  const host = new PlayedHost(17, 3);
  const other = host.add(4, 51712);
  other.plug();
  other.attach();
  const device = host.addConnected(3, 51712);
  assert.equal(other.backState, 1);
  host.store.remove("/local/domain/0/backend/vbd3/3");
  host.run(5000);
  assert.deepEqual([host.hasEnded, device.exists, host.ringsAtEnd], [true, false, 0]);
});

Deno.test("tapback: another tapdisk than this project's is offered what it has", () => {
  const host = new PlayedHost(18);
  host.tapdisks.features = 0;
  const device = host.addConnected(3, 51712);
  const names = [
    "feature-barrier",
    "feature-flush-cache",
    "feature-discard",
    "discard-granularity",
  ];
  assert.deepEqual(names.map((name) => device.get(name)), ["1", "0", undefined, undefined]);
  // It would begin at the start of a ring that is in use. The guest must connect again.
  device.recover();
  host.run(30_000);
  assert.deepEqual([device.backState, host.tapdisks.holders(device.guest)], [4, []]);
  assert.ok(host.lines.some((line) => /Its guest must connect again: tapdisk 1001/.test(line)));
  device.frontState = 5;
  host.rest();
  device.frontState = 1;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
  // What was offered in front of one tapdisk is taken back in front of another.
  const mixed = host.add(5, 51712);
  host.tapdisks.features = 15;
  mixed.plug();
  mixed.attach();
  host.rest();
  host.tapdisks.features = 0;
  mixed.frontState = 5;
  host.rest();
  mixed.recover();
  mixed.frontState = 1;
  host.rest();
  const taken = ["feature-discard", "feature-max-indirect-segments", "feature-flush-cache"];
  assert.deepEqual(taken.map((name) => mixed.get(name)), ["0", "0", "0"]);
  // Restarted, tapback finds that this tapdisk has the ring.
  host.stop();
  host.start();
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: a disk that cannot be written offers no discards", () => {
  const host = new PlayedHost(19);
  const readOnly = host.addConnected(3, 51712, { nodes: { mode: "r" } });
  const refused = host.addConnected(3, 51728, { nodes: { "discard-enable": "0" } });
  const names = ["feature-discard", "info"];
  assert.deepEqual(names.map((name) => readOnly.get(name)), [undefined, "4"]);
  assert.deepEqual(names.map((name) => refused.get(name)), [undefined, "0"]);
  // A guest need not believe what it is told: its tapdisk refuses writes. xl opens all disks for writing.
  const ring = ({ pid, guest: { device } }: PlayedDevice) =>
    host.tapdisks.processes.get(pid)?.rings.get(`3/${device}`)?.ring;
  assert.deepEqual([ring(readOnly)?.isReadOnly, ring(refused)?.isReadOnly], [true, false]);
});

Deno.test("tapback: what happens while a device is looked at is taken at once", () => {
  const host = new PlayedHost(21);
  const device = host.add(3, 51712);
  device.isAwake = false;
  device.plug();
  device.attach();
  host.rest();
  let looks = 0;
  host.store.beforeRequest = ({ type, payload }) => {
    const path = new TextDecoder().decode(payload);
    // The last node that is read, long after the state of the guest.
    if (type === 2 && path.includes("/tapback-ring") && looks++ === 0) device.makeRing();
  };
  const startMs = host.scheduler.nowMs();
  device.put({ params: "looked at" });
  // Without the steps of the guests, so that nothing else wakes tapback up.
  host.scheduler.runUntil(() => device.backState === 4);
  assert.ok(host.scheduler.nowMs() - startMs < 100);
});

Deno.test("tapback: a guest that resumes connects before its new ring was seen", () => {
  const host = new PlayedHost(22);
  const device = host.addConnected(3, 51712);
  // It finds this side connected, and does not wait.
  device.makeRing();
  device.frontState = 4;
  host.rest();
  const ring = host.tapdisks.processes.get(device.pid)?.rings.get("3/51712")?.ring;
  assert.deepEqual([ring?.port, device.frontState, device.backState], [2, 4, 4]);
});

Deno.test("tapback: a guest that changes its nodes all the time costs little, and delays no other", () => {
  const host = new PlayedHost(23);
  const device = host.add(3, 51712);
  device.isAwake = false;
  device.plug();
  device.attach();
  host.run(1_000);
  let looks = 0;
  host.store.beforeRequest = ({ type, transaction, payload }) => {
    const path = new TextDecoder().decode(payload);
    if (type === 2 && transaction === 0 && path.includes("vbd3/3/51712/frontend")) looks++;
  };
  const other = host.add(4, 51712);
  const lines = host.lines.length;
  const { scheduler } = host;
  const startMs = scheduler.nowMs();
  let writes = 0;
  const write = (): void => {
    if (scheduler.nowMs() - startMs >= 10_000) return;
    writes++;
    // A ring that makes no sense, in another way each time.
    const text = String.fromCharCode(97 + writes % 26);
    device.putFront({
      "ring-page-order": "0",
      "ring-ref": text.repeat(1 + writes % 30),
      state: writes % 2 === 0 ? "3" : "4",
    });
    scheduler.addTimer(1, write);
  };
  write();
  host.run(1_000);
  other.plug();
  other.attach();
  host.run(1_000);
  assert.deepEqual([other.frontState, other.backState], [4, 4]);
  host.run(10_000);
  assert.ok(writes > 9_000 && looks < 400, `${looks} looks at ${writes} changes`);
  const warnings = host.lines.slice(lines).filter((line) => line.startsWith("warn"));
  assert.ok(warnings.length > 5 && warnings.length < 50, `${warnings.length} warnings`);
  device.isAwake = true;
  device.frontState = 1;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: a guest that begins again all the time is served less and less often", () => {
  const host = new PlayedHost(27);
  const device = host.addConnected(3, 51712);
  device.isAwake = false;
  const before = host.tapdisks.connects;
  for (let round = 0; round < 100; round++) {
    device.frontState = 1;
    host.run(100);
    device.makeRing();
    host.run(100);
  }
  const count = host.tapdisks.connects - before;
  assert.ok(count >= 15 && count <= 25, `${count} connects`);
  device.isAwake = true;
  device.frontState = 1;
  host.rest();
  assert.deepEqual([device.frontState, device.backState], [4, 4]);
});

Deno.test("tapback: a disconnect without an answer may have been done, and is asked for again", () => {
  const host = new PlayedHost(28);
  const device = host.addConnected(3, 51712);
  const ring = host.tapdisks.processes.get(device.pid)?.rings.get("3/51712")?.ring;
  device.isAwake = false;
  host.tapdisks.lostAnswers = 1;
  device.frontState = 1;
  host.run(60);
  assert.deepEqual(host.tapdisks.holders(device.guest), []);
  // The new ring has the numbers of the old one.
  device.frontState = 3;
  device.isAwake = true;
  host.rest();
  const rings = host.tapdisks.processes.get(device.pid)?.rings;
  assert.deepEqual(rings?.get("3/51712")?.ring, ring);
});

Deno.test("tapback: a device that is served is only asked for, and not read again", () => {
  const host = new PlayedHost(24);
  host.addConnected(3, 51712);
  const calls = host.tapdisks.calls;
  let requests = 0;
  host.store.beforeRequest = () => requests++;
  host.run(60_000);
  assert.equal(requests, 0);
  assert.ok(host.tapdisks.calls - calls >= 11);
});

Deno.test("tapback: a list that xenstored refuses is asked for again", () => {
  const host = new PlayedHost(20);
  host.run(100);
  let refused = 0;
  host.store.beforeRequest = ({ type }) => {
    if (type === 1 && refused++ < 3) throw host.store.error("ENOMEM");
  };
  const device = host.add(3, 51712);
  host.stop();
  device.plug();
  device.attach();
  host.start();
  host.rest();
  assert.deepEqual([device.frontState, device.backState, refused >= 3], [4, 4, true]);
});

Deno.test("tapback: whatever nodes hold, what is seen is within its limits", () => {
  const number = fc.oneof(fc.bigInt(-(2n ** 33n), 2n ** 33n), fc.integer({ min: -1, max: 9 }));
  const text = fc.option(fc.oneof(
    fc.string({ maxLength: 40 }),
    number.map(String),
    fc.constantFrom(
      "x86_32-abi",
      "x86_64-abi",
      "/local/domain/3/x",
      "a/nbd1.2",
      "fe:3",
      "connected",
    ),
  ));
  fc.assert(
    fc.property(fc.infiniteStream(text), (texts) => {
      const guest = { domain: 3, device: 51712 };
      const read = (path: string): string | null =>
        path === "b/frontend" ? "/f" : texts.next().value ?? null;
      const seen = observe(read, "b", guest);
      assert.ok(seen !== null && seen.state >= 0 && seen.state <= 8);
      const { frontend, disk } = seen;
      if (disk !== null) {
        assert.ok(Number.isInteger(disk.minor) && disk.minor >= 0 && disk.minor < 2 ** 31);
      }
      if (frontend === null) return;
      assert.ok(frontend.state >= 0 && frontend.state <= 8 && frontend.fault.length < 100);
      const hasRing = frontend.state === 3 || frontend.state === 4;
      assert.equal(hasRing && frontend.ring === null, frontend.fault !== "");
      if (frontend.ring === null) return;
      const { references, port } = frontend.ring;
      assert.ok([1, 2, 4, 8].includes(references.length));
      for (const value of [...references, port]) assert.equal(value, value >>> 0);
    }),
    { numRuns: 3000, seed: 7 },
  );
});
