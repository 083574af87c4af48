import { peerOf } from "../../../ffi/descriptors.ts";
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { type DoneWith, Errno, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { effectiveUser } from "../../../ffi/process.ts";
import { dropLocks, keepLocks } from "../../files/kept_locks.ts";
import { holdAccepting } from "../../frontend/listening.ts";
import type { Log } from "../../log/log.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import type { ControlConnection } from "../daemon/control_connection.ts";
import type { Devices } from "../daemon/devices.ts";
import type { ControlServer } from "../daemon/server.ts";
import type { ProgramCall, UpgradeReply } from "../protocol/upgrade.ts";
import { HandoverChannel } from "./channel.ts";
import { HANDOVER_FORMAT, newFrame } from "./frames.ts";
import { removeNamesOf } from "./names.ts";
import { Successor } from "./successor.ts";
import { tellAll } from "./tell.ts";
import { whyStaying } from "./why_staying.ts";

/** How long the new process may take until it asks for the disks. */
const START_MS = 30_000;
/** How long it may try to open the images, and how long a frame may wait for room. */
const REHEARSE_MS = 20_000;
const SEND_MS = 1_000;
/** How long commands that run may take to end. */
const COMMANDS_MS = 10_000;
/** How long clients may take to send the rest of a request, and to receive their answers. */
const CLIENTS_MS = 1_000;
/** How long clients of a TCP port may take to end their handshake. */
const GREETINGS_MS = 500;
const CLIENTS_POLL_MS = 1;
/** How long the requests of a disk may take to end. */
const PAUSE_MS = 5_000;
/** How long the new process may take to open the disks, and how long to say that it serves them. */
const OPEN_MS = 10_000;
const SERVE_MS = 10_000;

/** What a handover needs of its process. */
export interface UpgradeHost {
  readonly scheduler: Scheduler;
  readonly log: Log;
  readonly devices: Devices;
  server(): ControlServer;
  /** Arguments of tapdisk that the new process gets as well. */
  readonly args: readonly string[];
  /** Why this process cannot be replaced at all; null when it can. */
  readonly whyStaying: string | null;
  /** Ends this process at once, and leaves all names to the one that serves now. */
  exit(): void;
}

/** The handovers of a process, one at a time. The last one ends the process. */
export class Upgrades {
  readonly #host: UpgradeHost;
  #current: Upgrade | null = null;

  constructor(host: UpgradeHost) {
    this.#host = host;
  }

  /**
   * Starts a program, to which this process hands its disks over. Calls back when that one serves, and
   * this process then ends; or with an error, and this process serves on.
   *
   * @param connection Where the wish came from: it is answered here.
   * @throws {SystemError} Something cannot be handed over.
   */
  begin(
    call: ProgramCall,
    connection: ControlConnection | null,
    done: DoneWith<UpgradeReply>,
  ): void {
    if (this.#current !== null) {
      throw new SystemError(Errno.EALREADY, "Cannot upgrade (another upgrade is under way)");
    }
    this.#current = new Upgrade(this.#host, { call, asker: connection }, (...end) => {
      this.#current = null;
      try {
        done(...end);
      } finally {
        if (end[0] === null) this.#host.exit();
      }
    });
  }

  /** The new process asks for the disks. Throws `SystemError`: EPERM for any other process. */
  join(connection: ControlConnection, format: number): void {
    const { pid, uid } = peerOf(connection.fd);
    if (this.#current?.pid !== pid || (uid !== effectiveUser() && uid !== 0)) {
      const why = `process ${pid} is not the one that was started for that`;
      throw new SystemError(Errno.EPERM, `Cannot hand over the disks (${why})`);
    }
    this.#current.join(connection, format);
  }
}

/** One handover, on the side of the process that has served until now. */
class Upgrade implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #host: UpgradeHost;
  readonly #asker: ControlConnection | null;
  readonly #done: DoneWith<UpgradeReply>;
  readonly #successor: Successor;
  #timer = 0;
  #channel: HandoverChannel | null = null;
  /** Gives up the wait for commands that run. */
  #giveUpWait: () => boolean = () => false;
  /** Lets other commands run again; null as long as they run. */
  #finished: (() => void) | null = null;
  /** When clients began to wait. */
  #heldMs = 0;
  #isHeld = false;
  /** Descriptors of the files that are locked. */
  #locks: readonly number[] = [];
  /** Disks whose pause has not ended. */
  #pausing = 0;
  /** Whether the new process may have begun to serve. */
  #isToldToServe = false;
  #isRestored = false;
  #failure: SystemError | null = null;
  #hasEnded = false;

  constructor(
    host: UpgradeHost,
    { call, asker }: { call: ProgramCall; asker: ControlConnection | null },
    done: DoneWith<UpgradeReply>,
  ) {
    this.#host = host;
    this.#asker = asker;
    this.#done = done;
    this.#requireReady();
    this.#successor = new Successor(call, host.args);
    const { log, scheduler } = host;
    log.info(`Started ${call.program}, process ${this.#successor.pid}, to take over the disks`);
    scheduler.settle(this.#successor.ended, (how) => this.#successorEnded(how), this);
    this.#limit(START_MS, "it does not ask for the disks");
  }

  get pid(): number {
    return this.#successor.pid;
  }

  /** Throws `SystemError` when something cannot be handed over now. */
  #requireReady(): void {
    const { devices } = this.#host;
    const refuse = (why: string): never => {
      throw new SystemError(Errno.EBUSY, `Cannot replace tapdisk ${Deno.pid}`, { hint: why });
    };
    const { whyStaying: whole } = this.#host;
    if (whole !== null) refuse(whole);
    if (devices.isEnding) refuse("it is ending");
    for (const device of devices.all) {
      const why = whyStaying(device);
      if (why !== null) refuse(`minor ${device.minor}: ${why}`);
    }
  }

  #limit(delayMs: number, why: string): void {
    const { scheduler } = this.#host;
    scheduler.cancelTimer(this.#timer);
    this.#timer = scheduler.addTimer(delayMs, () => this.#fail(this.#tooLate(why)), this);
  }

  #tooLate(why: string): SystemError {
    return new SystemError(Errno.ETIMEDOUT, `Cannot hand over to process ${this.pid} (${why})`);
  }

  /** The new process is ready. */
  join(connection: ControlConnection, format: number): void {
    if (this.#channel !== null || this.#failure !== null) {
      throw new SystemError(Errno.EALREADY, "Cannot hand over the disks twice");
    }
    this.#channel = new HandoverChannel(connection.release());
    if (format !== HANDOVER_FORMAT) {
      const formats =
        `it takes over in format ${format}, this one hands over in ${HANDOVER_FORMAT}`;
      const what = `Cannot hand over to process ${this.pid} (${formats})`;
      return this.#fail(new SystemError(Errno.EPROTONOSUPPORT, what));
    }
    this.#limit(REHEARSE_MS, "it does not try the images");
    const channel = this.#channel;
    const images = this.#host.devices.all.map(({ name }) => name).filter((name) => name !== "");
    try {
      channel.send({ kind: "rehearse", images }, [], performance.now() + SEND_MS);
      this.#host.scheduler.watch(channel.fd, EPOLLIN, this, this);
    } catch (error) {
      this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
    }
  }

  /** The new process answers, or has ended, while this one still serves. */
  ready(): void {
    const channel = this.#channel;
    if (channel === null || this.#failure !== null) return;
    try {
      const frame = channel.take();
      if (frame === null) return;
      newFrame(frame.value, "ready");
      this.#host.scheduler.unwatch(channel.fd);
    } catch (error) {
      this.#host.scheduler.unwatch(channel.fd);
      return this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
    }
    this.#awaitCommands();
  }

  fault(error: unknown): void {
    this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
  }

  #awaitCommands(): void {
    this.#limit(COMMANDS_MS, "a command of tap-ctl does not end");
    this.#giveUpWait = this.#host.server().runWhole((finished) => {
      this.#finished = finished;
      this.#hold();
    });
  }

  /** Whether all can be handed over; when it cannot, that is the end. */
  #isReady(): boolean {
    try {
      this.#requireReady();
      return true;
    } catch (error) {
      this.#fail(systemError(error, "Cannot hand over"));
      return false;
    }
  }

  /** No command runs: clients finish what they are about. */
  #hold(): void {
    if (this.#failure !== null) return this.#restore();
    if (!this.#isReady()) return;
    const { scheduler } = this.#host;
    scheduler.cancelTimer(this.#timer);
    this.#isHeld = true;
    this.#heldMs = performance.now();
    holdAccepting(true);
    this.#holdClients(true);
    this.#awaitQuiet();
  }

  #holdClients(isHeld: boolean): void {
    for (const { parts } of this.#host.devices.all) {
      for (const clients of parts.access.handovers) clients.hold(isHeld);
    }
  }

  #awaitQuiet(): void {
    if (this.#failure !== null) return;
    const loud = this.#host.devices.all.find(({ parts }) =>
      parts.access.handovers.some(({ areQuiet }) => !areQuiet)
    );
    // A client that was in the handshake may have entered with TLS.
    if (loud === undefined) return this.#isReady() ? this.#pause() : undefined;
    const waitedMs = performance.now() - this.#heldMs;
    if (waitedMs > GREETINGS_MS) {
      for (const clients of loud.parts.access.handovers) clients.dropGreetings();
    }
    if (waitedMs > CLIENTS_MS) {
      const why =
        "a client has sent a part of a request only, does not receive its answers, or its " +
        "requests do not end";
      return this.#fail(this.#tooLate(`minor ${loud.minor}: ${why}`));
    }
    this.#timer = this.#host.scheduler.addTimer(CLIENTS_POLL_MS, () => this.#awaitQuiet(), this);
  }

  /** No request is under way: images are closed, and their locks are kept. */
  #pause(): void {
    const open = this.#host.devices.all.filter(({ parts }) => parts.request !== null);
    try {
      this.#locks = keepLocks();
    } catch (error) {
      return this.#fail(systemError(error, "Cannot keep the locks of the images"));
    }
    this.#pausing = open.length;
    let failure: SystemError | null = null;
    const { scheduler } = this.#host;
    if (open.length === 0) return this.#tell();
    for (const { parts } of open) {
      parts.vbd.pause((error) => {
        failure ??= error;
        if (--this.#pausing > 0) return;
        if (failure !== null) this.#fail(failure);
        scheduler.addTimer(0, () => this.#tell(), this);
      }, PAUSE_MS);
    }
  }

  /**
   * All images are closed, and nothing is served. So this waits in the turn: nothing may happen between
   * these steps. An error is met before the new process serves, or after it has ended.
   */
  #tell(): void {
    if (this.#failure !== null) return this.#restore();
    const channel = this.#channel;
    if (channel === null) return;
    const { devices } = this.#host;
    try {
      if (devices.isEnding) {
        throw new SystemError(Errno.ECANCELED, "Cannot hand over (a signal came)");
      }
      for (const { minor, parts } of devices.all) {
        const [lost] = parts.vbd.retained.names;
        if (lost === undefined) continue;
        const why = `minor ${minor}: ${lost} could not be written`;
        throw new SystemError(Errno.EIO, `Cannot hand over (${why})`);
      }
      const openMs = performance.now() + OPEN_MS;
      const commands = this.#host.server().unanswered(this.#asker);
      tellAll(channel, { devices: devices.all, locks: this.#locks, commands }, openMs);
      newFrame(channel.receive(openMs).value, "opened");
      const serveMs = performance.now() + SERVE_MS;
      this.#isToldToServe = true;
      channel.send({ kind: "serve" }, [], serveMs);
      newFrame(channel.receive(serveMs).value, "serving");
    } catch (error) {
      return this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
    }
    this.#succeed();
  }

  #succeed(): void {
    const stallMs = performance.now() - this.#heldMs;
    const { log } = this.#host;
    log.info(`Process ${this.pid} serves the disks; users waited ${stallMs.toFixed(1)} ms`);
    this.#done(null, { pid: this.pid, stallMs });
  }

  #successorEnded(how: string): void {
    this.#hasEnded = true;
    if (this.#failure !== null) return this.#restore();
    const what = `Cannot hand over to process ${this.pid} (${how})`;
    this.#fail(new SystemError(Errno.ECHILD, what, { message: what }));
  }

  /** Ends the new process. Only when it has ended, this one goes on. */
  #fail(failure: SystemError): void {
    if (this.#failure !== null) return;
    this.#failure = failure;
    this.#host.log.error(`${failure.message}; process ${Deno.pid} serves on`);
    this.#host.scheduler.cancelTimer(this.#timer);
    if (this.#giveUpWait()) this.#giveUpWait = () => false;
    this.#successor.kill();
    if (this.#hasEnded) this.#restore();
  }

  /** The new process has ended: all is as it was before. */
  #restore(): void {
    if (!this.#hasEnded || this.#pausing > 0 || this.#isRestored) return;
    this.#isRestored = true;
    if (this.#hasServed()) this.#dropClients();
    this.#channel?.close();
    this.#channel = null;
    this.#removeNames();
    if (!this.#isHeld) return this.#restored();
    // Before the images are open: one may be at a server that waits, or be another disk of this process.
    // Requests wait for their disks.
    this.#isHeld = false;
    holdAccepting(false);
    this.#holdClients(false);
    const paused = this.#host.devices.all.filter(({ parts }) => parts.vbd.phase === "paused");
    let left = paused.length;
    if (left === 0) return this.#restored();
    for (const { minor, parts } of paused) {
      parts.vbd.reopening.runOn((error) => {
        if (error !== null) {
          this.#host.log.error(`Minor ${minor} waits until its image opens: ${error.message}`);
        }
        if (--left === 0) this.#restored();
      });
    }
  }

  /** Names that stay do no harm; users that wait for ever do. */
  #removeNames(): void {
    try {
      removeNamesOf(this.pid);
    } catch (error) {
      this.#host.log.warn(`Sockets of process ${this.pid} stay: ${messageOf(error)}`);
    }
  }

  /** Whether the new process has said that it serves, and was ended because it said so too late. */
  #hasServed(): boolean {
    if (!this.#isToldToServe) return false;
    try {
      const frame = this.#channel?.take() ?? null;
      if (frame === null) return false;
      newFrame(frame.value, "serving");
      return true;
    } catch {
      return false;
    }
  }

  /** What clients have sent may be with the process that has ended: they must connect again. */
  #dropClients(): void {
    for (const { parts } of this.#host.devices.all) {
      for (const clients of parts.access.handovers) {
        clients.drop(`process ${this.pid} had begun to serve it, and ended`);
      }
    }
  }

  #restored(): void {
    dropLocks();
    this.#finished?.();
    this.#finished = null;
    const failure = this.#failure;
    if (failure !== null) this.#done(failure, null);
  }
}
