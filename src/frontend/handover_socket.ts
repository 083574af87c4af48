import { EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, errnoName, messageOf } from "../../ffi/errno.ts";
import { type HandedMessage, receiveDescriptors } from "../../ffi/descriptors.ts";
import { closeFile } from "../../ffi/files.ts";
import { nameAt } from "../../ffi/names.ts";
import { adoptStream, streamFault } from "../../ffi/sockets.ts";
import { describeFault, type FaultOwner } from "../scheduler/faults.ts";
import type { FdHandler, Scheduler } from "../scheduler/scheduler.ts";
import { acceptHere, listenAt, stopListening } from "./listening.ts";

/** Connections at once; more wait in the listen backlog. */
const MOST_PEERS = 8;
/** How long a peer may take to hand its descriptor over. */
const HAND_OVER_MS = 10_000;
/** The longest text that may come with a descriptor. */
const LONGEST_TEXT_BYTES = 16 * 1024;
/** How long not to accept connections after an accept failed. */
const ACCEPT_RETRY_MS = 1_000;
/** The most characters of a text that the log shows. */
const SHOWN_CHARACTERS = 100;

/**
 * Takes a connected stream socket, which is its own from then on, and the text that came with it.
 * When it throws, it has closed the socket.
 */
export type DescriptorTaker = (text: string, fd: number) => void;

/** A text of a peer, as the log shows it. */
export function shownText(text: string): string {
  const isLong = text.length > SHOWN_CHARACTERS;
  return JSON.stringify(isLong ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text);
}

/**
 * A UNIX socket on which other processes hand over connected stream sockets. A peer connects, sends a
 * text with one descriptor in one message, and is hung up on. As in the reference, it gets no answer.
 */
export class HandoverSocket implements FdHandler, FaultOwner {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #path: string;
  readonly #taken: DescriptorTaker;
  readonly #log: (message: string) => void;
  readonly #fd: number;
  readonly #peers = new Set<Peer>();
  #retryTimer = 0;

  /**
   * Listens at `path`, and replaces a socket that exists there.
   *
   * @param log Writes a line to the log, which limits the number of similar ones.
   * @throws {SystemError}
   */
  constructor(
    scheduler: Scheduler,
    path: string,
    { taken, log }: { taken: DescriptorTaker; log: (message: string) => void },
  ) {
    this.#scheduler = scheduler;
    this.#path = path;
    this.#taken = taken;
    this.#log = log;
    this.#fd = listenAt(path);
    try {
      scheduler.watch(this.#fd, EPOLLIN, this, this);
    } catch (error) {
      stopListening(path, this.#fd);
      throw error;
    }
  }

  fault(error: unknown): void {
    this.#log(`A connection to ${this.#path} was not taken: ${describeFault(error)}`);
    this.#listenLater();
  }

  /** Accepts waiting peers. Their messages mostly are there already. */
  ready(): void {
    while (this.#peers.size < MOST_PEERS) {
      const fd = acceptHere(this.#fd);
      if (fd === -Errno.EAGAIN) return;
      if (fd < 0) {
        this.#log(`A connection to ${this.#path} was not taken (${errnoName(-fd)})`);
        return this.#listenLater();
      }
      const peer = new Peer(this.#scheduler, fd, this);
      this.#peers.add(peer);
      peer.start();
    }
    this.#scheduler.rewatch(this.#fd, 0);
  }

  #listenLater(): void {
    this.#scheduler.rewatch(this.#fd, 0);
    this.#scheduler.cancelTimer(this.#retryTimer);
    const again = (): void => this.#scheduler.rewatch(this.#fd, EPOLLIN);
    this.#retryTimer = this.#scheduler.addTimer(ACCEPT_RETRY_MS, again, this);
  }

  /** A peer has sent its message. */
  received(message: HandedMessage): void {
    const { bytes, descriptors } = message;
    const refusal = refusalOf(message);
    if (refusal !== null) {
      for (const descriptor of descriptors) closeFile(descriptor);
      return this.refused(refusal);
    }
    const [descriptor] = descriptors;
    adoptStream(descriptor);
    try {
      this.#taken(nameAt(bytes, 0), descriptor);
    } catch (error) {
      this.refused(messageOf(error));
    }
  }

  /** Logs that a peer handed nothing over that can be used. */
  refused(why: string): void {
    this.#log(`Refused a descriptor on ${this.#path} (${why})`);
  }

  /** A peer has closed its connection. */
  gone(peer: Peer): void {
    this.#peers.delete(peer);
    if (this.#peers.size === MOST_PEERS - 1) this.#scheduler.rewatch(this.#fd, EPOLLIN);
  }

  /** Drops all peers and removes the socket. Descriptors that were handed over stay. */
  close(): void {
    this.#scheduler.cancelTimer(this.#retryTimer);
    for (const peer of this.#peers) peer.close();
    this.#scheduler.unwatch(this.#fd);
    stopListening(this.#path, this.#fd);
  }
}

/** Why what a peer sent is of no use; null when it is. */
function refusalOf({ bytes, descriptors, hadMore }: HandedMessage): string | null {
  if (bytes.length > LONGEST_TEXT_BYTES) {
    return `its text is longer than ${LONGEST_TEXT_BYTES} bytes`;
  }
  if (descriptors.length > 1) return "more than one came";
  if (hadMore) return "it could not be received; see the limit of open files";
  if (descriptors.length === 0) return "a message came without one";
  return streamFault(descriptors[0]);
}

/** A process that connected to hand a descriptor over. */
class Peer implements FdHandler, FaultOwner {
  readonly #scheduler: Scheduler;
  readonly #fd: number;
  readonly #socket: HandoverSocket;
  #timer = 0;
  #open = true;

  constructor(scheduler: Scheduler, fd: number, socket: HandoverSocket) {
    this.#scheduler = scheduler;
    this.#fd = fd;
    this.#socket = socket;
  }

  get failed(): boolean {
    return !this.#open;
  }

  /** Takes the message if it is there, and waits for it otherwise. Throws `SystemError`. */
  start(): void {
    try {
      this.#scheduler.watch(this.#fd, EPOLLIN, this, this);
    } catch (error) {
      this.#end();
      throw error;
    }
    this.#timer = this.#scheduler.addTimer(HAND_OVER_MS, () => {
      this.#socket.refused(`none came in ${HAND_OVER_MS / 1000} s`);
      this.close();
    }, this);
    this.ready();
  }

  ready(): void {
    let message: HandedMessage | null;
    try {
      // A byte more than is allowed, to notice a text that is longer.
      message = receiveDescriptors(this.#fd, LONGEST_TEXT_BYTES + 1);
    } catch (error) {
      this.#socket.refused(messageOf(error));
      return this.close();
    }
    if (message === null) return;
    this.close();
    this.#socket.received(message);
  }

  fault(error: unknown): void {
    this.#socket.refused(describeFault(error));
    this.close();
  }

  close(): void {
    if (!this.#open) return;
    this.#scheduler.cancelTimer(this.#timer);
    this.#scheduler.unwatch(this.#fd);
    this.#end();
  }

  #end(): void {
    this.#open = false;
    closeFile(this.#fd);
    this.#socket.gone(this);
  }
}
