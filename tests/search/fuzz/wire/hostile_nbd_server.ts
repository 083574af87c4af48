/**
 * An NBD server that lies, as much as it is told to. It runs in the thread of its client: `step` does
 * what can be done now. It holds the client to the protocol.
 *
 * @module
 */
import { Errno } from "../../../../ffi/errno.ts";
import { closeFile } from "../../../../ffi/files.ts";
import { addressOf } from "../../../../ffi/libc.ts";
import { acceptConnection, receiveAt, sendAt, unixListen } from "../../../../ffi/sockets.ts";
import { Random } from "../../../../src/testing/random.ts";
import { joined } from "../../../support/nbd_client.ts";
import { mutated, pick } from "./choose.ts";
import { handshakeAnswer, LIES, type Offer } from "./lying_handshake.ts";
import { answersTo, hostileAnswersTo, type NbdRequest } from "./lying_replies.ts";

/** A byte that is in no sector of the server: memory that is full of it was not written. */
export const POISON = 0xdb;
/** What the server offers when it does not lie. */
export const HONEST_OFFER: Offer = {
  sizeBytes: 1n << 20n,
  flags: 1 | 4 | 8 | 32 | 64,
  leastBytes: 1,
  mostBytes: 32 << 20,
  structured: true,
  contextId: 5,
  knowsGo: true,
};
const GREETING = new TextEncoder().encode("NBDMAGICIHAVEOPT\0\x03");
const RECEIVE_BYTES = 1 << 20;
const REQUEST_MAGIC = 0x25609513;
const Cmd = { Read: 0, Write: 1, Disc: 2, Flush: 3, Trim: 4, WriteZeroes: 6, Status: 7 } as const;

class Connection {
  readonly #server: HostileNbdServer;
  readonly #random: Random;
  readonly #hostility: number;
  /** Whether it takes requests and answers none. */
  readonly #isDeaf: boolean;
  #inbox = new Uint8Array(0);
  #outbox: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #stage: "flags" | "options" | "requests" | "deaf" = "flags";
  #noZeroes = false;
  /** What this connection offers: the truth, or a lie. */
  readonly offer: Offer;
  isOpen = true;
  /** Whether the connection ends when all has been sent. */
  #ends = false;

  constructor(readonly fd: number, server: HostileNbdServer, random: Random) {
    this.#server = server;
    this.#random = random;
    this.#hostility = server.hostility;
    this.#isDeaf = server.deaf > 0;
    if (this.#isDeaf) server.deaf--;
    const isLie = random.chance(this.#hostility / 4);
    this.offer = { ...HONEST_OFFER, ...server.more, ...isLie ? pick(random, LIES) : {} };
    this.#say(GREETING);
  }

  /** Sends, or something like it. */
  #say(message: Uint8Array): void {
    const random = this.#random;
    if (!random.chance(this.#hostility / 12)) return this.#put(message);
    switch (random.below(6)) {
      case 0:
        this.#put(message.subarray(0, random.below(message.length + 1)));
        this.#ends = true;
        break;
      case 1:
        this.#put(joined(message, message));
        break;
      case 2:
        this.#stage = "deaf";
        break;
      default:
        this.#put(mutated(random, message));
    }
  }

  #put(message: Uint8Array): void {
    if (!this.#ends) this.#outbox = joined(this.#outbox, message);
  }

  /** Does what can be done now; false when that is nothing. */
  step(): boolean {
    const got = this.#receive();
    while (this.isOpen && this.#take());
    return this.#send() || got;
  }

  #receive(): boolean {
    const buffer = this.#server.buffer;
    const got = receiveAt(this.fd, addressOf(buffer), RECEIVE_BYTES);
    const isReset = got === -Errno.ECONNRESET;
    if (isReset) this.#server.resets++;
    if (got === 0 || isReset) this.close();
    if (got <= 0) return got === 0;
    this.#inbox = joined(this.#inbox, buffer.subarray(0, got));
    return true;
  }

  #send(): boolean {
    if (!this.isOpen) return false;
    let any = false;
    while (this.#outbox.length > 0) {
      const sent = sendAt(this.fd, addressOf(this.#outbox), this.#outbox.length);
      if (sent <= 0) break;
      this.#outbox = this.#outbox.slice(sent);
      any = true;
    }
    if (this.#ends && this.#outbox.length === 0) this.close();
    return any;
  }

  /** Takes one message; false when none is whole. */
  #take(): boolean {
    switch (this.#stage) {
      case "flags":
        return this.#takeFlags();
      case "options":
        return this.#takeOption();
      case "requests":
        return this.#takeRequest();
      default:
        this.#inbox = new Uint8Array(0);
        return false;
    }
  }

  #shift(bytes: number): DataView {
    const view = new DataView(this.#inbox.buffer, this.#inbox.byteOffset, bytes);
    this.#inbox = this.#inbox.subarray(bytes);
    return view;
  }

  #takeFlags(): boolean {
    if (this.#inbox.length < 4) return false;
    this.#noZeroes = (this.#shift(4).getUint32(0) & 2) !== 0;
    this.#stage = "options";
    return true;
  }

  #takeOption(): boolean {
    if (this.#inbox.length < 16) return false;
    const head = new DataView(this.#inbox.buffer, this.#inbox.byteOffset, 16);
    const length = head.getUint32(12);
    if (this.#inbox.length < 16 + length) return false;
    const option = head.getUint32(8);
    this.#shift(16 + length);
    const answer = handshakeAnswer(this.#random, option, {
      offer: this.offer,
      noZeroes: this.#noZeroes,
      hostility: this.#hostility,
    });
    if (answer.after === "requests") this.#stage = "requests";
    for (const message of answer.messages) this.#say(message);
    if (answer.after === "end") this.#ends = true;
    return true;
  }

  #takeRequest(): boolean {
    if (this.#inbox.length < 28) return false;
    const head = new DataView(this.#inbox.buffer, this.#inbox.byteOffset, 28);
    const command = head.getUint16(6);
    const length = head.getUint32(24);
    const size = 28 + (command === Cmd.Write ? length : 0);
    if (this.#inbox.length < size) return false;
    const request: NbdRequest = {
      command,
      cookie: head.getBigUint64(8),
      offset: Number(head.getBigUint64(16)),
      length,
      data: this.#inbox.slice(28, size),
    };
    this.#checkRequest(request, head);
    this.#shift(size);
    if (command === Cmd.Disc) this.#ends = true;
    else if (!this.#isDeaf) this.#answer(request);
    return true;
  }

  /** The client must keep to what this connection offered. */
  #checkRequest({ command, offset, length }: NbdRequest, head: DataView): void {
    const { sizeBytes, mostBytes, flags } = this.offer;
    const isData = command === Cmd.Read || command === Cmd.Write;
    const isRight = head.getUint32(0) === REQUEST_MAGIC && head.getUint16(4) === 0 &&
      offset % 512 === 0 && length % 512 === 0 && BigInt(offset + length) <= sizeBytes &&
      // A limit below a sector is refused, so a client that asks was not told of it.
      (!isData || length <= mostBytes || mostBytes < 512) && command <= Cmd.Status &&
      command !== 5 &&
      (command !== Cmd.Trim || (flags & 32) !== 0) &&
      (command !== Cmd.WriteZeroes || (flags & 64) !== 0);
    if (isRight) return;
    const shown = JSON.stringify({ command, offset, length, flags: head.getUint16(4) });
    const offered = JSON.stringify({ ...this.offer, sizeBytes: `${sizeBytes}` });
    this.#server.breach ??= `The client asks ${shown} of ${offered}`;
  }

  #answer(request: NbdRequest): void {
    const { content } = this.#server;
    const { command, offset, length, data } = request;
    if (command === Cmd.Write) content.set(data, offset);
    if (command === Cmd.WriteZeroes || command === Cmd.Trim) {
      content.fill(0, offset, offset + length);
    }
    const isHostile = this.#random.chance(this.#hostility);
    const make = isHostile ? hostileAnswersTo : answersTo;
    const { messages, after } = make(this.#random, request, { offer: this.offer, content });
    if (isHostile) this.#server.cases++;
    for (const message of messages) this.#put(message);
    if (after === "deaf") this.#stage = "deaf";
    if (after === "end") this.#ends = true;
  }

  close(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    closeFile(this.fd);
  }
}

export class HostileNbdServer {
  readonly content = new Uint8Array(Number(HONEST_OFFER.sizeBytes)).map((_, i) => (i >> 9) % 199);
  readonly buffer = new Uint8Array(RECEIVE_BYTES);
  /** From 0, an honest server, to 1. */
  hostility = 0;
  /** So many of the next connections take requests and answer none. */
  deaf = 0;
  /** What the next connections offer besides, or instead. */
  more: Partial<Offer> = {};
  /** Answers that were lies. */
  cases = 0;
  /** What the client did that it must not do. */
  breach: string | null = null;
  /** Which lies are told. */
  random = new Random(1);
  readonly #listener: number;
  #connections: Connection[] = [];

  /** Connections that ended with a reset. */
  resets = 0;

  /** @param at A path for a UNIX socket, or a socket that listens. */
  constructor(at: string | number) {
    this.#listener = typeof at === "number" ? at : unixListen(at);
  }

  /** Does what can be done now; false when that is nothing. */
  step(): boolean {
    let any = false;
    for (;;) {
      const fd = acceptConnection(this.#listener);
      if (fd < 0) break;
      this.#connections.push(new Connection(fd, this, this.random));
      any = true;
    }
    for (const connection of this.#connections) any = connection.step() || any;
    this.#connections = this.#connections.filter(({ isOpen }) => isOpen);
    if (this.breach !== null) throw new Error(this.breach);
    return any;
  }

  /** How many connections there are. */
  get connections(): number {
    return this.#connections.length;
  }

  /** Ends all connections, or one of them, the oldest being 0. */
  hangUp(only?: number): void {
    for (const [i, connection] of this.#connections.entries()) {
      if (only === undefined || only === i) connection.close();
    }
    this.#connections = this.#connections.filter(({ isOpen }) => isOpen);
  }

  close(): void {
    this.hangUp();
    closeFile(this.#listener);
  }
}
