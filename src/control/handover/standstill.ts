import { type Done, Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { dropLocks, keepLocks } from "../../files/kept_locks.ts";
import { holdAccepting } from "../../frontend/listening.ts";
import type { Log } from "../../log/log.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Device } from "../daemon/device.ts";
import type { Devices } from "../daemon/devices.ts";

/** How long clients may take to send the rest of a request, and to receive their answers. */
const CLIENTS_MS = 1_000;
/** How long clients of a TCP port may take to end their handshake. */
const GREETINGS_MS = 500;
const CLIENTS_POLL_MS = 1;
/** How long the requests of a disk may take to end. */
const PAUSE_MS = 5_000;

/** What a standstill needs of its process, and of the upgrade that it is for. */
export interface StandstillHost {
  readonly scheduler: Scheduler;
  readonly log: Log;
  readonly devices: Devices;
  /** Whom a fault in it ends. */
  readonly owner: FaultOwner;
  /** Throws `SystemError` when something cannot be handed over now. */
  requireReady(): void;
  /** Nothing is under way, and all images are closed. */
  reached(): void;
  failed(error: SystemError): void;
}

/**
 * Whether requests of a disk are under way, or answers are not sent. A client that has sent NBD_CMD_DISC may
 * have hung up before its last requests ended: no connection shows them, and they are carried out all the same.
 */
function isLoud({ parts: { vbd, access } }: Device): boolean {
  if (access.handovers.some(({ areQuiet }) => !areQuiet) || !access.rings.areQuiet) return true;
  return vbd.phase === "open" && vbd.requests.outstanding > 0;
}

/**
 * All users of a process wait, from `begin` to `end`: what they have asked for ends, no client
 * is accepted, and the images are closed. Their locks are kept.
 */
export class Standstill {
  readonly #host: StandstillHost;
  readonly #sinceMs = performance.now();
  #timer = 0;
  /** The disks that it has paused; others were paused by their users. */
  #paused: Device[] = [];
  /** Disks whose pause has not ended. */
  #pausing = 0;
  #isEnding = false;
  /** Descriptors of the files that are locked. */
  #locks: readonly number[] = [];
  readonly #steps: string[] = [];
  #stepMs = this.#sinceMs;

  constructor(host: StandstillHost) {
    this.#host = host;
  }

  /** Users wait from now on. */
  begin(): void {
    holdAccepting(true);
    this.#holdClients(true);
    this.#awaitQuiet();
  }

  /** Nothing more is begun; what is under way ends. `end` is to come. */
  stop(): void {
    this.#isEnding = true;
    this.#host.scheduler.cancelTimer(this.#timer);
  }

  /** The disks that their users had paused before. */
  get pausedBefore(): readonly Device[] {
    return this.#host.devices.all.filter(({ parts }) => parts.vbd.phase === "paused").filter((
      device,
    ) => !this.#paused.includes(device));
  }

  get locks(): readonly number[] {
    return this.#locks;
  }

  /** Whether a pause is under way: it cannot be ended before. */
  get isPausing(): boolean {
    return this.#pausing > 0;
  }

  /** How long users have waited, milliseconds. */
  get elapsedMs(): number {
    return performance.now() - this.#sinceMs;
  }

  /** A step has ended. */
  step(name: string): void {
    const nowMs = performance.now();
    this.#steps.push(`${name} ${(nowMs - this.#stepMs).toFixed(1)}`);
    this.#stepMs = nowMs;
  }

  /** How long each step took, in milliseconds, for the log. */
  get steps(): string {
    return this.#steps.join(", ");
  }

  #holdClients(isHeld: boolean): void {
    for (const { parts } of this.#host.devices.all) {
      const { handovers, rings } = parts.access;
      for (const clients of handovers) clients.hold(isHeld);
      if (isHeld) rings.hold();
      else rings.goOn();
    }
  }

  #isReady(): boolean {
    try {
      this.#host.requireReady();
      return true;
    } catch (error) {
      this.#host.failed(systemError(error, "Cannot hand over"));
      return false;
    }
  }

  #awaitQuiet(): void {
    if (this.#isEnding) return;
    const { devices, scheduler, owner } = this.#host;
    const loud = devices.all.find(isLoud);
    // A client that was in the handshake may have entered with TLS.
    if (loud === undefined) return this.#isReady() ? this.#pause() : undefined;
    if (this.elapsedMs > GREETINGS_MS) {
      for (const clients of loud.parts.access.handovers) clients.dropGreetings();
    }
    if (this.elapsedMs > CLIENTS_MS) {
      const why =
        "a client has sent a part of a request only, does not receive its answers, or its " +
        "requests do not end";
      const what = `Cannot hand over (minor ${loud.minor}: ${why})`;
      return this.#host.failed(new SystemError(Errno.ETIMEDOUT, what));
    }
    this.#timer = scheduler.addTimer(CLIENTS_POLL_MS, () => this.#awaitQuiet(), owner);
  }

  /** No request is under way: images are closed, and their locks are kept. */
  #pause(): void {
    this.step("requests");
    const { devices, scheduler, owner, failed, reached } = this.#host;
    try {
      this.#locks = keepLocks();
    } catch (error) {
      return failed(systemError(error, "Cannot keep the locks of the images"));
    }
    this.#paused = devices.all.filter(({ parts }) => parts.vbd.phase === "open");
    this.#pausing = this.#paused.length;
    // In the timers of a turn all events of it have been seen: no control connection of which more has
    // arrived reads that here, when the other process has it already.
    if (this.#pausing === 0) return void scheduler.addTimer(0, reached, owner);
    let failure: SystemError | null = null;
    for (const { parts } of this.#paused) {
      parts.vbd.pause((error) => {
        failure ??= error;
        if (--this.#pausing > 0) return;
        this.step("closing");
        if (failure !== null) failed(failure);
        scheduler.addTimer(0, reached, owner);
      }, PAUSE_MS);
    }
  }

  /** Users go on here. Calls back when the images are open again, or that is tried again and again. */
  end(done: Done): void {
    const { log } = this.#host;
    this.stop();
    // Before the images are open: one may be at a server that waits, or be another disk of this process.
    // Requests wait for their disks.
    holdAccepting(false);
    this.#holdClients(false);
    const paused = this.#paused.filter(({ parts }) => parts.vbd.phase === "paused");
    let left = paused.length;
    let failure: SystemError | null = null;
    const opened: Done = (error) => {
      failure ??= error;
      if (--left > 0) return;
      dropLocks();
      done(failure);
    };
    if (left === 0) {
      left = 1;
      return opened(null);
    }
    for (const { minor, parts } of paused) {
      parts.vbd.reopening.runOn((error) => {
        if (error !== null) log.error(`Minor ${minor} waits until its image opens`);
        opened(error);
      });
    }
  }
}
