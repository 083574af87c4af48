import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { acceptHere, listenAt, stopListening } from "../../frontend/listening.ts";
import type { Log } from "../../log/log.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { messageCookie, messageName, messageType } from "../protocol/message.ts";
import { type Command, type CommandTable, errorReply } from "./command.ts";
import { ControlConnection } from "./control_connection.ts";
import { type Job, JobQueue } from "./job_queue.ts";

/** Connections at once; more wait in the listen backlog. */
const MOST_CONNECTIONS = 32;
/** How long a command may take to end by itself after a fault ended its disk. */
const FAULT_GRACE_MS = 2_000;
/** How long not to accept connections after an accept failed. */
const ACCEPT_RETRY_MS = 1_000;

/** A connection whose command has not begun, and what it has sent. */
export interface UnansweredCommand {
  readonly connection: Pick<ControlConnection, "fd" | "close">;
  readonly begun: Uint8Array<ArrayBuffer>;
}

/** A request, and the key that came behind it. */
interface KeyedMessage {
  readonly connection: ControlConnection;
  readonly request: Uint8Array<ArrayBuffer>;
  readonly key: Secret | null;
}

/**
 * The control socket of a tapdisk. It takes connections, receives a request from each, has a command
 * carry it out, and sends the answer. It never blocks: a peer that sends half a request, or does not
 * receive the answer, delays only its own connection.
 */
export class ControlServer implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #path: string;
  readonly #commands: CommandTable;
  readonly #log: Log;
  readonly #jobs = new JobQueue();
  readonly #connections = new Set<ControlConnection>();
  #listener: number;
  #listening = true;
  #drained: (() => void) | undefined;

  /**
   * Listens at `path`. A socket of an earlier process with the same number is replaced. Throws
   * `SystemError`.
   */
  constructor(
    scheduler: Scheduler,
    path: string,
    { commands, log }: { commands: CommandTable; log: Log },
  ) {
    this.#scheduler = scheduler;
    this.#path = path;
    this.#commands = commands;
    this.#log = log;
    this.#listener = listenAt(path, MOST_CONNECTIONS);
    scheduler.watch(this.#listener, EPOLLIN, this, this);
  }

  /** Runs a job as an exclusive command, when those before it have ended. */
  runExclusive(minor: number, run: (finished: () => void) => void): void {
    this.#jobs.add({ minor, preempts: false, run });
  }

  /** Runs a job as an exclusive command that preempts others. */
  preempt(minor: number, run: (finished: () => void) => void): void {
    const job: Job = {
      minor,
      preempts: true,
      run: (finished) => {
        job.fail = (error) => {
          this.#log.error(error.message);
          finished();
        };
        run(finished);
      },
    };
    this.#jobs.add(job);
  }

  fault(error: unknown): void {
    this.#log.error(`A control connection was not taken: ${describeFault(error)}`);
    this.#listenLater();
  }

  /**
   * A fault has ended a disk. The command that runs on it may wait for something that never comes.
   * It ends with an error after a grace period, so that the next command can run.
   */
  diskFailed(minor: number): void {
    const job = this.#jobs.runningOf(minor);
    if (job === undefined) return;
    this.#scheduler.addTimer(FAULT_GRACE_MS, () => {
      if (this.#jobs.runningOf(minor) !== job) return;
      job.fail?.(new SystemError(Errno.EIO, `A fault ended minor ${minor} (see the log)`));
    });
  }

  /** Takes the next connections: the listening socket is ready. */
  ready(): void {
    while (this.#connections.size < MOST_CONNECTIONS) {
      const fd = acceptHere(this.#listener);
      if (fd < 0) {
        if (fd !== -Errno.EAGAIN) this.#acceptFailed(-fd);
        return;
      }
      this.#take(fd);
    }
    this.#listen(false);
  }

  #take(fd: number): ControlConnection {
    const connection = new ControlConnection(fd, {
      scheduler: this.#scheduler,
      log: this.#log,
      requested: (connection, request, key) => this.#requested(connection, request, key),
      closed: (connection) => this.#closed(connection),
    });
    this.#connections.add(connection);
    return connection;
  }

  /** Runs a job when no exclusive command runs on any minor; see `JobQueue.whole`. */
  runWhole(run: (finished: () => void) => void): () => boolean {
    return this.#jobs.whole(run);
  }

  /** The connections whose commands have not begun, for another process to go on with. */
  unanswered(except: ControlConnection | null): UnansweredCommand[] {
    return [...this.#connections].flatMap((connection) => {
      const begun = connection === except ? null : connection.unanswered;
      return begun === null ? [] : [{ connection, begun }];
    });
  }

  /** Goes on with a connection of another process. */
  resume(fd: number, begun: Uint8Array): void {
    this.#take(fd).resume(begun);
  }

  /** An accept failed, such as for want of descriptors: connections wait in the backlog. */
  #acceptFailed(errno: number): void {
    this.#log.warn(new SystemError(errno, "Cannot take a control connection").message);
    this.#listenLater();
  }

  #listenLater(): void {
    this.#listen(false);
    this.#scheduler.addTimer(ACCEPT_RETRY_MS, () => this.#listen(true), this);
  }

  #listen(on: boolean): void {
    if (this.#listener < 0 || this.#listening === on) return;
    this.#listening = on;
    this.#scheduler.rewatch(this.#listener, on ? EPOLLIN : 0);
  }

  #requested(
    connection: ControlConnection,
    request: Uint8Array<ArrayBuffer>,
    key: Secret | null,
  ): void {
    const type = messageType(request);
    const command = this.#commands.get(type);
    if (command === undefined) {
      key?.release();
      const what = `Cannot carry out '${messageName(type)}': this tapdisk does not know it`;
      this.#log.warn(what);
      return connection.answer(errorReply(request, new SystemError(Errno.EINVAL, what)));
    }
    if (!command.exclusive) {
      this.#run(command, { connection, request, key }, (reply) => connection.answer(reply));
      return;
    }
    this.#jobs.add(this.#jobOf(command, { connection, request, key }));
    command.announced?.(request);
  }

  #jobOf(command: Command, keyed: KeyedMessage): Job {
    const { connection, request, key } = keyed;
    let cancelled = false;
    const job: Job = {
      minor: messageCookie(request),
      preempts: command.preempts === true,
      run: (finished) => {
        if (cancelled || !connection.open) {
          key?.release();
          return finished();
        }
        job.fail = (error) => {
          connection.answer(errorReply(request, error));
          finished();
        };
        job.cancel = connection.hungUp = this.#run(command, keyed, (reply) => {
          connection.answer(reply);
          finished();
        });
      },
    };
    if (command.cancellable === true) {
      job.cancel = (): void => {
        cancelled = true;
        const what = `Cannot carry out '${messageName(messageType(request))}'`;
        const why = `minor ${messageCookie(request)} is to be closed`;
        connection.answer(
          errorReply(request, new SystemError(Errno.ECANCELED, `${what} (${why})`)),
        );
      };
    }
    return job;
  }

  #run(
    command: Command,
    { connection, request, key }: KeyedMessage,
    answer: (reply: Uint8Array<ArrayBuffer>) => void,
  ): (() => void) | undefined {
    let answered = false;
    const answerOnce = (reply: Uint8Array<ArrayBuffer>): void => {
      if (answered) return;
      answered = true;
      answer(reply);
    };
    try {
      return command.run(request, answerOnce, key, connection) ?? undefined;
    } catch (error) {
      key?.release();
      const isExpected = error instanceof Error && "errno" in error;
      this.#log.error(isExpected ? messageOf(error) : describeFault(error));
      answerOnce(errorReply(request, error));
      return undefined;
    }
  }

  #closed(connection: ControlConnection): void {
    this.#connections.delete(connection);
    this.#listen(true);
    this.#checkDrained();
  }

  /**
   * Takes no more requests, removes the socket, sends the outstanding answers, and calls back.
   */
  shutDown(done: () => void): void {
    this.#drained = done;
    if (this.#listener >= 0) {
      this.#scheduler.unwatch(this.#listener);
      stopListening(this.#path, this.#listener);
      this.#listener = -1;
    }
    for (const connection of this.#connections) if (!connection.awaitsAnswer) connection.close();
    this.#checkDrained();
  }

  #checkDrained(): void {
    if (this.#connections.size > 0 || this.#drained === undefined) return;
    const done = this.#drained;
    this.#drained = undefined;
    done();
  }
}
