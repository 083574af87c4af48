/**
 * The state machine of one device: what happened goes in, what is to be done comes out. It reads and
 * writes nothing itself, so that tests try it in every order.
 *
 * It decides by what xenstore has now, and by what the tapdisk has answered, not by the order of
 * events. So an event that is lost, repeated or late changes nothing, and a tapback that starts under
 * running guests finds its place.
 *
 * @module
 */
import { Errno, errnoName } from "../../ffi/errno.ts";
import type { GuestDevice, GuestRing } from "../control/protocol/guest_ring.ts";
import { RingFeature } from "../control/protocol/disk_info.ts";
import type { DeviceAction, DeviceEvent, FoundDisk, Tapdisk } from "./device_events.ts";
import {
  connectedNodes,
  type DeviceOptions,
  fileOf,
  initialNodes,
  movedRecord,
  recordOf,
  ringRecord,
  ringText,
  tapdiskNodes,
} from "./nodes.ts";
import { type DeviceSeen, type FrontendSeen, RING_NODE, type WantedDisk } from "./observation.ts";
import { stateName, XenbusState } from "./xenbus.ts";

/** How long to wait after a failure: twice as long after each further one. */
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 8_000;

/** How long a toolstack may take to write the frontend of a device. */
const PATIENCE_MS = 5_000;

/** Errors that say that a ring is connected nowhere: not asked, no tapdisk, no such minor or ring. */
const NOT_CONNECTED: readonly number[] = [
  Errno.EAGAIN,
  Errno.ENOENT,
  Errno.ESRCH,
  Errno.ENODEV,
  Errno.ENXIO,
  Errno.ECONNREFUSED,
];

/** A ring that a tapdisk has, or may have. */
interface HeldRing {
  /** Null when the tapdisk is not known yet. */
  readonly tapdisk: Tapdisk | null;
  /** The disk that the toolstack wanted, as text. */
  readonly disk: string;
  /** What was connected; null when that is not certain. */
  readonly ring: string | null;
  /** What a tapback before this one has connected, as it wrote; null when that is not known. */
  readonly earlier: string | null;
}

/** Whether the toolstack means this tapdisk. */
function isNamedBy(disk: WantedDisk | null, tapdisk: Tapdisk | null): boolean {
  return disk !== null && tapdisk !== null && disk.pid === tapdisk.pid &&
    disk.minor === tapdisk.minor;
}

/** What is to be done in which order is written in `#next`. */
export class DeviceMachine {
  readonly guest: GuestDevice;
  readonly #options: DeviceOptions;
  #seen: DeviceSeen | null = null;
  #isFirst = true;
  #hadFrontend = false;
  #lastFrontend: number = XenbusState.UNKNOWN;
  /** The call to a tapdisk about the ring that has not been answered. */
  #call:
    | { readonly kind: "connect"; readonly held: HeldRing }
    | { readonly kind: "disconnect" }
    | null = null;
  /** The disk that is being found, as text; empty for none. */
  #finding = "";
  #isDoubted = false;
  /** The disk that the last `find` was for, as text, and what it found. */
  #foundFor = "";
  #found: FoundDisk | null = null;
  /** That of the disk's minor, as far as it is known. */
  #file = "";
  #findFailed = false;
  #held: HeldRing | null = null;
  /** Whether the frontend has begun again with its ring. */
  #isRenewed = false;
  /** Whether a disconnect has begun: it has to end before anything else, for it may have been done. */
  #isLeaving = false;
  /** How long a frontend that has not been seen is waited for. */
  #patience: "long" | "short" | "none" = "long";
  #waitsFor = "";
  #delayMs = FIRST_RETRY_MS;
  #loggedFault = "";
  #actions: DeviceAction[] = [];

  constructor(guest: GuestDevice, options: DeviceOptions) {
    this.guest = guest;
    this.#options = options;
  }

  /** The ring's tapdisk, for the log; null while there is none. */
  get tapdisk(): Tapdisk | null {
    return this.#held?.tapdisk ?? null;
  }

  /** Whether the ring is certain to be served. */
  get isServed(): boolean {
    return this.#held !== null && this.#held.ring !== null && this.#call === null;
  }

  /** Takes an answer to `find` for a ring that is served, if it says nothing new; else returns false. */
  isConfirmed(disk: WantedDisk, found: FoundDisk | number): boolean {
    if (!this.isServed || this.#isDoubted || this.#finding !== JSON.stringify(disk)) return false;
    if (JSON.stringify(found) !== JSON.stringify(this.#found)) return false;
    this.#finding = "";
    this.#findFailed = false;
    return true;
  }

  /** Takes an event; returns what is to be done, in order. */
  step(event: DeviceEvent): DeviceAction[] {
    this.#actions = [];
    this.#take(event);
    this.#next();
    return this.#actions;
  }

  #take(event: DeviceEvent): void {
    switch (event.kind) {
      case "seen":
        return this.#takeSeen(event.seen);
      case "found":
        return this.#takeFound(event.found, JSON.stringify(event.disk));
      case "connected":
        return this.#takeConnected(event.errno);
      case "disconnected":
        return this.#takeDisconnected(event.errno);
      case "retried":
        this.#waitsFor = "";
        if (this.#patience === "short") this.#patience = "none";
        return;
      case "doubted":
        this.#isDoubted = true;
    }
  }

  #takeSeen(seen: DeviceSeen | null): void {
    this.#seen = seen;
    if (seen === null) return;
    const isFirst = this.#isFirst;
    if (isFirst) this.#adopt(seen);
    this.#isFirst = false;
    const state = seen.frontend?.state ?? XenbusState.UNKNOWN;
    const isNew = seen.state === XenbusState.UNKNOWN || seen.state === XenbusState.INITIALISING;
    // A device that was made again may get its frontend later than its own nodes.
    this.#hadFrontend = seen.frontend !== null || !isNew && (this.#hadFrontend || isFirst);
    if (this.#hadFrontend) this.#patience = "long";
    const { CONNECTED, INITIALISED } = XenbusState;
    if (this.#lastFrontend === CONNECTED && state === INITIALISED) this.#isRenewed = true;
    this.#lastFrontend = state;
    if (this.#waitsFor !== "" && this.#waitsFor !== this.#situation(seen)) {
      this.#waitsFor = "";
      this.#delayMs = FIRST_RETRY_MS;
    }
  }

  /** At the start, a tapback before this one may have connected the ring. */
  #adopt(seen: DeviceSeen): void {
    const { disk } = seen;
    const { CONNECTED, CLOSING, INITIALISED } = XenbusState;
    // The guest waits for this side to connect, which it is: it has begun again, perhaps with the same numbers.
    this.#isRenewed = seen.state === CONNECTED && seen.frontend?.state === INITIALISED;
    const record = recordOf(seen);
    if (record !== null) {
      const { pid, minor, ring: earlier } = record;
      this.#held = { tapdisk: { pid, minor }, disk: JSON.stringify(disk), ring: null, earlier };
      return;
    }
    // The original leaves no record.
    if (seen.state !== CONNECTED && seen.state !== CLOSING) return;
    const tapdisk = disk === null || disk.pid === null
      ? null
      : { pid: disk.pid, minor: disk.minor };
    this.#held = { tapdisk, disk: JSON.stringify(disk), ring: null, earlier: null };
  }

  #takeFound(found: FoundDisk | number, disk: string): void {
    // The toolstack has chosen another disk meanwhile.
    if (disk !== this.#finding) return;
    this.#finding = "";
    this.#findFailed = typeof found === "number";
    if (typeof found !== "number") {
      const before = this.#found;
      this.#found = found;
      this.#file = found.file;
      this.#delayMs = FIRST_RETRY_MS;
      this.#follow(found, disk);
      if (before === null || before.pid !== found.pid) {
        this.#log("info", `Its disk is minor ${found.minor} of tapdisk ${found.pid}`);
      }
      return;
    }
    // The tapdisk may have lost the ring too.
    if (this.#held !== null) this.#held = { ...this.#held, ring: null };
    if (this.#found !== null) this.#isDoubted = true;
    this.#found = null;
    this.#fail(`Has no disk: no tapdisk has it (${errnoName(found)})`);
  }

  /** A tapdisk that hands its disks over hands their rings over, too. */
  #follow({ pid, minor, successorOf }: FoundDisk, disk: string): void {
    if (this.#held === null || this.#call !== null || successorOf === undefined) return;
    const { tapdisk } = this.#held;
    if (tapdisk?.pid !== successorOf || tapdisk.minor !== minor) return;
    this.#held = { ...this.#held, tapdisk: { pid, minor }, disk };
  }

  #takeConnected(errno: number): void {
    const held = this.#call?.kind === "connect" ? this.#call.held : null;
    this.#call = null;
    if (held === null) return;
    // A ring that this process did not connect may be an old one of a guest that began again.
    const isSame = errno === Errno.EALREADY && this.#held !== null;
    if (errno === 0 || isSame) {
      this.#held = held;
      this.#delayMs = FIRST_RETRY_MS;
      const verb = isSame ? "has" : "serves";
      return this.#log("info", `Tapdisk ${held.tapdisk?.pid} ${verb} its ring`);
    }
    if (errno === Errno.EALREADY) {
      this.#held = { ...held, ring: null };
      this.#isRenewed = true;
      return this.#fail(`Tapdisk ${held.tapdisk?.pid} has another ring of it`);
    }
    const isCertain = NOT_CONNECTED.includes(errno);
    // A tapdisk that did not answer may have connected it all the same.
    this.#held = isCertain ? null : { ...held, ring: null, earlier: held.ring };
    if (isCertain) this.#isDoubted = true;
    this.#fail(`Cannot connect its ring to tapdisk ${held.tapdisk?.pid} (${errnoName(errno)})`);
  }

  #takeDisconnected(errno: number): void {
    this.#call = null;
    if (errno === 0 || NOT_CONNECTED.includes(errno)) {
      this.#log("info", `Tapdisk ${this.#held?.tapdisk?.pid} has no ring of it`);
      this.#held = null;
      this.#isRenewed = false;
      this.#isLeaving = false;
      return;
    }
    this.#fail(
      `Cannot disconnect its ring from tapdisk ${this.#held?.tapdisk?.pid} (${errnoName(errno)})`,
    );
  }

  /** A call failed: it is tried again after a time, or when the situation has changed. */
  #fail(text: string): void {
    this.#log("warn", text);
    this.#waitsFor = this.#situation(this.#seen);
    this.#actions.push({ kind: "retry", delayMs: this.#delayMs });
    this.#delayMs = Math.min(2 * this.#delayMs, LONGEST_RETRY_MS);
  }

  /** What a failure depends on. */
  #situation(seen: DeviceSeen | null): string {
    if (seen === null) return "gone";
    const { frontend, disk, isReady } = seen;
    return JSON.stringify([frontend?.state, frontend?.ring, disk, isReady]);
  }

  #log(level: "info" | "warn", text: string): void {
    this.#actions.push({ kind: "log", level, text });
  }

  /** Decides. Rings first: a state that says that there is none is written when there is none. */
  #next(): void {
    const seen = this.#seen;
    if (this.#isFirst && seen === null) return;
    if (seen !== null) this.#find(seen);
    if (this.#call !== null) return;
    if (this.#held !== null && this.#mustDrop(seen, this.#held)) return this.#drop(this.#held);
    if (seen === null) return void this.#actions.push({ kind: "forget" });
    const ring = this.#ringToConnect(seen);
    if (ring !== null) return this.#connect(seen, ring);
    this.#write(seen);
  }

  /** Asks for the disk when it is not known, or in doubt. */
  #find(seen: DeviceSeen): void {
    const { disk } = seen;
    const wanted = JSON.stringify(disk);
    if (this.#foundFor !== wanted) {
      this.#foundFor = wanted;
      if (!isNamedBy(disk, this.#found)) {
        this.#found = null;
        this.#file = disk === null ? "" : fileOf(seen, disk);
      }
      this.#findFailed = false;
      this.#finding = "";
    }
    if (disk === null || this.#finding !== "" || this.#waitsFor !== "") return;
    if (this.#found !== null && !this.#isDoubted) return;
    this.#finding = wanted;
    this.#isDoubted = false;
    this.#actions.push({ kind: "find", disk, file: this.#file });
  }

  /** Whether a ring must not be served any more as it is. */
  #mustDrop(seen: DeviceSeen | null, held: HeldRing): boolean {
    const frontend = seen?.frontend ?? null;
    if (this.#isLeaving || seen === null || frontend === null) return true;
    const { INITIALISING, INITIALISED, CONNECTED, CLOSED } = XenbusState;
    if (frontend.state === INITIALISING || frontend.state === CLOSED) return true;
    if (seen.disk === null) return true;
    // The toolstack has made the device again: its ring may look the same, and is another one.
    if (held.ring !== null && seen.own.get(RING_NODE) === null) return true;
    // The disk is another one, or another tapdisk has it now.
    if (held.disk !== JSON.stringify(seen.disk) && !isNamedBy(seen.disk, held.tapdisk)) return true;
    if (this.#found !== null && held.tapdisk !== null && this.#found.pid !== held.tapdisk.pid) {
      return true;
    }
    if (frontend.ring === null) return false;
    const ring = ringText(frontend.ring);
    const isAnother = (held.ring ?? held.earlier) !== ring;
    if (frontend.state === INITIALISED) return this.#isRenewed || isAnother;
    // A guest that resumes goes to CONNECTED by itself, for it finds this side there. Its INITIALISED
    // may have passed unseen.
    return frontend.state === CONNECTED && isAnother &&
      (held.ring !== null || held.earlier !== null);
  }

  #drop(held: HeldRing): void {
    const tapdisk = held.tapdisk ?? this.#found;
    if (tapdisk === null) {
      // No tapdisk has the minor, so none has the ring; or that is not known yet.
      if (this.#seen !== null && this.#seen.disk !== null && !this.#findFailed) return;
      this.#held = null;
      this.#isLeaving = false;
      return this.#next();
    }
    if (this.#waitsFor !== "") return;
    this.#isLeaving = true;
    this.#held = { ...held, tapdisk };
    this.#call = { kind: "disconnect" };
    const { pid, minor } = tapdisk;
    this.#actions.push({ kind: "disconnect", tapdisk: { pid, minor }, guest: this.guest });
  }

  /** The ring that is to be connected now; null for none. */
  #ringToConnect(seen: DeviceSeen): GuestRing | null {
    const { frontend, isReady, isOnline, state } = seen;
    if (frontend === null || !isReady || this.#found === null || this.#waitsFor !== "") return null;
    const { INITIALISED, CONNECTED, CLOSING, CLOSED } = XenbusState;
    if (frontend.state !== INITIALISED && frontend.state !== CONNECTED) return null;
    if (this.#held !== null && this.#held.ring !== null) return null;
    if (state === CLOSING || (!isOnline && state !== CONNECTED)) return null;
    if (state === CLOSED && frontend.state === CONNECTED) return null;
    this.#logFault(frontend);
    if (frontend.ring !== null && this.#isInUse(seen, this.#found)) return null;
    return frontend.ring;
  }

  /**
   * Whether a guest is in the middle of its ring, and the tapdisk would begin at the ring's start. That
   * would do old requests again. A tapdisk that has the ring already is none of those.
   */
  #isInUse(seen: DeviceSeen, { pid, ringFeatures }: FoundDisk): boolean {
    const isRunning = seen.state === XenbusState.CONNECTED &&
      seen.frontend?.state === XenbusState.CONNECTED;
    const mayHaveIt = this.#held?.tapdisk?.pid === pid;
    const continues = (ringFeatures & RingFeature.CONTINUES) !== 0;
    const isStuck = isRunning && !mayHaveIt && !continues;
    if (isStuck && this.#loggedFault === "") {
      this.#loggedFault = `tapdisk ${pid} cannot go on with a ring`;
      this.#log("warn", `Its guest must connect again: ${this.#loggedFault}`);
    }
    return isStuck;
  }

  #logFault({ fault }: FrontendSeen): void {
    if (fault !== this.#loggedFault && fault !== "") {
      this.#log("warn", `Its ring is wrong: ${fault}`);
    }
    this.#loggedFault = fault;
  }

  #connect(seen: DeviceSeen, ring: GuestRing): void {
    if (this.#found === null) return;
    const { pid, minor } = this.#found;
    const tapdisk = { pid, minor };
    const record = ringRecord(tapdisk, ring);
    if (seen.own.get(RING_NODE) !== record) {
      this.#actions.push({ kind: "write", nodes: { [RING_NODE]: record }, seen });
      return;
    }
    const held = {
      tapdisk,
      disk: JSON.stringify(seen.disk),
      ring: ringText(ring),
      earlier: null,
    };
    // A guest that begins again from now on means another ring than the one of this call.
    this.#isRenewed = false;
    this.#call = { kind: "connect", held };
    this.#actions.push({ kind: "connect", tapdisk, ring });
  }

  /** Writes what is to be written, with the state. */
  #write(seen: DeviceSeen): void {
    const nodes: Record<string, string> = { ...initialNodes(seen) };
    if (this.#found !== null) Object.assign(nodes, tapdiskNodes(seen, this.#found));
    let state = this.#stateToWrite(seen);
    if (this.#held === null && (seen.own.get(RING_NODE) ?? "") !== "") nodes[RING_NODE] = "";
    const { tapdisk = null } = this.#held ?? {};
    if (tapdisk !== null && !this.#isLeaving) Object.assign(nodes, movedRecord(seen, tapdisk));
    if (this.#found !== null && this.#held !== null && this.#held.ring !== null) {
      const connected = connectedNodes(seen, this.#found, this.#options);
      const isConnected = seen.state === XenbusState.CONNECTED;
      if (state === XenbusState.CONNECTED || (isConnected && connected.isNew)) {
        Object.assign(nodes, connected.nodes);
        // A guest reads the size again when the state is written, even if it is the same one.
        state = XenbusState.CONNECTED;
      }
    }
    if (state !== null) nodes.state = String(state);
    if (this.#patience === "long" && this.#waitsForFrontend(seen)) {
      this.#patience = "short";
      this.#actions.push({ kind: "retry", delayMs: PATIENCE_MS });
    }
    if (Object.keys(nodes).length === 0) return;
    if (state !== null && state !== seen.state) {
      this.#log("info", `Goes to state ${stateName(state)}`);
    }
    this.#actions.push({ kind: "write", nodes, seen });
  }

  /** The state that this side goes to; null to stay. */
  #stateToWrite(seen: DeviceSeen): number | null {
    const wanted = this.#wantedState(seen);
    return wanted === seen.state ? null : wanted;
  }

  /** Whether a device without a frontend may still get one: the toolstack may write it later. */
  #waitsForFrontend({ frontend, isOnline, state }: DeviceSeen): boolean {
    return frontend === null && state === XenbusState.INIT_WAIT && isOnline &&
      !this.#hadFrontend && this.#patience !== "none";
  }

  #wantedState(seen: DeviceSeen): number {
    const { state, isOnline, frontend } = seen;
    const { UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED } =
      XenbusState;
    // libxl waits for this before it runs the script that finds the disk.
    const isNew = state === UNKNOWN || state === INITIALISING;
    const begun = isNew ? INIT_WAIT : state;
    if (frontend === null) {
      return isNew || this.#waitsForFrontend(seen) ? INIT_WAIT : CLOSED;
    }
    switch (frontend.state) {
      case INITIALISING:
        if (isOnline) return INIT_WAIT;
        // The toolstack removes a device that the guest never used.
        return state === CLOSING ? CLOSED : state;
      case INITIALISED:
      case CONNECTED:
        return this.#held === null || this.#held.ring === null || state === CLOSING
          ? begun
          : CONNECTED;
      case CLOSING:
        return state === CLOSED && !isOnline ? CLOSED : CLOSING;
      case CLOSED:
        return CLOSED;
      default:
        return begun;
    }
  }
}
