/**
 * The control socket in tapdisk: takes connections, reads a request from each, has it carried out,
 * and sends the answer. It knows nothing of devices: that is what the commands are for. It never
 * waits; whoever sends half a request, or does not read the answer, only keeps its own connection.
 *
 * @module
 */
import { EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT } from "../../../ffi/epoll.ts";
import { Errno, errnoOf, messageOf, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { addressOf } from "../../../ffi/libc.ts";
import { acceptConnection, receiveAt, sendAt, unixListen } from "../../../ffi/sockets.ts";
import type { Log } from "../../log/log.ts";
import { describeFault, type FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../../scheduler/scheduler.ts";
import { encodeError } from "../protocol/answers.ts";
import { messageCookie, messageName, messageType } from "../protocol/message.ts";
import { LONGEST_REQUEST_BYTES, requestLength } from "../protocol/params.ts";

/** Connections at once; more wait in the listen backlog. */
const MOST_CONNECTIONS = 32;
/** How long a peer may take to send its request, or to take in the answer. */
const PEER_TIMEOUT_MS = 10_000;
/** How long a command may take to end by itself after a fault ended its disk. */
const FAULT_GRACE_MS = 2_000;
/** How long not to accept after it failed. */
const ACCEPT_RETRY_MS = 1_000;

/** Carries out a kind of request. */
export interface Command {
  /**
   * Whether it changes something: one of those runs at a time for each minor, in the order in which
   * they came. The others run at once and answer before they return.
   */
  readonly exclusive: boolean;
  /**
   * Of an exclusive command: it cancels the cancellable commands of its minor, those that came before
   * it and those that come until it has ended.
   */
  readonly preempts?: boolean;
  /** Of an exclusive command: it can be cancelled while it waits or runs. */
  readonly cancellable?: boolean;
  /**
   * Does what the request asks, and answers once, now or later. What it throws is the answer
   * otherwise.
   *
   * @param request The message with its trailer.
   * @returns A function that cancels the command, if that can be done; the answer then follows soon.
   * It is called when the peer hangs up before the answer, or for a command that preempts.
   */
  run(
    request: Uint8Array<ArrayBuffer>,
    answer: (reply: Uint8Array<ArrayBuffer>) => void,
  ): void | (() => void);
}

/** The commands by message type. */
export type CommandTable = ReadonlyMap<number, Command>;

/** The answer to a request that failed. */
export function errorReply(
  request: Uint8Array,
  error: unknown,
): Uint8Array<ArrayBuffer> {
  const reason = { error: errnoOf(error), message: messageOf(error) };
  return encodeError(messageCookie(request), reason);
}

/** Exclusive work on a minor. */
interface Job {
  readonly minor: number;
  /** Whether it cancels the cancellable jobs of its minor. */
  readonly preempts: boolean;
  run(finished: () => void): void;
  /** Cancels the job while it waits or runs; it then finishes soon. */
  cancel?(): void;
  /** Answers with an error and finishes the job, whatever it waits for. */
  fail?(error: Error): void;
}

/** The jobs of all minors. For each minor one runs at a time, in the order in which they came. */
class JobQueue {
  #waiting: Job[] = [];
  readonly #running = new Map<number, Job>();

  /** Adds a job. A cancellable job behind one that preempts is cancelled at once. */
  add(job: Job): void {
    const running = this.#running.get(job.minor);
    const waiting = this.#waiting.filter(({ minor }) => minor === job.minor);
    const last = waiting.at(-1) ?? running;
    if (last?.preempts === true && job.cancel !== undefined) return job.cancel();
    this.#waiting.push(job);
    if (job.preempts) { for (const earlier of waiting) earlier.cancel?.(); }
    if (running === undefined) this.#next();
    else if (job.preempts) running.cancel?.();
  }

  /** Starts the first job of each minor for which none runs. */
  #next(): void {
    const held = new Set(this.#running.keys());
    const ready = this.#waiting.filter(({ minor }) => {
      const mayStart = !held.has(minor);
      held.add(minor);
      return mayStart;
    });
    this.#waiting = this.#waiting.filter((job) => !ready.includes(job));
    for (const job of ready) this.#running.set(job.minor, job);
    for (const job of ready) {
      job.run(() => {
        if (this.#running.get(job.minor) !== job) return;
        this.#running.delete(job.minor);
        this.#next();
      });
    }
  }

  /** The job of a minor that runs. */
  runningOf(minor: number): Job | undefined {
    return this.#running.get(minor);
  }
}

/** One client: its request as it comes in, or its answer as it goes out. */
class Client implements FdHandler, FaultOwner {
  readonly fd: number;
  readonly #scheduler: Scheduler;
  readonly #requested: (client: Client, request: Uint8Array<ArrayBuffer>) => void;
  readonly #closed: (client: Client) => void;
  readonly #log: Log;
  readonly #input = new Uint8Array(LONGEST_REQUEST_BYTES);
  #received = 0;
  #output: Uint8Array<ArrayBuffer> | undefined;
  #sent = 0;
  #waitsForRoom = false;
  #timer = 0;
  /** A command runs for it, or waits for its turn. */
  #running = false;
  open = true;
  /** Called when the peer hangs up while its command runs. */
  hungUp: (() => void) | undefined;

  constructor(
    fd: number,
    { scheduler, log, requested, closed }: {
      scheduler: Scheduler;
      log: Log;
      requested: (client: Client, request: Uint8Array<ArrayBuffer>) => void;
      closed: (client: Client) => void;
    },
  ) {
    this.fd = fd;
    this.#scheduler = scheduler;
    this.#requested = requested;
    this.#closed = closed;
    this.#log = log;
    scheduler.watch(fd, EPOLLIN, this, this);
    this.#timer = scheduler.addTimer(PEER_TIMEOUT_MS, () => this.close(), this);
  }

  get failed(): boolean {
    return !this.open;
  }

  fault(error: unknown): void {
    this.#log.error(`A control connection was ended by a fault: ${describeFault(error)}`);
    this.close();
  }

  ready(events: number): void {
    if (this.#running) {
      if ((events & (EPOLLHUP | EPOLLERR)) === 0) return;
      this.close();
      this.hungUp?.();
    } else if (this.#output === undefined) this.#receive();
    else this.#send(this.#output);
  }

  #receive(): void {
    const address = addressOf(this.#input) + this.#received;
    const wanted = requestLength(this.#input.subarray(0, this.#received)) - this.#received;
    const got = receiveAt(this.fd, address, wanted);
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return;
    if (got <= 0) return this.close();
    this.#received += got;
    if (requestLength(this.#input.subarray(0, this.#received)) > this.#received) return;
    this.#running = true;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.rewatch(this.fd, 0);
    const request = this.#input.slice(0, this.#received);
    // It may hold a key, which is for the command to keep or to wipe.
    this.#input.fill(0);
    this.#requested(this, request);
  }

  /** Sends the answer and hangs up. */
  answer(reply: Uint8Array<ArrayBuffer>): void {
    if (!this.open || this.#output !== undefined) return;
    this.#running = false;
    this.#output = reply;
    this.#send(reply);
  }

  #send(reply: Uint8Array<ArrayBuffer>): void {
    while (this.#sent < reply.length) {
      const put = sendAt(this.fd, addressOf(reply) + this.#sent, reply.length - this.#sent);
      if (put > 0) this.#sent += put;
      else if (put === -Errno.EAGAIN) return this.#waitForRoom();
      else if (put !== -Errno.EINTR) break;
    }
    this.close();
  }

  #waitForRoom(): void {
    if (this.#waitsForRoom) return;
    this.#waitsForRoom = true;
    this.#scheduler.rewatch(this.fd, EPOLLOUT);
    this.#timer = this.#scheduler.addTimer(PEER_TIMEOUT_MS, () => this.close(), this);
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.fd);
    closeFile(this.fd);
    this.#closed(this);
  }

  /** Whether the peer is owed an answer: a command runs for it, or the answer is on its way. */
  get isOwed(): boolean {
    return this.open && (this.#running || this.#output !== undefined);
  }
}

/** The control socket of a tapdisk. */
export class ControlServer implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #path: string;
  readonly #commands: CommandTable;
  readonly #log: Log;
  readonly #jobs = new JobQueue();
  readonly #clients = new Set<Client>();
  #listener: number;
  #listening = true;
  #drained: (() => void) | undefined;

  /**
   * Listens at `path`; a socket that is left there is of an earlier process of this number, and is
   * replaced. Throws `SystemError`.
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
    removeSocket(path);
    this.#listener = unixListen(path, MOST_CONNECTIONS);
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
   * A fault has ended a disk. The command that is being carried out for it may wait for something
   * that never comes: it ends with an error soon, so that others have their turn.
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
    while (this.#clients.size < MOST_CONNECTIONS) {
      const fd = acceptConnection(this.#listener);
      if (fd < 0) {
        if (fd !== -Errno.EAGAIN) this.#pauseListening(-fd);
        return;
      }
      this.#clients.add(
        new Client(fd, {
          scheduler: this.#scheduler,
          log: this.#log,
          requested: (client, request) => this.#requested(client, request),
          closed: (client) => this.#closed(client),
        }),
      );
    }
    this.#listen(false);
  }

  /** Out of descriptors, say: the connections stay in the backlog until there are some again. */
  #pauseListening(errno: number): void {
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

  #requested(client: Client, request: Uint8Array<ArrayBuffer>): void {
    const type = messageType(request);
    const command = this.#commands.get(type);
    if (command === undefined) {
      const what = `Cannot carry out '${messageName(type)}': this tapdisk does not know it`;
      this.#log.warn(what);
      return client.answer(errorReply(request, new SystemError(Errno.EINVAL, what)));
    }
    if (!command.exclusive) {
      this.#run(command, request, (reply) => client.answer(reply));
      return;
    }
    this.#jobs.add(this.#jobOf(command, client, request));
  }

  #jobOf(command: Command, client: Client, request: Uint8Array<ArrayBuffer>): Job {
    let cancelled = false;
    const job: Job = {
      minor: messageCookie(request),
      preempts: command.preempts === true,
      run: (finished) => {
        if (cancelled || !client.open) {
          request.fill(0);
          return finished();
        }
        job.fail = (error) => {
          client.answer(errorReply(request, error));
          finished();
        };
        job.cancel = client.hungUp = this.#run(command, request, (reply) => {
          client.answer(reply);
          finished();
        });
      },
    };
    if (command.cancellable === true) {
      job.cancel = (): void => {
        cancelled = true;
        const what = `Cannot carry out '${messageName(messageType(request))}'`;
        const why = `minor ${messageCookie(request)} is to be closed`;
        client.answer(errorReply(request, new SystemError(Errno.ECANCELED, `${what} (${why})`)));
      };
    }
    return job;
  }

  #run(
    command: Command,
    request: Uint8Array<ArrayBuffer>,
    answer: (reply: Uint8Array<ArrayBuffer>) => void,
  ): (() => void) | undefined {
    let answered = false;
    const answerOnce = (reply: Uint8Array<ArrayBuffer>): void => {
      if (answered) return;
      answered = true;
      answer(reply);
    };
    try {
      return command.run(request, answerOnce) ?? undefined;
    } catch (error) {
      const isExpected = error instanceof Error && "errno" in error;
      this.#log.error(isExpected ? messageOf(error) : describeFault(error));
      answerOnce(errorReply(request, error));
      return undefined;
    }
  }

  #closed(client: Client): void {
    this.#clients.delete(client);
    this.#listen(true);
    this.#checkDrained();
  }

  /**
   * Takes no more requests, removes the socket, sends the answers that are owed, and calls back.
   */
  shutDown(done: () => void): void {
    this.#drained = done;
    if (this.#listener >= 0) {
      this.#scheduler.unwatch(this.#listener);
      closeFile(this.#listener);
      this.#listener = -1;
      removeSocket(this.#path);
    }
    for (const client of this.#clients) if (!client.isOwed) client.close();
    this.#checkDrained();
  }

  #checkDrained(): void {
    if (this.#clients.size > 0 || this.#drained === undefined) return;
    const done = this.#drained;
    this.#drained = undefined;
    done();
  }
}

function removeSocket(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
