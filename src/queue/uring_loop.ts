import { EPOLLET, EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { Uring } from "../../ffi/uring.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { FdHandler, Scheduler, TurnWork } from "../scheduler/scheduler.ts";

/** Entries of one submission; when a turn prepares more, they leave in several. */
const ENTRIES = 1024;
/** Completions that find room in the ring: all of many devices' queues. More wait in the kernel. */
const COMPLETIONS = 16384;
const MOST_TRIES = 1000;
const RETRY_MS = 1;

/** A user of the ring, which is told its completions. */
export interface UringUser {
  /** The disk that ends when `uringDone` throws. */
  readonly faults?: FaultOwner;
  /**
   * An operation of this user ended.
   *
   * @param id What it was prepared with.
   * @param result Zero or above, or a negative errno.
   */
  uringDone(id: number, result: number): void;
}

const nobody: UringUser = { uringDone(): void {} };

const loops = new WeakMap<Scheduler, UringLoop>();

/**
 * The io_uring that all users of this scheduler share. It is made for the first, and closed after the last.
 * Throws `SystemError` where there is none.
 */
export function sharedUringLoop(scheduler: Scheduler): UringLoop {
  const known = loops.get(scheduler.loop);
  if (known !== undefined && !known.isClosed) return known;
  const loop = new UringLoop(scheduler.loop);
  loops.set(scheduler.loop, loop);
  return loop;
}

/**
 * One io_uring for all its users: disk I/O and commands to drivers are submitted in one call a turn.
 *
 * A user adds itself and gets a tag. Operations are prepared with that tag and a
 * number of the user's own, and are submitted at the end of the turn, or before by `submit`. The
 * completions come by `uringDone`, at the start or at the end of a turn; a user that is called may
 * prepare more.
 *
 * What ends within the submission does not wake the loop: it is told at once.
 */
export class UringLoop implements FdHandler, TurnWork {
  readonly #scheduler: Scheduler;
  readonly #ring = new Uring(ENTRIES, COMPLETIONS);
  readonly #users: UringUser[] = [];
  /** By tag: operations that are prepared or under way. */
  #underWay = new Int32Array(16);
  #usersCount = 0;
  #closed = false;
  #retrying = false;
  #isLeft = false;

  /** Throws `SystemError`. */
  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
    scheduler.watch(this.#ring.eventFd, EPOLLIN | EPOLLET, this);
    scheduler.addTurnWork(this);
  }

  /** Whether commands can have 80 bytes; otherwise 16. */
  get hasLongCommands(): boolean {
    return this.#ring.hasLongCommands;
  }

  /** What `prepareCommand` returns places in. */
  get commands(): DataView<ArrayBuffer> {
    return this.#ring.commands;
  }

  /** See {@linkcode Uring.limitThreads}. */
  limitThreads(most: number): void {
    this.#ring.limitThreads(most);
  }

  /** Whether the last user is gone, and the ring with it. */
  get isClosed(): boolean {
    return this.#closed;
  }

  /** Adds a user; returns the tag for its operations. */
  add(user: UringUser): number {
    let tag = this.#users.findIndex((other, tag) => other === nobody && this.#underWay[tag] === 0);
    if (tag < 0) tag = this.#users.length;
    this.#users[tag] = user;
    this.#usersCount++;
    if (tag >= this.#underWay.length) {
      const larger = new Int32Array(2 * tag);
      larger.set(this.#underWay);
      this.#underWay = larger;
    }
    // Last in the list of work: all other work has prepared its operations by then.
    this.#scheduler.removeTurnWork(this);
    this.#scheduler.addTurnWork(this);
    return tag;
  }

  /**
   * Takes a user out, which is not called any more. After the last, the ring closes, and the
   * kernel cancels what is under way.
   */
  remove(tag: number): void {
    this.#users[tag] = nobody;
    if (--this.#usersCount > 0) return;
    this.#closed = true;
    this.#scheduler.removeTurnWork(this);
    this.#scheduler.unwatch(this.#ring.eventFd);
    this.#ring.close();
  }

  /** Operations of a user that are prepared or under way. */
  underWay(tag: number): number {
    return this.#underWay[tag];
  }

  /** Prepares to move bytes; see {@linkcode Uring.prepareTransfer}. */
  prepareTransfer(
    opcode: number,
    fd: number,
    memorySector: number,
    length: number,
    sectors: Float64Array,
    id: number,
    tag: number,
  ): void {
    this.#count(tag);
    this.#ring.prepareTransfer(opcode, fd, memorySector, length, sectors, id, tag);
  }

  /** Prepares to bring a file's data to stable storage. */
  prepareSync(fd: number, id: number, tag: number): void {
    this.#count(tag);
    this.#ring.prepareSync(fd, id, tag);
  }

  /**
   * Prepares a command to a driver; returns where in `commands` its own bytes go, all zero until
   * the caller writes them, at once. See {@linkcode Uring.prepareCommand}.
   */
  prepareCommand(fd: number, command: number, id: number, tag: number): number {
    this.#count(tag);
    return this.#ring.prepareCommand(fd, command, id, tag);
  }

  #count(tag: number): void {
    this.#underWay[tag]++;
    for (let tries = 0; this.#ring.isFull; tries++) {
      if (tries === MOST_TRIES) {
        throw new SystemError(Errno.EAGAIN, "Cannot hand operations to the io_uring");
      }
      this.submit();
    }
  }

  /**
   * Looks at no more ends: another process goes on with what comes, and this one ends. The kernel keeps
   * what has not been looked at. Only `submitLast` is to come.
   */
  leave(): void {
    this.#isLeft = true;
  }

  /** Hands what is prepared to the kernel; what it cannot take now goes a moment later. */
  submit(): void {
    if (this.#isLeft) return this.submitLast();
    while (this.#ring.prepared > 0) {
      const taken = this.#ring.submit();
      if (taken > 0 || taken === -Errno.EINTR) continue;
      if (taken === 0 || taken === -Errno.EAGAIN || taken === -Errno.EBUSY) {
        this.#retry();
        return;
      }
      throw new SystemError(-taken, "Cannot hand operations to the io_uring");
    }
  }

  /**
   * Hands what is prepared to the kernel, which goes on to hold back what has ended. It is for a process that
   * ends: nobody would look at it.
   */
  submitLast(): void {
    for (let tries = 0; this.#ring.prepared > 0 && tries < MOST_TRIES; tries++) {
      this.#ring.submit(false);
    }
  }

  #retry(): void {
    if (this.#retrying) return;
    this.#retrying = true;
    // The turn that the timer makes submits at its end.
    this.#scheduler.addTimer(RETRY_MS, () => this.#retrying = false);
  }

  /** Tells the users the ends of operations; returns how many ended. */
  reap(): number {
    if (this.#isLeft) return 0;
    const waiting = this.#ring.completions();
    for (let i = 0; i < waiting; i++) {
      const id = this.#ring.completionId(0);
      const tag = this.#ring.completionTag(0);
      const result = this.#ring.completionResult(0);
      // Off the ring first: the user may submit, and reap again.
      this.#ring.consume(1);
      this.#underWay[tag]--;
      this.#tell(this.#users[tag], id, result);
      if (this.#closed) return i + 1;
    }
    return waiting;
  }

  #tell(user: UringUser, id: number, result: number): void {
    try {
      user.uringDone(id, result);
    } catch (error) {
      this.#scheduler.contain(error, user.faults);
    }
  }

  ready(_events: number): void {
    this.reap();
  }

  endOfTurn(): boolean {
    if (this.#closed) return false;
    this.submit();
    return this.reap() > 0;
  }
}
