/**
 * Block devices that are in use when their disk grows or their tapdisk ends. The new size becomes
 * visible when the last user has closed the device. The log has the necessary steps for each kind
 * of device.
 */
import { noXen } from "../support/xen/played_xen.ts";
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { Devices } from "../../src/control/daemon/devices.ts";
import { adviceOn, type RemainingDevice } from "../../src/control/daemon/remaining.ts";
import { allocateMinor } from "../../src/control/minors/minors.ts";
import { minorPath } from "../../src/control/paths.ts";
import { readMinorRecord, recoveryHint } from "../../src/control/minors/minor_record.ts";
import { OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import type { BlockDevice, DeviceMaker } from "../../src/frontend/block_device.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import type { ImageContext } from "../../src/driver/driver.ts";
import { registerDriver } from "../../src/driver/registry.ts";
import { processWith, userOf } from "../../src/frontend/device_users.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { LibaioBackend } from "../../src/queue/libaio.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { NO_LIMITS } from "../../src/vbd/rate_limits.ts";
import { createVbdContext } from "../../src/vbd/vbd_context.ts";

/** Where the last image of type `growing` says that it has become larger. */
let growing: ImageContext | null = null;

registerDriver({
  ...aioDriver,
  type: "growing",
  open(spec, context, sink) {
    growing = context;
    return aioDriver.open(spec, context, sink);
  },
});

const MINOR = 0;
const SECTORS = 2048;

/** A simulated kernel driver whose devices are files and cannot change size. */
class PlayedMaker implements DeviceMaker {
  readonly kind = "ublk";
  /** The sizes of the created devices, and the requested nodes. */
  readonly made: number[] = [];
  readonly wanted: (string | undefined)[] = [];
  failing = false;

  constructor(readonly folder: string, readonly outlives: boolean) {}

  missing(): null {
    return null;
  }

  attach(
    ...[{ vbd }, , done, wanted]: Parameters<DeviceMaker["attach"]>
  ): void {
    if (this.failing) return done(new SystemError(Errno.EUSERS, "No more devices"), null);
    const node = `${this.folder}/node${this.made.length}`;
    Deno.writeTextFileSync(node, "");
    this.made.push(vbd.sectors);
    this.wanted.push(wanted);
    const device: BlockDevice = {
      kind: this.kind,
      node,
      outlives: this.outlives,
      resized: () => false,
      detach(detached): void {
        if (userOf(node) !== "") {
          return detached(new SystemError(Errno.EBUSY, "The played driver says it is busy"));
        }
        Deno.removeSync(node);
        detached(null);
      },
      abandon(): void {},
    };
    done(null, device);
  }
}

interface Bench {
  readonly devices: Devices;
  readonly maker: PlayedMaker;
  readonly folder: string;
  readonly log: string[];
  /** Jobs wait while this is true. */
  busy: boolean;
  /** Runs the loop until a condition holds. */
  until(what: string, holds: () => boolean, timeoutMs?: number): Promise<void>;
  /** Enlarges the disk, as `pause` and `unpause` do. */
  grow(): Promise<void>;
}

async function withDevice(
  { outlives = true, prepare, type = "aio" }: {
    outlives?: boolean;
    prepare?: () => void;
    type?: "aio" | "growing";
  },
  body: (bench: Bench) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  Deno.env.set("BLKTAP_CONTROL_DIR", `${folder}/control`);
  const scheduler = new EpollScheduler();
  const log: string[] = [];
  const write = (message: string) => void log.push(message);
  const context = createVbdContext({
    scheduler,
    backend: new LibaioBackend(scheduler),
    files: osDiskFiles,
    log: write,
  });
  const maker = new PlayedMaker(folder, outlives);
  const waiting: (() => void)[] = [];
  const devices = new Devices({
    scheduler,
    contextOf: () => context,
    frontends: [],
    makers: [maker],
    log: { info: write, warn: write, error: write },
    runExclusive: (_minor, job) =>
      bench.busy ? void waiting.push(() => job(() => {})) : job(() => {}),
    emptied() {},
    failed() {},
    xen: noXen,
    processors: () => ({ idle: 0, all: 0 }),
  });
  const image = `${folder}/disk.raw`;
  let sectors = SECTORS;
  const bench: Bench = {
    devices,
    maker,
    folder,
    log,
    busy: false,
    async until(what, holds, timeoutMs = 60_000) {
      const untilMs = performance.now() + timeoutMs;
      const look = (): void => {
        if (!bench.busy) { for (const run of waiting.splice(0)) run(); }
        if (holds() || performance.now() > untilMs) scheduler.stop();
        else scheduler.addTimer(5, look);
      };
      scheduler.addTimer(0, look);
      await scheduler.run();
      assert.ok(holds(), `${what}: ${log.join("\n")}`);
    },
    async grow() {
      let paused = false;
      let resumed = false;
      devices.find(MINOR, "pause").pause({ timeoutMs: Infinity }, () => (paused = true));
      await bench.until("it pauses", () => paused);
      sectors *= 2;
      Deno.truncateSync(image, sectors * 512);
      devices.find(MINOR, "resume").resume(
        { image: null, changedBlocks: null },
        (error) => resumed = error === null,
      );
      await bench.until("it goes on", () => resumed);
    },
  };
  try {
    Deno.writeFileSync(image, new Uint8Array(SECTORS * 512));
    assert.equal(allocateMinor(), MINOR);
    devices.attach(MINOR);
    prepare?.();
    let opened = false;
    const request = {
      ...OPEN_DEFAULTS,
      image: `${type}:${image}`,
      direct: false,
      device: "ublk" as const,
      queue: "libaio" as const,
    };
    devices.find(MINOR, "open").open({ request }, (error, _disk) => void (opened = error === null));
    await bench.until("it opens", () => opened);
    await body(bench);
  } finally {
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    Deno.removeSync(folder, { recursive: true });
  }
}

/** A process that has a node open until it is ended. */
async function openedBy(node: string): Promise<() => Promise<void>> {
  const child = new Deno.Command("sh", {
    args: ["-c", 'exec 7<"$1"; echo open; exec sleep 1000', "sh", node],
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  return async () => {
    child.kill("SIGKILL");
    await reader.cancel();
    await child.status;
  };
}

// Descriptors of the engine stay open until the process ends.
const options = { sanitizeResources: false, sanitizeOps: false };

Deno.test("a new size shows at once when nobody uses the device", options, async () => {
  await withDevice({}, async ({ maker, grow, folder }) => {
    await grow();
    assert.deepEqual(maker.made, [SECTORS, 2 * SECTORS]);
    assert.deepEqual(maker.wanted, [undefined, `${folder}/node0`]);
  });
});

Deno.test("a new size shows when the last user of the device has gone", options, async () => {
  await withDevice({}, async ({ maker, grow, until, log, folder }) => {
    const first = await openedBy(`${folder}/node0`);
    const second = await openedBy(`${folder}/node0`);
    await grow();
    assert.ok(log.some((line) => /node0 keeps its size.*4096 sectors when nobody uses/.test(line)));
    // The disk grows again before that.
    await grow();
    await first();
    await assert.rejects(until("it is made again", () => maker.made.length > 1, 2500));
    await second();
    await until("it is made again", () => maker.made.length > 1);
    assert.deepEqual(maker.made, [SECTORS, 4 * SECTORS]);
    assert.equal(readMinorRecord(MINOR)?.node, `${folder}/node1`);
    // The device is created only once.
    await assert.rejects(until("it is made once more", () => maker.made.length > 2, 2500));
  });
});

Deno.test("a device is not made again while something else is done to it", options, async () => {
  await withDevice({}, async (bench) => {
    const { maker, grow, until, devices, folder } = bench;
    const leave = await openedBy(`${folder}/node0`);
    await grow();
    bench.busy = true;
    await leave();
    await assert.rejects(until("it is made again", () => maker.made.length > 1, 2500));
    let closed = false;
    devices.find(MINOR, "close").close({ force: false }, (error) => closed = error === null);
    await until("it is closed", () => closed);
    bench.busy = false;
    await assert.rejects(until("it is made again", () => maker.made.length > 1, 1500));
  });
});

Deno.test("a paused device is made again after its pause", options, async () => {
  await withDevice({}, async ({ maker, grow, until, devices, folder }) => {
    const leave = await openedBy(`${folder}/node0`);
    await grow();
    let paused = false;
    devices.find(MINOR, "pause").pause({ timeoutMs: Infinity }, () => (paused = true));
    await until("it pauses", () => paused);
    await leave();
    await assert.rejects(until("it is made again", () => maker.made.length > 1, 2500));
    devices.find(MINOR, "resume").resume({ image: null, changedBlocks: null }, () => {});
    await until("it is made again", () => maker.made.length > 1);
    assert.deepEqual(maker.made, [SECTORS, 2 * SECTORS]);
  });
});

Deno.test(
  "a disk that grows by itself has its new size when no command runs",
  options,
  async () => {
    await withDevice({ type: "growing" }, async (bench) => {
      const { devices, maker, until } = bench;
      const enlarge = (sectors: number): void => {
        Deno.truncateSync(`${bench.folder}/disk.raw`, sectors * 512);
        assert.equal(growing?.grow?.(sectors), true);
      };
      enlarge(2 * SECTORS);
      await until("it is made again", () => maker.made.length > 1);
      assert.deepEqual(maker.made, [SECTORS, 2 * SECTORS]);
      assert.equal(devices.find(MINOR, "read").disk.sectors, 2 * SECTORS);
      assert.equal(readMinorRecord(MINOR)?.node, `${bench.folder}/node1`);
      // It is paused when its turn comes: the next unpause shows the size.
      bench.busy = true;
      enlarge(4 * SECTORS);
      let paused = false;
      devices.find(MINOR, "pause").pause({ timeoutMs: Infinity }, () => (paused = true));
      await until("it pauses", () => paused);
      bench.busy = false;
      await assert.rejects(until("it is made again", () => maker.made.length > 2, 500));
      devices.find(MINOR, "resume").resume({ image: null, changedBlocks: null }, () => {});
      await until("it is made again", () => maker.made.length > 2);
      assert.deepEqual(maker.made, [SECTORS, 2 * SECTORS, 4 * SECTORS]);
      // It is closed when its turn comes.
      bench.busy = true;
      enlarge(8 * SECTORS);
      let closed = false;
      devices.find(MINOR, "close").close({ force: false }, (error) => closed = error === null);
      await until("it is closed", () => closed);
      bench.busy = false;
      await assert.rejects(until("it is made again", () => maker.made.length > 3, 500));
    });
  },
);

Deno.test("the limits of a device outlast a pause and its tapdisk", options, async () => {
  await withDevice({}, async ({ grow, devices, log }) => {
    const device = devices.find(MINOR, "limit");
    const limits = { ...NO_LIMITS, readIops: 300, burstMs: 50 };
    assert.deepEqual(device.limits, NO_LIMITS);
    device.limit(limits);
    assert.deepEqual(readMinorRecord(MINOR)?.limits, limits);
    assert.ok(log.some((line) => line.includes("is limited to: readIops 300")));
    await grow();
    assert.deepEqual(device.limits, limits);
    assert.deepEqual(readMinorRecord(MINOR)?.limits, limits);
    device.limit(NO_LIMITS);
    assert.deepEqual(readMinorRecord(MINOR)?.limits, NO_LIMITS);
  });
});

Deno.test("a device that cannot be made again says how to get one", options, async () => {
  await withDevice({}, async ({ maker, grow, log }) => {
    maker.failing = true;
    await grow();
    assert.ok(log.some((line) => /Minor 0 has no block device .*open it again/.test(line)));
  });
});

Deno.test(
  "a device opens although its record cannot be written, and the log says so",
  options,
  async () => {
    const prepare = (): void => {
      Deno.removeSync(minorPath(MINOR));
      Deno.mkdirSync(minorPath(MINOR));
    };
    await withDevice({ prepare }, ({ log, maker }) => {
      assert.deepEqual(maker.made, [SECTORS]);
      assert.ok(
        log.some((line) => /'tap-ctl recover' will not know .* minor 0: .*EISDIR/.test(line)),
      );
      return Promise.resolve();
    });
  },
);

for (const outlives of [true, false]) {
  const title = outlives ? "waits for a takeover" : "goes with its tapdisk";
  Deno.test(`a device in use that ${title} stays, and is told of`, options, async () => {
    await withDevice({ outlives }, async ({ devices, until, folder }) => {
      const leave = await openedBy(`${folder}/node0`);
      const left: RemainingDevice[][] = [];
      devices.endAll((_minor, job) => job(() => {}), (those) => void left.push([...those]));
      await until("it stays", () => left.length > 0);
      const node = `${folder}/node0`;
      assert.deepEqual(left, [[{ minor: 0, name: `aio:${folder}/disk.raw`, node, outlives }]]);
      await leave();
    });
  });
}

Deno.test("advice on a device in use fits what becomes of it when its tapdisk is killed", () => {
  const device = { minor: 3, name: "vhd:/a", node: "/dev/ublkb0", outlives: true };
  const stays = adviceOn(device);
  assert.match(
    stays,
    /^Minor 3, vhd:\/a, goes on: \/dev\/ublkb0 is in use\. .*send the signal again/,
  );
  assert.match(stays, /device stays and its users wait; 'tap-ctl recover -m 3'/);
  const goes = adviceOn({ ...device, outlives: false });
  assert.match(goes, /users get errors; 'tap-ctl destroy -p \d+ -m 3'/);
  assert.doesNotMatch(goes, /recover/);
  assert.match(adviceOn({ ...device, node: null }), /could not be closed/);
});

Deno.test("what a dead tapdisk left is taken over, but not by a driver that took it away", () => {
  for (const kind of ["ublk", "nbd"] as const) {
    assert.match(recoveryHint(3, kind), /recover -m 3.*destroy/);
  }
  assert.doesNotMatch(recoveryHint(3, "blktap2"), /recover/);
  assert.match(recoveryHint(3, "blktap2"), /'tap-ctl destroy -p PID -m 3'/);
});

Deno.test("a process that had a file open and closed it is not its user any more", async () => {
  const path = Deno.makeTempFileSync();
  const first = await openedBy(path);
  const second = await openedBy(path);
  assert.notEqual(processWith(path), 0);
  await first();
  assert.notEqual(processWith(path), 0);
  await second();
  assert.equal(processWith(path), 0);
  Deno.removeSync(path);
});
