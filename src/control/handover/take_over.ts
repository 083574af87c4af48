import { peerOf } from "../../../ffi/descriptors.ts";
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { type Done, Errno, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { effectiveUser } from "../../../ffi/process.ts";
import { sendAt, unixConnectAtOnce } from "../../../ffi/sockets.ts";
import { handedOver } from "../../driver/nbd/handed_over.ts";
import { adoptLock, dropLocks } from "../../files/kept_locks.ts";
import { adoptSocket, dropAdopted, holdAccepting } from "../../frontend/listening.ts";
import type { Log } from "../../log/log.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { type DiskKey, receiveKey } from "../../vhd/key.ts";
import type { Devices } from "../daemon/devices.ts";
import type { ControlServer } from "../daemon/server.ts";
import { controlSocketPath, requireOwnFolder } from "../paths.ts";
import { encodeTakeOver } from "../protocol/upgrade.ts";
import { HandoverChannel } from "./channel.ts";
import {
  type Arrived,
  arrivedFrame,
  decodeBytes,
  type DiskFrame,
  HANDOVER_FORMAT,
  type NewFrame,
  type OldFrame,
  requireKinds,
} from "./frames.ts";
import { linkNames, renamedFor } from "./names.ts";

/** How long an answer may wait for room in the channel. */
const SEND_MS = 5_000;

/** What a process needs to take over from another. */
export interface TakeOverHost {
  readonly scheduler: Scheduler;
  readonly log: Log;
  readonly devices: Devices;
  /** Opens images for a moment, to find out whether that can be done, without writing to them. */
  rehearse(images: readonly string[], done: Done): void;
  /** Opens the control socket, and the other sockets of the process. */
  openSockets(): ControlServer;
  /** The disks are this process's from now on. */
  serving(): void;
  /** Ends this process: it takes nothing over. */
  failed(error: SystemError): void;
}

type ClientFrame = Extract<OldFrame, { kind: "client" | "tls" }>;
type RingFrame = Extract<OldFrame, { kind: "ring" }>;

/** Takes over the disks of another process. Its side is `upgrade.ts`. */
export class TakeOver implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #host: TakeOverHost;
  readonly #pid: number;
  readonly #channel: HandoverChannel;
  #server: ControlServer | null = null;
  readonly #disks: DiskFrame[] = [];
  readonly #clients: { frame: ClientFrame; fd: number }[] = [];
  readonly #rings: { frame: RingFrame; fd: number }[] = [];
  readonly #commands: { begun: string; fd: number }[] = [];
  /** The minors whose disks are paused, and the keys of others. */
  readonly #paused = new Set<number>();
  readonly #keys = new Map<number, DiskKey>();
  /** Whether it has said that it serves. Its disks are its own once the other process has let go of them. */
  #isServing = false;

  /**
   * Asks a process for its disks.
   *
   * @throws {SystemError}
   */
  constructor(host: TakeOverHost, pid: number) {
    this.#host = host;
    this.#pid = pid;
    requireOwnFolder();
    const fd = unixConnectAtOnce(controlSocketPath(pid));
    const { uid } = peerOf(fd);
    if (uid !== effectiveUser() && uid !== 0) {
      const why = `user ${uid} listens there`;
      throw new SystemError(Errno.EPERM, `Cannot take over from process ${pid} (${why})`);
    }
    const wish = encodeTakeOver(HANDOVER_FORMAT);
    if (sendAt(fd, addressOf(wish), wish.length) !== wish.length) {
      throw new SystemError(Errno.EPIPE, `Cannot ask process ${pid} for its disks`);
    }
    this.#channel = new HandoverChannel(fd);
    holdAccepting(true);
    host.scheduler.watch(fd, EPOLLIN, this, this);
  }

  fault(error: unknown): void {
    this.#fail(systemError(error, "Cannot take over"));
  }

  ready(): void {
    if (this.#isServing) return this.#awaitEnd();
    try {
      for (let frame = this.#channel.take(); frame !== null; frame = this.#channel.take()) {
        this.#take(arrivedFrame(frame));
        if (this.#isServing) return;
      }
    } catch (error) {
      this.#fail(systemError(error, `Cannot take over from process ${this.#pid}`));
    }
  }

  #take({ frame, descriptors }: Arrived): void {
    switch (frame.kind) {
      case "needs":
        return requireKinds(frame.kinds);
      case "paused":
        return void this.#paused.add(frame.minor);
      case "key":
        return this.#takeKey(frame.minor, descriptors[0]);
      case "rehearse":
        return this.#host.rehearse(frame.images, (error) => {
          if (error !== null) return this.#fail(error);
          try {
            this.#answer({ kind: "ready" });
          } catch (problem) {
            this.#fail(systemError(problem, "Cannot take over"));
          }
        });
      case "locks":
        return descriptors.forEach(adoptLock);
      case "sockets":
        return frame.at.forEach((was, i) => {
          const at = renamedFor(was, this.#pid, Deno.pid);
          adoptSocket({ at, was, fd: descriptors[i] });
        });
      case "handed":
        return frame.names.forEach((name, i) => handedOver.put(name, descriptors[i]));
      case "disk":
        return void this.#disks.push(frame);
      case "client":
      case "tls":
        return void this.#clients.push({ frame, fd: descriptors[0] });
      case "ring":
        return void this.#rings.push({ frame, fd: descriptors[0] });
      case "command":
        return void this.#commands.push({ begun: frame.begun, fd: descriptors[0] });
      case "open":
        return this.#open();
      case "serve":
        return this.#serve();
    }
  }

  #takeKey(minor: number, fd: number): void {
    try {
      this.#keys.set(minor, receiveKey(fd));
    } finally {
      closeFile(fd);
    }
  }

  #answer(frame: NewFrame): void {
    this.#channel.send(frame, [], performance.now() + SEND_MS);
  }

  /** Opens the control socket and all disks. Nothing is accepted or received yet. */
  #open(): void {
    this.#server = this.#host.openSockets();
    let left = this.#disks.length;
    let failure: SystemError | null = null;
    const opened: Done = (error) => {
      failure ??= error;
      if (--left > 0) return;
      if (failure !== null) return this.#fail(failure);
      try {
        this.#takeClients();
        this.#takeRings();
        this.#answer({ kind: "opened" });
      } catch (problem) {
        this.#fail(systemError(problem, "Cannot take over the users"));
      }
    };
    if (left === 0) {
      left = 1;
      return opened(null);
    }
    for (const disk of this.#disks) this.#openDisk(disk, opened);
  }

  #openDisk({ minor, request, sectors, counts }: DiskFrame, done: Done): void {
    const { devices } = this.#host;
    try {
      devices.attach(minor);
      if (request === null) return done(null);
      const device = devices.find(minor, "open");
      // Where it is served is noted when it is.
      const pausedSectors = this.#paused.has(minor) ? sectors : undefined;
      const key = this.#keys.get(minor);
      const keyed = { request: { ...request, serve: [] }, key, pausedSectors, adopt: true };
      device.open(keyed, (error, _disk) => {
        if (error !== null) return done(error);
        if (key !== undefined) devices.keyInUse(minor);
        const { vbd, access } = device.parts;
        if (vbd.sectors < sectors) {
          const sizes = `it has ${vbd.sectors} sectors, and had ${sectors}`;
          return done(
            new SystemError(Errno.EMEDIUMTYPE, `Cannot go on with ${vbd.name} (${sizes})`),
          );
        }
        Object.assign(vbd.requests.counts, counts);
        for (const clients of access.handovers) clients.hold(true);
        try {
          for (const each of request.serve) device.serve(each);
        } catch (failure) {
          return done(systemError(failure, `Cannot serve minor ${minor}`));
        }
        done(null);
      });
    } catch (error) {
      done(systemError(error, `Cannot open minor ${minor}`));
    }
  }

  #takeClients(): void {
    for (const { frame, fd } of this.#clients) {
      const { access } = this.#host.devices.find(frame.minor, "serve").parts;
      const { state, rest, kind } = frame;
      const client = { fd, state, rest: decodeBytes(rest), isTls: kind === "tls" };
      access.handovers[frame.frontend].resume(client);
    }
  }

  #takeRings(): void {
    for (const { frame: { minor, guest, port, taken, isBroken }, fd } of this.#rings) {
      const { access } = this.#host.devices.find(minor, "serve").parts;
      access.rings.adopt({ guest, fd, port, taken, isBroken });
    }
  }

  /**
   * The other process serves no more. It goes on if this one ends before its answer, or answers too late;
   * otherwise it closes the channel. Until then nothing is begun: a command could change what the other
   * process would go on with.
   */
  #serve(): void {
    this.#answer({ kind: "serving", waits: true });
    this.#isServing = true;
  }

  /** Begins when the other process has let go of the disks, or has ended. */
  #awaitEnd(): void {
    try {
      while (this.#channel.take() !== null);
    } catch {
      this.#begin();
    }
  }

  #begin(): void {
    const { devices, log, scheduler } = this.#host;
    scheduler.unwatch(this.#channel.fd);
    holdAccepting(false);
    for (const { parts } of devices.all) {
      for (const clients of parts.access.handovers) this.#attempt(() => clients.hold(false));
      this.#attempt(() => parts.access.rings.begin());
    }
    for (const device of devices.all) {
      // The image may have become larger: its block device has the size that users know.
      const sectors = this.#disks.find(({ minor }) => minor === device.minor)?.sectors;
      this.#attempt(() => device.servedHere(sectors));
    }
    this.#attempt(() => linkNames(this.#pid, Deno.pid));
    for (const { begun, fd } of this.#commands) {
      this.#attempt(() => this.#server?.resume(fd, decodeBytes(begun)));
    }
    dropLocks();
    this.#attempt(() => dropAdopted());
    this.#attempt(() => this.#channel.close());
    log.info(`Took over the disks of process ${this.#pid}`);
    for (const { minor, name: image } of devices.all) {
      const what = `Minor ${minor} is served by process ${Deno.pid}, which took it over`;
      log.info(`${what} from process ${this.#pid}`, { event: "upgraded", minor, image });
    }
    this.#host.serving();
  }

  /** There is no way back: what fails is missing, and the rest is done. */
  #attempt(step: () => void): void {
    try {
      step();
    } catch (error) {
      this.#host.log.error(`Of process ${this.#pid} something is missing: ${messageOf(error)}`);
    }
  }

  /**
   * A signal is to end this process. Before it serves, it has no disks to close in order: the other
   * process has them.
   *
   * @returns False when it serves.
   */
  giveUp(): boolean {
    if (this.#isServing) return false;
    this.#fail(
      new SystemError(Errno.EINTR, `Cannot take over from process ${this.#pid}`, {
        hint: "a signal ended the new process",
      }),
    );
    return true;
  }

  /** Says why, and ends this process; the other one goes on. */
  #fail(error: SystemError): void {
    if (this.#isServing) return this.#host.log.error(error.message);
    try {
      this.#answer({ kind: "failed", errno: error.errno, message: error.message });
    } catch {
      // The other process has ended, or sees the end of this one.
    }
    this.#host.failed(error);
  }
}
