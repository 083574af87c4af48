import { EPOLLIN } from "../../../ffi/epoll.ts";
import { type DoneWith, Errno, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import type { Log } from "../../log/log.ts";
import { listeningSockets } from "../../frontend/listening.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import type { ControlConnection } from "../daemon/control_connection.ts";
import type { Device } from "../daemon/device.ts";
import type { Devices } from "../daemon/devices.ts";
import type { ControlServer, UnansweredCommand } from "../daemon/server.ts";
import type { ProgramCall, UpgradeReply } from "../protocol/upgrade.ts";
import { HandoverChannel } from "./channel.ts";
import { HANDOVER_FORMAT, isWaiting, newFrame } from "./frames.ts";
import { removeNamesOf, takeNamesBack } from "./names.ts";
import { Standstill } from "./standstill.ts";
import { Successor } from "./successor.ts";
import { isPaused, neededKinds, tellAll, ToldNeeds } from "./tell.ts";
import { whyOtherFiles, whyStaying } from "./why_staying.ts";

/** How long the new process may take until it asks for the disks. Nobody waits for that, and hosts may be busy. */
const START_MS = 120_000;
/** How long it may try to open the images, and how long a frame may wait for room. */
const REHEARSE_MS = 60_000;
const SEND_MS = 1_000;
/** How long commands that run may take to end. */
const COMMANDS_MS = 10_000;
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
  /** Ends this process, and leaves all names and signals to the one that serves now. */
  exit(successor: number): void;
}

/** One handover, on the side of the process that has served until now. */
export class Upgrade implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #host: UpgradeHost;
  readonly #asker: ControlConnection | null;
  readonly #done: DoneWith<UpgradeReply>;
  readonly #successor: Successor;
  #timer = 0;
  #channel: HandoverChannel | null = null;
  readonly #needs = new ToldNeeds();
  /** Gives up the wait for commands that run. */
  #giveUpWait: () => boolean = () => false;
  /** Lets other commands run again; null as long as they run. */
  #finished: (() => void) | null = null;
  /** While users wait. */
  #standstill: Standstill | null = null;
  /** Control connections that the new process may have gone on with. */
  #commands: readonly UnansweredCommand[] = [];
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

  /**
   * Throws `SystemError` when something cannot be handed over now.
   *
   * @param also What is asked of each device besides.
   */
  #requireReady(also: (device: Device) => string | null = () => null): void {
    const { devices } = this.#host;
    const refuse = (why: string): never => {
      throw new SystemError(Errno.EBUSY, `Cannot replace tapdisk ${Deno.pid}`, { hint: why });
    };
    const { whyStaying: whole } = this.#host;
    if (whole !== null) refuse(whole);
    if (devices.isEnding) refuse("it is ending");
    for (const device of devices.all) {
      const why = whyStaying(device) ?? also(device);
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
    // The new process has no descriptors to give.
    this.#channel = new HandoverChannel(connection.release(), 0);
    if (format !== HANDOVER_FORMAT) {
      const formats =
        `it takes over in format ${format}, this one hands over in ${HANDOVER_FORMAT}`;
      const what = `Cannot hand over to process ${this.pid} (${formats})`;
      return this.#fail(new SystemError(Errno.EPROTONOSUPPORT, what));
    }
    this.#limit(REHEARSE_MS, "it does not try the images");
    const channel = this.#channel;
    const { all } = this.#host.devices;
    // The images of a disk that is paused are for others to change; those with a key need it.
    const tried = all.filter((device) => !isPaused(device) && device.parts.key === undefined);
    const images = tried.map(({ name }) => name).filter((name) => name !== "");
    try {
      this.#tellNeeds(channel);
      channel.send({ kind: "rehearse", images }, [], performance.now() + SEND_MS);
      this.#host.scheduler.watch(channel.fd, EPOLLIN, this, this);
    } catch (error) {
      this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
    }
  }

  /** Tells what not all versions know. A process that does not know something fails, and opens nothing. */
  #tellNeeds(channel: HandoverChannel, paused?: readonly Device[]): void {
    const kinds = this.#needs.news(neededKinds(this.#host.devices.all, paused));
    if (kinds.length > 0) channel.send({ kind: "needs", kinds }, [], performance.now() + SEND_MS);
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

  /** No command runs: users wait from now on. */
  #hold(): void {
    if (this.#failure !== null) return this.#restore();
    const { scheduler, log, devices } = this.#host;
    try {
      this.#requireReady(whyOtherFiles);
      if (this.#channel !== null) this.#tellNeeds(this.#channel);
    } catch (error) {
      return this.#fail(systemError(error, "Cannot hand over"));
    }
    scheduler.cancelTimer(this.#timer);
    const standstill = new Standstill({
      ...{ scheduler, log, devices, owner: this },
      requireReady: () => this.#requireReady(),
      reached: () => this.#tell(),
      failed: (error) => this.#fail(error),
    });
    this.#standstill = standstill;
    standstill.begin();
  }

  /**
   * All images are closed, and nothing is served. So this waits in the turn: nothing may happen between
   * these steps. An error is met before the new process serves, or after it has ended.
   */
  #tell(): void {
    if (this.#failure !== null) return this.#restore();
    const channel = this.#channel;
    const standstill = this.#standstill;
    if (channel === null || standstill === null) return;
    const { devices } = this.#host;
    try {
      if (devices.isEnding) {
        throw new SystemError(Errno.ECANCELED, "Cannot hand over (a signal came)");
      }
      for (const { minor, parts } of devices.all) {
        const [lost] = parts.vbd.retained.names;
        if (lost !== undefined) {
          const why = `minor ${minor}: ${lost} could not be written`;
          throw new SystemError(Errno.EIO, `Cannot hand over (${why})`);
        }
        for (const { whyStaying: why } of parts.access.handovers) {
          if (why === null) continue;
          throw new SystemError(Errno.EAGAIN, `Cannot hand over (minor ${minor}: ${why})`);
        }
      }
      // A client that was in its handshake may have entered with TLS.
      this.#tellNeeds(channel, standstill.pausedBefore);
      const openMs = performance.now() + OPEN_MS;
      this.#commands = this.#host.server().unanswered(this.#asker);
      const { locks, pausedBefore } = standstill;
      const inventory = { devices: devices.all, pausedBefore, locks, commands: this.#commands };
      tellAll(channel, inventory, openMs);
      standstill.step("telling");
      newFrame(channel.receive(openMs).value, "opened");
      standstill.step("opening");
      const serveMs = performance.now() + SERVE_MS;
      this.#isToldToServe = true;
      channel.send({ kind: "serve" }, [], serveMs);
      newFrame(channel.receive(serveMs).value, "serving");
      standstill.step("the start");
    } catch (error) {
      return this.#fail(systemError(error, `Cannot hand over to process ${this.pid}`));
    }
    this.#succeed(standstill);
  }

  /** The new process begins when the channel is closed: there is no way back from here on. */
  #succeed({ elapsedMs: stallMs, steps }: Standstill): void {
    this.#channel?.close();
    this.#channel = null;
    const waited = `users waited ${stallMs.toFixed(1)} ms (${steps})`;
    this.#host.log.info(`Process ${this.pid} serves the disks; ${waited}`);
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
    this.#standstill?.stop();
    if (this.#giveUpWait()) this.#giveUpWait = () => false;
    this.#successor.kill();
    if (this.#hasEnded) this.#restore();
  }

  /** The new process has ended: all is as it was before. */
  #restore(): void {
    const standstill = this.#standstill;
    if (!this.#hasEnded || standstill?.isPausing === true || this.#isRestored) return;
    this.#isRestored = true;
    if (this.#hasServed()) this.#dropServed();
    this.#channel?.close();
    this.#channel = null;
    this.#removeNames();
    if (standstill === null) return this.#restored();
    for (const device of this.#host.devices.all) device.servedHere();
    standstill.end(() => this.#restored());
  }

  /** Names that stay do no harm; users that wait for ever do. */
  #removeNames(): void {
    try {
      // One that has begun to serve has made the names here links to its own.
      const paths = listeningSockets().map(({ at }) => at);
      if (this.#isToldToServe) takeNamesBack(paths, { own: Deno.pid, other: this.pid });
      removeNamesOf(this.pid);
    } catch (error) {
      this.#host.log.warn(`Sockets of process ${this.pid} stay: ${messageOf(error)}`);
    }
  }

  /** Whether the new process has begun to serve, and was ended because it said so too late. */
  #hasServed(): boolean {
    if (!this.#isToldToServe) return false;
    try {
      const frame = this.#channel?.take() ?? null;
      if (frame === null) return false;
      newFrame(frame.value, "serving");
      return !isWaiting(frame.value);
    } catch {
      return false;
    }
  }

  /**
   * What clients have sent may be with the process that has ended: they must connect again. It may have
   * carried out commands: they are not carried out twice, and whoever sent them gets no answer. Such a
   * process is of an earlier version, which is told of no rings.
   */
  #dropServed(): void {
    const why = `process ${this.pid} had begun to serve it, and ended`;
    for (const { parts } of this.#host.devices.all) {
      for (const clients of parts.access.handovers) clients.drop(why);
    }
    for (const { connection } of this.#commands) connection.close();
    const count = this.#commands.length;
    if (count > 0) this.#host.log.warn(`Hung up on ${count} callers of tap-ctl: ${why}`);
  }

  #restored(): void {
    this.#finished?.();
    this.#finished = null;
    const failure = this.#failure;
    if (failure !== null) this.#done(failure, null);
  }
}
