/**
 * Control messages about guests' rings, as a tapdisk carries them out: on the real loop, with a disk in
 * memory, and with Xen simulated.
 *
 * @module
 */
import assert from "node:assert/strict";
import { controlCommands } from "../../src/control/daemon/commands.ts";
import { Devices } from "../../src/control/daemon/devices.ts";
import { allocateMinor } from "../../src/control/minors/minors.ts";
import { readMinorRecord, writeMinorRecord } from "../../src/control/minors/minor_record.ts";
import { ringJournalPath } from "../../src/control/paths.ts";
import { decodeResponse } from "../../src/control/protocol/answers.ts";
import { encodeConnect, encodeDisconnect } from "../../src/control/protocol/guest_ring.ts";
import { encodePlain, MessageType, messageType } from "../../src/control/protocol/message.ts";
import { encodeOpen, OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import { Logger } from "../../src/log/log.ts";
import { RealDevice } from "../support/real_device.ts";
import { withTempDir } from "../support/tools.ts";
import { realEvents } from "../support/xen/guest_tapdisk.ts";
import { Op, PlayedGuest, type Segment } from "../support/xen/played_guest.ts";
import { PlayedXen } from "../support/xen/played_xen.ts";

const IMAGE = "ram:4";

/** A tapdisk with one minor, and a guest. */
class Bench {
  readonly #real = new RealDevice(IMAGE);
  readonly xen: PlayedXen;
  readonly devices: Devices;
  readonly minor: number;
  readonly guest: PlayedGuest;

  constructor() {
    const { scheduler, context } = this.#real;
    this.xen = new PlayedXen(realEvents());
    this.devices = new Devices({
      scheduler,
      contextOf: () => context,
      frontends: [],
      makers: [],
      log: new Logger([]),
      emptied: () => {},
      runExclusive: (_minor, job) => job(() => {}),
      failed: () => {},
      xen: this.xen,
      processors: () => ({ idle: 0, all: 0 }),
    });
    this.minor = allocateMinor();
    this.guest = new PlayedGuest(this.xen);
  }

  /** Carries a message out; the answer's type, or `-errno`. */
  async ask(message: Uint8Array<ArrayBuffer>): Promise<number> {
    const command = controlCommands(this.devices).get(messageType(message));
    assert.ok(command !== undefined);
    let answer: Uint8Array | null = null;
    const reply = (bytes: Uint8Array): void => void (answer = bytes);
    try {
      command.run(message, reply, null, null);
    } catch (error) {
      return -Number((error as { errno?: number }).errno);
    }
    await this.until(() => answer !== null);
    assert.ok(answer !== null);
    const type = messageType(answer);
    return type === MessageType.ERROR ? -decodeResponse(answer).error : type;
  }

  async until(holds: () => boolean): Promise<void> {
    const { scheduler } = this.#real;
    const untilMs = performance.now() + 10_000;
    const look = (): void => {
      if (holds() || performance.now() > untilMs) scheduler.stop();
      else scheduler.addTimer(1, look);
    };
    scheduler.addTimer(0, look);
    await scheduler.run();
    assert.ok(holds());
  }

  connect(change: object = {}): Promise<number> {
    return this.ask(encodeConnect(this.minor, { ...this.guest.ring, ...change }));
  }

  /** tapback does not know the minor of a ring that it leaves. */
  disconnect(): Promise<number> {
    return this.ask(encodeDisconnect(0, this.guest.ring));
  }

  order(type: number): Promise<number> {
    return this.ask(encodePlain(type, this.minor));
  }

  open(image = IMAGE): Promise<number> {
    return this.ask(encodeOpen(this.minor, { ...OPEN_DEFAULTS, image, device: "none" }));
  }

  async close(): Promise<void> {
    this.guest.close();
    await this.#real.close();
  }
}

function hasFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Calls a body with a bench, whose control folder is temporary. */
function withBench(body: (bench: Bench) => Promise<void>): Promise<void> {
  return withTempDir(async (folder) => {
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", folder);
    Deno.mkdirSync(`${folder}/tapdisk`);
    const bench = new Bench();
    await body(bench);
    await bench.close();
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
  });
}

Deno.test("a tapdisk serves a guest's ring from its connect to its disconnect, or to the disk's close", () =>
  withBench(async (bench) => {
    const { guest } = bench;
    const path = ringJournalPath(guest.ring);
    const [ENODEV, EINVAL, EALREADY] = [19, 22, 114];
    assert.equal(await bench.connect(), -ENODEV);
    await bench.order(MessageType.ATTACH);
    assert.equal(await bench.connect(), -EINVAL, "without an image");
    assert.equal(await bench.open(), MessageType.OPEN_RSP);
    assert.equal(await bench.connect({ port: 0 }), -EINVAL);
    assert.ok(!hasFile(path));
    assert.equal(await bench.connect(), MessageType.XENBLKIF_CONNECT_RSP);
    assert.equal(await bench.connect(), -EALREADY);
    assert.ok(hasFile(path));

    const ask = async (): Promise<void> => {
      const segments: Segment[] = [[guest.reference(8), 0, 7]];
      guest.add({ operation: Op.Write, id: 1n, segments });
      guest.push();
      await bench.until(() => guest.waiting > 0);
      assert.deepEqual(guest.take(), [{ id: 1n, operation: Op.Write, status: 0 }]);
    };
    await ask();

    assert.equal(await bench.disconnect(), MessageType.XENBLKIF_DISCONNECT_RSP);
    assert.equal(await bench.disconnect(), -ENODEV);
    assert.ok(!hasFile(path));
    guest.reset();
    assert.equal(await bench.connect(), MessageType.XENBLKIF_CONNECT_RSP);
    await ask();
    // A paused disk answers later.
    await bench.order(MessageType.PAUSE);
    guest.add({ operation: Op.Flush, id: 2n });
    guest.push();
    assert.equal(await bench.order(MessageType.RESUME), MessageType.RESUME_RSP);
    await bench.until(() => guest.waiting > 0);
    assert.equal(guest.take().length, 1);
    assert.equal(await bench.order(MessageType.CLOSE), MessageType.CLOSE_RSP);
    assert.ok(!hasFile(path));
    assert.equal(bench.xen.open, 0);
    assert.equal(await bench.disconnect(), -ENODEV);
    await bench.order(MessageType.DETACH);
  }));

Deno.test("the file of a minor tells how to take over a disk, as long as a guest has a ring", () =>
  withBench(async (bench) => {
    const { guest, minor } = bench;
    const node = ringJournalPath(guest.ring);
    const recorded = (): unknown => {
      const record = readMinorRecord(minor);
      return record === null ? null : [record.image, record.device, record.node];
    };
    const kept = [IMAGE, "none", node];
    await bench.order(MessageType.ATTACH);
    await bench.open();
    assert.equal(recorded(), null);
    await bench.connect();
    assert.deepEqual(recorded(), kept);
    await bench.disconnect();
    assert.equal(recorded(), null);
    guest.reset();
    await bench.connect();
    assert.deepEqual(recorded(), kept);
    await bench.order(MessageType.CLOSE);
    // Another tapdisk has a ring of the same name meanwhile.
    Deno.writeTextFileSync(node, "");
    assert.equal(recorded(), null, "after a close");

    // A tapdisk that was killed has left this.
    writeMinorRecord(minor, {
      ...OPEN_DEFAULTS,
      image: IMAGE,
      device: "none",
      node,
      encrypted: false,
    });
    assert.equal(await bench.open("ram:8"), -16);
    assert.equal(await bench.open(), MessageType.OPEN_RSP);
    assert.deepEqual(recorded(), kept, "until tapback comes");
    await bench.order(MessageType.PAUSE);
    await bench.order(MessageType.RESUME);
    assert.deepEqual(recorded(), kept);
    guest.reset();
    await bench.connect();
    assert.deepEqual(recorded(), kept);
    await bench.disconnect();
    Deno.writeTextFileSync(node, "");
    assert.equal(recorded(), null, "after a disconnect");
    await bench.order(MessageType.CLOSE);
    await bench.order(MessageType.DETACH);
  }));
