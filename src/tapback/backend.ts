/**
 * `src/tapback`: block devices of Xen guests. tapback stands between xenstore, in which the toolstack
 * and the guests write what they want, and the tapdisks, which serve the rings of the guests. It must
 * not touch a ring or a disk itself, and must not print.
 *
 * This file has the devices, and carries out what their state machines decide.
 *
 * @module
 */
import { EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { GuestDevice } from "../control/protocol/guest_ring.ts";
import { Bucket } from "../log/bucket.ts";
import type { Log } from "../log/log.ts";
import { describeFault, type FaultOwner } from "../scheduler/faults.ts";
import type { FdHandler, Scheduler, TurnWork } from "../scheduler/scheduler.ts";
import type { Nodes, WatchEvent, Xenstore } from "../xenstore/store.ts";
import type { DeviceAction, DeviceEvent } from "./device_events.ts";
import { DeviceMachine } from "./machine.ts";
import type { DeviceOptions } from "./nodes.ts";
import { type DeviceSeen, observe } from "./observation.ts";
import type { Tapdisks } from "./tapdisks.ts";

/** How often the sizes of disks, and the lives of their tapdisks, are looked at. */
const DOUBT_MS = 5_000;
/** In so many parts, so that not all tapdisks are asked at the same time. */
const DOUBT_PARTS = 20;
/** A guest that changes its nodes all the time: looks at its device in a row, and then one after each time. */
const LOOKS = 64;
const ONE_MORE_LOOK_MS = 50;
/** The same for new rings of a guest. Each is work for its tapdisk. */
const CONNECTS = 10;
const ONE_MORE_CONNECT_MS = 2_000;
/** The same for warnings about its device, which it may cause. */
const WARNINGS = 20;
const ONE_MORE_WARNING_MS = 10_000;
/** After how long to try again what xenstored refused. */
const REFUSED_MS = 1_000;
/** After how long to connect to xenstored again. */
const RECONNECT_MS = 1_000;
/** The most events that are taken in one turn: tapdisks have their turns too. */
const EVENTS_A_TURN = 1024;

/** The token of the watch on all devices. */
const BACKEND_TOKEN = "backend";
/** What the tokens of the watches on frontends begin with. */
const FRONTEND_TOKEN = "frontend/";

/** What a backend serves, and by what. */
export interface BackendParts {
  readonly scheduler: Scheduler;
  /** Connects to xenstored. Throws `SystemError`. */
  readonly openStore: () => Xenstore;
  readonly tapdisks: Tapdisks;
  readonly log: Log;
  /** The type of its devices in xenstore, such as `vbd3`. */
  readonly type: string;
  /** Only the devices of this domain; null for all. */
  readonly domain: number | null;
  readonly options: DeviceOptions;
  /** Called when the only domain is gone. */
  readonly ended: () => void;
}

/** A device, and what waits for its machine. */
interface Device {
  readonly key: string;
  readonly path: string;
  readonly machine: DeviceMachine;
  readonly events: DeviceEvent[];
  /** The node of its frontend that is watched; empty for none. */
  watched: string;
  readonly looks: Bucket;
  /** Whether it waits for its next look. */
  isPutOff: boolean;
  readonly connects: Bucket;
  readonly warnings: Bucket;
}

/** All devices of one type. */
export class Backend implements FdHandler, FaultOwner, TurnWork {
  readonly failed = false;
  readonly #parts: BackendParts;
  readonly #log: Log;
  readonly #scheduler: Scheduler;
  /** The folder that is watched. */
  readonly #root: string;
  readonly #devices = new Map<string, Device>();
  /** Devices, by key, that are to be looked at. */
  #dirty = new Set<string>();
  #store: Xenstore | null = null;
  /** Of the only domain: whether it had devices, and whether all of them were removed. */
  #hasSeenDomain = false;
  #isDomainGone = false;
  /** Devices, by key, of a xenstored that was replaced by an empty one. */
  readonly #orphans = new Set<string>();
  #doubtTimer = 0;
  #doubtPart = 0;
  #isClosed = false;

  /** Begins to serve. Throws `SystemError` without a xenstored. */
  constructor(parts: BackendParts) {
    this.#parts = parts;
    this.#log = parts.log;
    this.#scheduler = parts.scheduler;
    const { type, domain } = parts;
    this.#root = `backend/${type}${domain === null ? "" : `/${domain}`}`;
    this.#open();
    this.#scheduler.addTurnWork(this, this);
    this.#doubtLater();
  }

  fault(error: unknown): void {
    this.#log.error(`A fault: ${describeFault(error)}`);
  }

  #open(): void {
    const store = this.#parts.openStore();
    this.#scheduler.watch(store.fd, EPOLLIN, this, this);
    this.#store = store;
    this.#knowAgain(store);
    store.watch(this.#root, BACKEND_TOKEN);
    for (const device of this.#devices.values()) {
      device.watched = "";
      this.#dirty.add(device.key);
    }
  }

  /**
   * A xenstored that died has lost all nodes. The guests still run, so that devices which the next one
   * does not have keep their rings. A mark tells whether it is the same.
   */
  #knowAgain(store: Xenstore): void {
    const { type } = this.#parts;
    if (isKnownStore(store, type)) return;
    store.write(markOf(type), "");
    if (this.#devices.size === 0) return;
    this.#log.error("xenstored has lost its nodes: rings stay as they are");
    for (const key of this.#devices.keys()) this.#orphans.add(key);
  }

  /** The connection to xenstored is over: a new one is made. Rings are served meanwhile. */
  #lost(error: unknown): void {
    const store = this.#store;
    if (store === null) return;
    this.#log.error(error instanceof Error ? error.message : String(error));
    this.#closeStore(store);
    this.#reopenLater();
  }

  #closeStore(store: Xenstore): void {
    this.#store = null;
    this.#scheduler.unwatch(store.fd);
    store.close();
  }

  #reopenLater(): void {
    this.#scheduler.addTimer(RECONNECT_MS, () => {
      if (this.#isClosed) return;
      try {
        this.#open();
        this.#log.info("Connected to xenstored again");
      } catch (error) {
        if (this.#store !== null) return this.#lost(error);
        this.#log.warn(error instanceof Error ? error.message : String(error));
        this.#reopenLater();
      }
    }, this);
  }

  #doubtLater(): void {
    this.#doubtTimer = this.#scheduler.addTimer(DOUBT_MS / DOUBT_PARTS, () => {
      this.#doubtPart = (this.#doubtPart + 1) % DOUBT_PARTS;
      let number = 0;
      for (const device of this.#devices.values()) {
        if (number++ % DOUBT_PARTS === this.#doubtPart) this.#doubt(device);
      }
      this.#doubtLater();
    }, this);
  }

  #doubt(device: Device): void {
    const { key, machine, events } = device;
    if (machine.tapdisk === null) return;
    const store = this.#store;
    // What is served is asked for without reading all of its nodes again.
    if (store !== null && machine.isServed && events.length === 0 && !this.#dirty.has(key)) {
      try {
        return this.#step(device, store, { kind: "doubted" });
      } catch (error) {
        return this.#refused(key, store, error);
      }
    }
    this.#happened(device, { kind: "doubted" });
  }

  /** Events have arrived: they are taken at the end of the turn. */
  ready(): void {}

  /** One round for all: a guest that changes its nodes all the time delays no other. */
  endOfTurn(): boolean {
    if (this.#store === null || this.#isClosed) return false;
    const hadMore = this.#takeEvents(this.#store);
    const dirty = this.#dirty;
    this.#dirty = new Set();
    for (const key of dirty) {
      if (this.#store === null) this.#dirty.add(key);
      else this.#lookAt(key, this.#store);
    }
    // Events that came with the answers are in memory: the descriptor does not tell of them.
    const hasMore = this.#store !== null && (this.#takeEvents(this.#store) || hadMore);
    if (this.#store !== null && (hasMore || this.#dirty.size > 0)) this.#nextTurn();
    return false;
  }

  #nextTurn(): void {
    this.#scheduler.addTimer(0, () => {}, this);
  }

  /** Takes events; whether there may be more. */
  #takeEvents(store: Xenstore): boolean {
    try {
      for (let taken = 0; taken < EVENTS_A_TURN; taken++) {
        const event = store.nextEvent();
        if (event === null) return false;
        this.#tryToTake(store, event);
      }
    } catch (error) {
      if (!store.isLost) throw error;
      this.#lost(error);
      return false;
    }
    return true;
  }

  /** Takes an event again later when xenstored refuses what it needs. */
  #tryToTake(store: Xenstore, event: WatchEvent): void {
    try {
      this.#take(store, event);
    } catch (error) {
      if (store.isLost || !(error instanceof SystemError)) throw error;
      this.#log.error(error.message);
      this.#scheduler.addTimer(REFUSED_MS, () => {
        if (this.#store === store) this.#tryToTake(store, event);
      }, this);
    }
  }

  #take(store: Xenstore, { path, token }: WatchEvent): void {
    if (token.startsWith(FRONTEND_TOKEN)) {
      const key = token.slice(FRONTEND_TOKEN.length);
      if (this.#devices.has(key)) this.#dirty.add(key);
      return;
    }
    const folder = `backend/${this.#parts.type}`;
    const at = path.indexOf(folder);
    const [domain, device] = at < 0 ? [] : path.slice(at + folder.length + 1).split("/");
    if (domain !== undefined && domain !== "" && device !== undefined) {
      return this.#noteDevice(domain, device);
    }
    const domains = domain !== undefined && domain !== "" ? [domain] : this.#domains(store);
    for (const each of domains) this.#scan(store, each);
    for (const { key } of this.#devices.values()) {
      if (domain === undefined || domain === "" || key.startsWith(`${domain}/`)) {
        this.#dirty.add(key);
      }
    }
  }

  #domains(store: Xenstore): readonly string[] {
    return store.list(`backend/${this.#parts.type}`) ?? [];
  }

  #scan(store: Xenstore, domain: string): void {
    if (!isNumber(domain)) return;
    const names = store.list(`backend/${this.#parts.type}/${domain}`);
    for (const name of names ?? []) this.#noteDevice(domain, name);
    if (this.#parts.domain === null) return;
    this.#isDomainGone = names === null && this.#hasSeenDomain;
    this.#hasSeenDomain ||= names !== null;
    this.#endWithDomain();
  }

  /** The rings of the only domain are disconnected first. */
  #endWithDomain(): void {
    if (this.#isDomainGone && this.#devices.size === 0) this.#parts.ended();
  }

  #noteDevice(domain: string, device: string): void {
    if (Number(domain) === this.#parts.domain) {
      this.#hasSeenDomain = true;
      this.#isDomainGone = false;
    }
    if (isNumber(domain) && isNumber(device)) this.#dirty.add(`${domain}/${device}`);
  }

  #lookAt(key: string, store: Xenstore): void {
    const device = this.#devices.get(key);
    if (device !== undefined && !device.looks.take(this.#scheduler.nowMs())) {
      return this.#putOff(device);
    }
    try {
      this.#drive(key, store);
    } catch (error) {
      this.#refused(key, store, error);
    }
  }

  #putOff(device: Device): void {
    if (device.isPutOff) return;
    device.isPutOff = true;
    this.#scheduler.addTimer(ONE_MORE_LOOK_MS, () => {
      device.isPutOff = false;
      this.#dirty.add(device.key);
    }, this);
  }

  /** What failed for one device is tried again later, and disturbs no other. */
  #refused(key: string, store: Xenstore, error: unknown): void {
    this.#scheduler.addTimer(REFUSED_MS, () => this.#dirty.add(key), this);
    if (store.isLost) return this.#lost(error);
    const text = error instanceof SystemError ? error.message : describeFault(error);
    this.#log.error(`${titleOf(key)}: ${text}`);
  }

  #drive(key: string, store: Xenstore): void {
    const guest = guestOf(key);
    const path = `backend/${this.#parts.type}/${key}`;
    const seen = observe((node) => store.read(node), path, guest);
    if (seen !== null) this.#orphans.delete(key);
    else if (this.#orphans.has(key)) return;
    const device = this.#devices.get(key) ?? (seen === null ? null : this.#add(key, path, guest));
    if (device === null) return;
    const events: DeviceEvent[] = [{ kind: "seen", seen }, ...device.events.splice(0)];
    const steps = [
      () => this.#watchFrontend(device, store, seen),
      ...events.map((event) => () => this.#step(device, store, event)),
    ];
    eachDone(steps);
  }

  #step(device: Device, store: Xenstore, event: DeviceEvent): void {
    eachDone(
      device.machine.step(event).map((action) => () => {
        this.#carryOut(device, store, action);
      }),
    );
  }

  #add(key: string, path: string, guest: GuestDevice): Device {
    const machine = new DeviceMachine(guest, this.#parts.options);
    const nowMs = this.#scheduler.nowMs();
    const device: Device = {
      key,
      path,
      machine,
      events: [],
      watched: "",
      looks: new Bucket(LOOKS, ONE_MORE_LOOK_MS, nowMs),
      isPutOff: false,
      connects: new Bucket(CONNECTS, ONE_MORE_CONNECT_MS, nowMs),
      warnings: new Bucket(WARNINGS, ONE_MORE_WARNING_MS, nowMs),
    };
    this.#devices.set(key, device);
    this.#log.info(`${titleOf(key)}: Begins`);
    return device;
  }

  #watchFrontend(device: Device, store: Xenstore, seen: DeviceSeen | null): void {
    const path = seen === null || seen.frontendPath === "" ? "" : `${seen.frontendPath}/state`;
    if (device.watched === path) return;
    const token = `${FRONTEND_TOKEN}${device.key}`;
    if (device.watched !== "") store.unwatch(device.watched, token);
    device.watched = "";
    if (path === "") return;
    store.watch(path, token, { tellsBelow: false });
    device.watched = path;
  }

  #happened(device: Device, event: DeviceEvent): void {
    // The device may be another one with the same numbers by now.
    if (this.#devices.get(device.key) !== device) return;
    device.events.push(event);
    this.#dirty.add(device.key);
  }

  #carryOut(device: Device, store: Xenstore, action: DeviceAction): void {
    const { tapdisks } = this.#parts;
    switch (action.kind) {
      case "find":
        return tapdisks.find(action.disk, action.file, (found) => {
          if (device.machine.isConfirmed(action.disk, found)) return;
          this.#happened(device, { kind: "found", disk: action.disk, found });
        });
      case "connect":
        if (!device.connects.take(this.#scheduler.nowMs())) {
          return this.#happened(device, { kind: "connected", errno: Errno.EAGAIN });
        }
        return tapdisks.connect(action.tapdisk, action.ring, (errno) => {
          this.#happened(device, { kind: "connected", errno });
        });
      case "disconnect":
        return tapdisks.disconnect(action.tapdisk, action.guest, (errno) => {
          this.#happened(device, { kind: "disconnected", errno });
        });
      case "write":
        return this.#write(device, store, action);
      case "retry":
        this.#scheduler.addTimer(action.delayMs, () => {
          this.#happened(device, { kind: "retried" });
        }, this);
        return;
      case "log":
        if (action.level === "warn" && !device.warnings.take(this.#scheduler.nowMs())) return;
        return this.#log[action.level](`${titleOf(device.key)}: ${action.text}`);
      case "forget":
        return this.#forget(device, store);
    }
  }

  /**
   * Writes nodes, unless the device is gone, is another one, or has another state: a write would make
   * its folder again, or undo what the toolstack has just written.
   */
  #write(
    { key, path }: Device,
    store: Xenstore,
    { nodes, seen }: Extract<DeviceAction, { kind: "write" }>,
  ): void {
    store.transaction((inside) => {
      if (inside.read(`${path}/frontend`) !== seen.frontendPath) return false;
      if ((inside.read(`${path}/state`) ?? "") !== seen.stateText) return false;
      for (const [name, value] of Object.entries(nodes)) inside.write(`${path}/${name}`, value);
      return true;
    });
    this.#dirty.add(key);
  }

  #forget(device: Device, store: Xenstore): void {
    this.#devices.delete(device.key);
    this.#parts.tapdisks.forget(device.machine.guest);
    this.#log.info(`${titleOf(device.key)}: Ends`);
    const { watched } = device;
    try {
      if (watched !== "") store.unwatch(watched, `${FRONTEND_TOKEN}${device.key}`);
    } finally {
      this.#endWithDomain();
    }
  }

  /** Ends. The rings stay as they are: a tapback that starts later goes on with them. */
  close(): void {
    this.#isClosed = true;
    this.#scheduler.cancelTimer(this.#doubtTimer);
    this.#scheduler.removeTurnWork(this);
    if (this.#store !== null) this.#closeStore(this.#store);
  }
}

function markOf(type: string): string {
  return `tapback/${type}`;
}

/** Whether a tapback was connected to this xenstored before. */
export function isKnownStore(store: Nodes, type: string): boolean {
  return store.read(markOf(type)) !== null;
}

/** Does all steps, also those after one that throws; then throws the first error. */
function eachDone(steps: readonly (() => void)[]): void {
  const errors: unknown[] = [];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}

/** Digits of the largest number of a domain or a device. */
const MOST_NUMBER_DIGITS = 10;

function isNumber(name: string): boolean {
  return /^(?:0|[1-9]\d*)$/.test(name) && name.length <= MOST_NUMBER_DIGITS &&
    Number(name) <= 0xffff_ffff;
}

function guestOf(key: string): GuestDevice {
  const [domain, device] = key.split("/").map(Number);
  return { domain, device };
}

function titleOf(key: string): string {
  const { domain, device } = guestOf(key);
  return `Device ${device} of domain ${domain}`;
}
