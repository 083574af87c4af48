/**
 * A Xen host for tests, on a clock of its own: tapback with a played xenstored, tapdisks that only
 * know who has which ring, a toolstack that makes and removes devices as libxl does, and guests whose
 * frontends behave as Linux's blkfront does. All may be slow, and go wrong, by a seed.
 *
 * At every step it is checked that no device that the toolstack ends begins again, that a device says that it has no ring only when no tapdisk has it, that
 * it is connected only with the guest's present ring, and that what the toolstack removed stays away.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../../ffi/errno.ts";
import { RING_FEATURES } from "../../../src/control/protocol/disk_info.ts";
import type { GuestDevice, GuestRing } from "../../../src/control/protocol/guest_ring.ts";
import type { Log } from "../../../src/log/log.ts";
import { Backend } from "../../../src/tapback/backend.ts";
import type { FoundDisk, Tapdisk } from "../../../src/tapback/device_events.ts";
import type { WantedDisk } from "../../../src/tapback/observation.ts";
import type { Tapdisks } from "../../../src/tapback/tapdisks.ts";
import { Random } from "../../../src/testing/random.ts";
import { SimulatedScheduler } from "../../../src/testing/simulated_scheduler.ts";
import { Xenstore } from "../../../src/xenstore/store.ts";
import { PlayedXenstored } from "./played_xenstored.ts";

/** How often guests have a turn. */
const STEP_MS = 20;

/** How long tapback waits for an answer. */
const ANSWER_TIMEOUT_MS = 10_000;

const BACKENDS = "/local/domain/0/backend/vbd3";

/** A tapdisk: its minors with their sizes, and the rings that it has, by guest. */
interface PlayedTapdisk {
  readonly disks: Map<number, number>;
  readonly rings: Map<string, { readonly ring: GuestRing; readonly minor: number }>;
}

/** Tapdisks that only know who has which ring. */
export class PlayedTapdisks implements Tapdisks {
  readonly processes = new Map<number, PlayedTapdisk>();
  /** How likely it is that a call goes wrong. */
  faults = 0;
  /** What they can do with rings. */
  features: number = RING_FEATURES;
  /** Tapdisks that hang, and do later what they were asked for. */
  readonly silent = new Set<number>();
  readonly #asked: { readonly pid: number; readonly call: () => void }[] = [];
  /** Guests' devices whose rings ended with a tapdisk. */
  readonly died = new Set<string>();
  calls = 0;
  connects = 0;
  disconnects = 0;
  /** The names of processes that others have taken over. */
  readonly #links = new Map<number, number>();

  constructor(readonly scheduler: SimulatedScheduler, readonly random: Random) {}

  /** What tells minors from later ones with the same number. */
  readonly #files = new Map<number, string>();
  #lastFile = 0;

  /** A minor is free, so that its number means another disk from now on. */
  free(minor: number): void {
    this.#files.set(minor, `file ${++this.#lastFile}`);
  }

  start(pid: number, minor: number, sectors: number): void {
    if (!this.#files.has(minor)) this.free(minor);
    this.processes.set(pid, { disks: new Map([[minor, sectors]]), rings: new Map() });
  }

  /** A process takes over the disks and rings of another one, whose names lead to it from now on. */
  handOver(pid: number, to: number): void {
    const process = this.processes.get(pid);
    assert.ok(process !== undefined);
    this.processes.delete(pid);
    this.processes.set(to, process);
    for (const [name, now] of this.#links) if (now === pid) this.#links.set(name, to);
    this.#links.set(pid, to);
  }

  kill(pid: number): void {
    for (const key of this.processes.get(pid)?.rings.keys() ?? []) this.died.add(key);
    this.processes.delete(pid);
    this.wake(pid);
  }

  wakeAll(): void {
    for (const pid of [...this.silent]) this.wake(pid);
  }

  /** Those that have the ring of a guest's device. */
  holders({ domain, device }: GuestDevice): number[] {
    return [...this.processes].filter(([, { rings }]) => rings.has(`${domain}/${device}`))
      .map(([pid]) => pid);
  }

  /** Does `call` later, which answers; who asked gets ETIMEDOUT when that takes too long. */
  #later<Answer>(
    pid: number,
    done: (answer: Answer | number) => void,
    call: (answer: (answer: Answer | number) => void) => void,
  ): void {
    this.calls++;
    let isOver = false;
    const answer = (value: Answer | number): void => {
      if (!isOver) done(value);
      isOver = true;
    };
    if (!this.silent.has(pid)) {
      this.scheduler.addTimer(this.random.below(30), () => call(answer));
      return;
    }
    this.#asked.push({ pid, call: () => call(answer) });
    this.scheduler.addTimer(ANSWER_TIMEOUT_MS, () => answer(Errno.ETIMEDOUT));
  }

  /** A tapdisk goes on. */
  wake(pid: number): void {
    this.silent.delete(pid);
    for (const asked of this.#asked.filter((each) => each.pid === pid)) {
      this.#asked.splice(this.#asked.indexOf(asked), 1);
      asked.call();
    }
  }

  #disk(named: number, minor: number): FoundDisk | number {
    const pid = this.#servantOf(named);
    const process = this.processes.get(pid);
    if (process === undefined) return Errno.ECONNREFUSED;
    const sectors = process.disks.get(minor);
    if (sectors === undefined) return Errno.ENODEV;
    return {
      pid,
      minor,
      info: { sectors, sectorSizeBytes: 512, info: 0 },
      ringFeatures: this.features,
      file: this.#files.get(minor) ?? "",
      ...(pid === named ? {} : { successorOf: named }),
    };
  }

  find(disk: WantedDisk, file: string, done: (found: FoundDisk | number) => void): void {
    this.#later<FoundDisk>(disk.pid ?? 0, done, (done) => {
      if (this.random.chance(this.faults)) return done(Errno.ETIMEDOUT);
      const first = this.#disk(disk.pid ?? 0, disk.minor);
      const isOther = file !== "" && this.#files.get(disk.minor) !== file;
      if (isOther) return done(Errno.ESTALE);
      if (typeof first !== "number" || file === "") return done(first);
      const others = [...this.processes.keys()].map((pid) => this.#disk(pid, disk.minor));
      done(others.find((each) => typeof each !== "number") ?? first);
    });
  }

  forget(guest: GuestDevice): void {
    assert.deepEqual(this.holders(guest), [], "a device is over, and its ring is not");
  }

  #servantOf(named: number): number {
    return this.#links.get(named) ?? named;
  }

  connect({ pid: named, minor }: Tapdisk, ring: GuestRing, done: (errno: number) => void): void {
    this.connects++;
    const pid = this.#servantOf(named);
    this.#later<number>(pid, done, (done) => {
      if (this.random.chance(this.faults / 2)) return done(Errno.EIO);
      const found = this.#disk(pid, minor);
      if (typeof found === "number") return done(found);
      const rings = this.processes.get(pid)?.rings;
      const key = `${ring.domain}/${ring.device}`;
      if (rings?.has(key)) return done(Errno.EALREADY);
      assert.deepEqual(this.holders(ring), [], "a second tapdisk gets the ring");
      rings?.set(key, { ring, minor });
      this.died.delete(key);
      done(this.random.chance(this.faults / 2) ? Errno.ETIMEDOUT : 0);
    });
  }

  /** Disconnects that are done, and whose answer is lost. */
  lostAnswers = 0;

  disconnect({ pid: named }: Tapdisk, guest: GuestDevice, done: (errno: number) => void): void {
    const pid = this.#servantOf(named);
    this.disconnects++;
    this.#later<number>(pid, done, (done) => {
      if (this.random.chance(this.faults / 2)) return done(Errno.EIO);
      const process = this.processes.get(pid);
      if (process === undefined) return done(Errno.ECONNREFUSED);
      if (!process.rings.delete(`${guest.domain}/${guest.device}`)) return done(Errno.ENODEV);
      if (this.lostAnswers-- > 0) return done(Errno.EPIPE);
      done(this.random.chance(this.faults / 2) ? Errno.ETIMEDOUT : 0);
    });
  }
}

/** What a test chooses of a device. */
export interface DeviceChoices {
  readonly sectors?: number;
  readonly nodes?: Readonly<Record<string, string>>;
}

/** A device with its guest, its disk and its toolstack. */
export class PlayedDevice {
  readonly back: string;
  readonly front: string;
  pid = 0;
  minor = 0;
  /** The size that the guest knows. */
  guestSectors = 0;
  /** Whether the guest acts by itself. */
  isAwake = true;
  /** Whether the guest has the disk open, so that it does not let go of it. */
  isInUse = false;
  /** Whether the toolstack has asked for its end. */
  isLeaving = false;
  #rings = 0;

  constructor(readonly host: PlayedHost, readonly guest: GuestDevice) {
    const { domain, device } = guest;
    this.back = `${BACKENDS}/${domain}/${device}`;
    this.front = `/local/domain/${domain}/device/vbd/${device}`;
  }

  get exists(): boolean {
    return this.host.store.get(`${this.back}/frontend`) !== undefined;
  }

  get backState(): number {
    return Number(this.host.store.get(`${this.back}/state`) ?? 0);
  }

  get frontState(): number {
    return Number(this.host.store.get(`${this.front}/state`) ?? 0);
  }

  set frontState(state: number) {
    this.host.store.write({ [`${this.front}/state`]: String(state) });
  }

  get(name: string): string | undefined {
    return this.host.store.get(`${this.back}/${name}`);
  }

  put(nodes: Readonly<Record<string, string>>): void {
    this.host.store.write(
      Object.fromEntries(
        Object.entries(nodes).map(([name, value]) => [`${this.back}/${name}`, value]),
      ),
    );
  }

  putFront(nodes: Readonly<Record<string, string>>): void {
    this.host.store.write(
      Object.fromEntries(
        Object.entries(nodes).map(([name, value]) => [`${this.front}/${name}`, value]),
      ),
    );
  }

  /** The toolstack makes the device, as libxl does. */
  plug(nodes: Readonly<Record<string, string>> = {}): void {
    const { domain } = this.guest;
    this.isLeaving = false;
    this.putFront({ "backend-id": "0", backend: this.back, state: "1", "device-type": "disk" });
    this.put({
      frontend: this.front,
      "frontend-id": String(domain),
      online: "1",
      removable: "1",
      state: "1",
      type: "vbd3",
      mode: "w",
      "device-type": "disk",
      "discard-enable": "1",
      ...nodes,
    });
  }

  /** The toolstack's script starts a tapdisk. */
  attach(sectors = 2048): void {
    this.pid = this.host.nextPid++;
    this.minor = this.host.nextMinor++;
    this.host.tapdisks.start(this.pid, this.minor, sectors);
    this.point();
    this.put({ "hotplug-status": "connected" });
  }

  /** The toolstack tells which tapdisk it is. */
  point(): void {
    this.put({
      pid: String(this.pid),
      minor: String(this.minor),
      "physical-device-path": `/run/blktap-control/nbd${this.pid}.${this.minor}`,
    });
  }

  /** A new tapdisk takes over the disk of one that died. */
  recover(): void {
    const sectors = this.sectors;
    this.host.tapdisks.kill(this.pid);
    this.host.sizes.set(this.minor, sectors);
    this.pid = this.host.nextPid++;
    this.host.tapdisks.start(this.pid, this.minor, sectors);
  }

  get sectors(): number {
    return this.host.tapdisks.processes.get(this.pid)?.disks.get(this.minor) ??
      this.host.sizes.get(this.minor) ?? 2048;
  }

  resize(sectors: number): void {
    this.host.tapdisks.processes.get(this.pid)?.disks.set(this.minor, sectors);
  }

  /** The toolstack asks for the end of the device. */
  requestUnplug(): void {
    this.isLeaving = true;
    this.put({ online: "0", state: "5" });
  }

  /** The toolstack removes the device. */
  remove(): void {
    this.host.store.remove(this.back);
    this.host.store.remove(this.front);
    this.host.tapdisks.kill(this.pid);
    this.pid = 0;
  }

  /** The guest does what blkfront does in this situation; false when that is nothing. */
  react(): boolean {
    if (!this.isAwake || this.host.store.get(`${this.front}/state`) === undefined) return false;
    const { backState: back, frontState: front } = this;
    if (front === 1 && back === 2) this.makeRing();
    else if ((front === 3 || front === 4) && back === 4) return this.#connected();
    else if ((front === 3 || front === 4) && (back === 5 || back === 6)) {
      this.frontState = this.isInUse ? 5 : 6;
    } else if (front === 5 && !this.isInUse) this.frontState = 6;
    else return false;
    return true;
  }

  #connected(): boolean {
    const sectors = Number(this.get("sectors"));
    const isNew = this.frontState !== 4 || sectors !== this.guestSectors;
    this.guestSectors = sectors;
    if (this.frontState !== 4) this.frontState = 4;
    return isNew;
  }

  /** The guest makes a ring. */
  makeRing(): void {
    const base = 100 * ++this.#rings;
    const order = this.host.random.below(4);
    const references = order === 0 ? { "ring-ref": String(base) } : Object.fromEntries(
      Array.from({ length: 1 << order }, (_, i) => [`ring-ref${i}`, `${base + i}`]),
    );
    this.putFront({
      "ring-page-order": String(order),
      ...references,
      "event-channel": String(this.#rings),
      protocol: "x86_64-abi",
      state: "3",
    });
  }

  /** What must hold when everything has come to rest. */
  checkAtRest(): void {
    const holders = this.host.tapdisks.holders(this.guest);
    const title = `device ${this.guest.device} of domain ${this.guest.domain}`;
    if (!this.exists) return assert.deepEqual(holders, [], title);
    if (this.frontState === 4 && this.backState === 4) {
      assert.deepEqual(holders, [this.pid], title);
      assert.equal(this.guestSectors, this.sectors, title);
      assert.equal(this.get("kthread-pid"), String(this.pid), title);
    } else assert.deepEqual(holders, [], `${title}: ${this.frontState} and ${this.backState}`);
  }
}

/** The host. */
export class PlayedHost {
  readonly scheduler = new SimulatedScheduler();
  readonly store = new PlayedXenstored();
  readonly random: Random;
  readonly tapdisks: PlayedTapdisks;
  readonly devices: PlayedDevice[] = [];
  readonly sizes = new Map<number, number>();
  readonly lines: string[] = [];
  nextPid = 1000;
  nextMinor = 0;
  hasEnded = false;
  /** The rings that were connected when it ended. */
  ringsAtEnd = 0;
  /** Whether others act meanwhile. */
  isMoving = false;
  #backend: Backend | null = null;
  #faults: string[] = [];

  constructor(seed: number, readonly domain: number | null = null) {
    this.random = new Random(seed);
    this.tapdisks = new PlayedTapdisks(this.scheduler, this.random);
    this.store.changed = (path, value) => {
      try {
        this.#check(path, value);
      } catch (error) {
        // tapback takes this for an error of xenstored.
        this.#faults.push(String(error));
      }
    };
    this.start();
  }

  /** Starts tapback. */
  start(): void {
    const log = (level: string) => (line: string): void => {
      this.lines.push(`${level}: ${line}`);
      if (/A fault|Error: /.test(line)) this.#faults.push(line);
    };
    const logs: Log = { info: log("info"), warn: log("warn"), error: log("error") };
    this.#backend = new Backend({
      scheduler: this.scheduler,
      openStore: () => this.#openStore(),
      tapdisks: this.tapdisks,
      log: logs,
      type: "vbd3",
      domain: this.domain,
      options: { barrier: true },
      ended: () => {
        this.hasEnded = true;
        for (const { guest } of this.devices) {
          this.ringsAtEnd += this.tapdisks.holders(guest).length;
        }
      },
    });
  }

  #openStore(): Xenstore {
    const fd = this.scheduler.openEvent();
    const stream = this.store.connect(fd);
    stream.client.notify = () => this.scheduler.signal(fd);
    return new Xenstore({
      ...stream,
      receive: (timeoutMs) => {
        const message = stream.receive(timeoutMs);
        // All that has arrived is in the buffer of the stream now, and the descriptor is not readable.
        if (!stream.client.isClosed) this.scheduler.clearSignal(fd);
        return message;
      },
      close: () => {
        stream.close();
        this.scheduler.closeEvent(fd);
      },
    });
  }

  /** Ends tapback. */
  stop(): void {
    this.#backend?.close();
    this.#backend = null;
  }

  /** xenstored ends all connections. */
  dropConnections(): void {
    for (const client of [...this.store.clients]) {
      this.store.leave(client);
      client.notify();
    }
  }

  add(domain: number, device: number): PlayedDevice {
    const played = new PlayedDevice(this, { domain, device });
    this.devices.push(played);
    return played;
  }

  /** A device that a guest uses. */
  addConnected(
    domain: number,
    device: number,
    { sectors, nodes }: DeviceChoices = {},
  ): PlayedDevice {
    const played = this.add(domain, device);
    played.plug(nodes);
    played.attach(sectors);
    this.rest();
    assert.deepEqual([played.frontState, played.backState], [4, 4], this.lines.join("\n"));
    return played;
  }

  /** Lets some time pass, in which the guests react when it is their turn. */
  run(ms: number): void {
    for (let passedMs = 0; passedMs < ms; passedMs += STEP_MS) {
      let isOver = false;
      this.scheduler.addTimer(STEP_MS, () => isOver = true);
      this.scheduler.runUntil(() => isOver);
      for (const device of this.devices) if (this.random.chance(0.5)) device.react();
    }
    assert.deepEqual(this.#faults, []);
  }

  /** Lets everything come to rest, and checks it. */
  rest(ms = 20_000): void {
    this.run(ms);
    for (const device of this.devices) device.checkAtRest();
  }

  /** Checks what tapback writes. */
  #check(path: string, value: string | null): void {
    if ("/local/domain/0/tapback/vbd3".startsWith(path)) return;
    if (!path.startsWith(`${BACKENDS}/`)) return assert.fail(`tapback wrote ${path}`);
    const device = this.devices.find(({ back }) => path.startsWith(`${back}/`));
    assert.ok(device !== undefined && device.exists, `tapback made ${path} again`);
    if (!path.endsWith("/state") || value === null) return;
    const holders = this.tapdisks.holders(device.guest);
    if (value === "2" || value === "4") assert.ok(!device.isLeaving, `state ${value} on leaving`);
    if (value !== "4") {
      if (value !== "5") assert.deepEqual(holders, [], `state ${value} with a ring`);
      return;
    }
    const { domain, device: number } = device.guest;
    // Nobody knows at once that a tapdisk has died.
    if (this.tapdisks.died.has(`${domain}/${number}`)) return;
    assert.equal(holders.length, 1, "state 4 without a ring");
  }
}
