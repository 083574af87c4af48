/**
 * A connection with TLS, by OpenSSL, on a socket that does not block.
 *
 * Where the kernel has TLS for the keys that were agreed on, data goes through plain recvmsg(2) and
 * sendmsg(2). Otherwise it is encrypted here: the socket's bytes are received to, and sent from, the
 * buffers of a pair of BIOs, which have fixed sizes, so that one call receives or sends many records.
 * Data goes through one buffer whose pointer is made once, or from where it lies by a pointer that is
 * kept, so that a transfer allocates nothing.
 *
 * @module
 */
import { assert } from "./assert.ts";
import { Errno, SystemError } from "./errno.ts";
import { cString, pointerTo } from "./libc.ts";
import { type Libssl, takeSslErrors } from "./libssl.ts";
import {
  Arena,
  copyMemory,
  isMemory,
  memoryAddress,
  SECTOR_BYTES,
  SectorPointers,
} from "./memory.ts";
import {
  IOVEC_BYTES,
  prepareKernelTls,
  putMsghdr,
  receiveMessage,
  sendMessage,
} from "./sockets.ts";
import type { SecureStream } from "./secure_stream.ts";
import type { TlsContext } from "./tls_context.ts";

const SSL_ERROR_WANT_READ = 2;
const SSL_ERROR_WANT_WRITE = 3;
const SSL_ERROR_ZERO_RETURN = 6;
const SSL_CTRL_SET_TLSEXT_HOSTNAME = 55;
const BIO_CTRL_GET_KTLS_SEND = 73;
const BIO_CTRL_GET_KTLS_RECV = 76;

/** The most data of a record. */
const RECORD_BYTES = 16 * 1024;
/** The most that encryption adds to a record (RFC 8446, 5.2, and the header). */
const RECORD_OVERHEAD_BYTES = 5 + 256;
/** Bytes of one receive, and of one send. */
const IN_BYTES = 64 * 1024;
const OUT_BYTES = 128 * 1024;
/** The most records without data, and receives, for one read; others have their turn then. */
const MOST_STEPS = 32;
/** The most steps of a handshake at once. */
const MOST_HANDSHAKE_STEPS = 256;

const IN_MSGHDR_AT = 0;
const OUT_MSGHDR_AT = 64;
const IN_IOVEC_AT = 128;
const OUT_IOVEC_AT = IN_IOVEC_AT + IOVEC_BYTES;
const STAGE_AT = 4096;
/** Pointers to data to keep: as many as the requests of two busy disks need. */
const MOST_PLACES = 8192;

let places: SectorPointers | null = null;

/** The state of a connection that goes on. */
const FINE = 1;

/** Who the other end has to be. */
export interface TlsPeerName {
  /** The host name or the address that its certificate must have. */
  readonly host: string;
}

const LIKE_AN_ADDRESS = /^\d+\.\d+\.\d+\.\d+$|:/;

/** A connection with TLS. Its user closes the socket after it. */
export class TlsStream implements SecureStream {
  readonly fd: number;
  /** Why it failed, in OpenSSL's words; empty for an error of the socket. */
  why = "";
  /** Whether the handshake waits to send, and not to receive. */
  wantsToSend = false;
  /** Whether the kernel encrypts, and decrypts. */
  kernelSends = false;
  kernelReceives = false;
  readonly #library: Libssl;
  readonly #ssl: Deno.PointerValue;
  /** The outer end of the pair of BIOs; null while there is none. */
  #outer: Deno.PointerValue = null;
  /** The inner end, from which OpenSSL reads. */
  #inner: Deno.PointerValue = null;
  readonly #arena = new Arena(STAGE_AT + RECORD_BYTES);
  readonly #memoryStart = memoryAddress(0);
  readonly #stageOffset = this.#arena.sector * SECTOR_BYTES + STAGE_AT;
  readonly #stage = this.#arena.pointerAt(STAGE_AT);
  readonly #places = places ??= new SectorPointers(MOST_PLACES);
  /** An address in the pair's buffers, in two halves, and the memory where OpenSSL puts it. */
  readonly #address = new Uint32Array(2);
  readonly #inMsghdr = this.#arena.pointerAt(IN_MSGHDR_AT);
  readonly #outMsghdr = this.#arena.pointerAt(OUT_MSGHDR_AT);
  /** Whether OpenSSL may have written to the pair since all of it was sent. */
  #hasWritten = false;
  /** Whether the last receive of the socket took all there was, since the caller wants data. */
  #isDrained = false;
  /** `FINE`, 0 after the end of the stream, or -errno. */
  #state = FINE;
  #closed = false;

  /**
   * Prepares a connection, whose handshake `handshake` does.
   *
   * @param peer Of a client: the server that is wanted. It is checked when certificates are.
   * @throws {SystemError}
   */
  constructor(fd: number, context: TlsContext, peer?: TlsPeerName) {
    const { library, role, pointer, mayUseKernel } = context;
    this.fd = fd;
    this.#library = library;
    const { view, sector } = this.#arena;
    putMsghdr(view, IN_MSGHDR_AT, sector, IN_IOVEC_AT, 1);
    putMsghdr(view, OUT_MSGHDR_AT, sector, OUT_IOVEC_AT, 1);
    this.#ssl = library.SSL_new(pointer);
    if (this.#ssl === null) {
      this.#arena.release();
      throw new SystemError(Errno.ENOMEM, `Cannot use TLS (${takeSslErrors(library)})`);
    }
    if (role === "server") library.SSL_set_accept_state(this.#ssl);
    else library.SSL_set_connect_state(this.#ssl);
    try {
      if (peer !== undefined) this.#expect(peer.host);
      // The kernel takes keys only from a handshake that OpenSSL does on the socket itself.
      if (mayUseKernel && prepareKernelTls(fd)) library.SSL_set_fd(this.#ssl, fd);
      else library.SSL_set_bio(this.#ssl, this.#makePair(), this.#inner);
    } catch (error) {
      library.SSL_free(this.#ssl);
      this.#arena.release();
      throw error;
    }
  }

  #expect(host: string): void {
    const library = this.#library;
    const name = cString(host);
    const isAddress = LIKE_AN_ADDRESS.test(host);
    // Without a name to compare with, a certificate of any name would do.
    const isSet = isAddress
      ? library.X509_VERIFY_PARAM_set1_ip_asc(library.SSL_get0_param(this.#ssl), name)
      : library.SSL_set1_host(this.#ssl, name);
    if (isSet !== 1) {
      const what = `Cannot compare a certificate with the name ${JSON.stringify(host)}`;
      throw new SystemError(Errno.EINVAL, what);
    }
    if (!isAddress) library.SSL_ctrl(this.#ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, name);
  }

  #makePair(): Deno.PointerValue {
    const ends = [new BigUint64Array(1), new BigUint64Array(1)] as const;
    const sizes = [OUT_BYTES, IN_BYTES] as const;
    if (this.#library.BIO_new_bio_pair(ends[0], sizes[0], ends[1], sizes[1]) !== 1) {
      throw new SystemError(Errno.ENOMEM, "Cannot use TLS (no memory for its buffers)");
    }
    this.#inner = pointerTo(Number(ends[0][0]));
    this.#outer = pointerTo(Number(ends[1][0]));
    return this.#inner;
  }

  /** Whether OpenSSL reads and writes the pair, and not the socket. */
  get #hasPair(): boolean {
    return this.#outer !== null;
  }

  /**
   * Goes on with the handshake. Returns 0 when it has ended, -EAGAIN when it waits for the socket
   * (see `wantsToSend`), or another -errno when it failed; `why` says more then.
   */
  handshake(): number {
    this.wantsToSend = false;
    // An error that another call left would be taken for one of this connection.
    this.#library.ERR_clear_error();
    for (let i = 0; i < MOST_HANDSHAKE_STEPS && this.#state === FINE; i++) {
      const result = this.#library.SSL_do_handshake(this.#ssl);
      const error = result === 1 ? 0 : this.#library.SSL_get_error(this.#ssl, result);
      const isWaiting = error === SSL_ERROR_WANT_READ || error === SSL_ERROR_WANT_WRITE;
      if (result !== 1 && !isWaiting) this.#fail();
      this.#hasWritten = true;
      const sent = this.flush();
      if (sent < 0 && sent !== -Errno.EAGAIN) return this.#state = sent;
      if (this.#state !== FINE) break;
      if (result === 1) {
        this.#handOver();
        return 0;
      }
      if (sent < 0 || (!this.#hasPair && error === SSL_ERROR_WANT_WRITE)) {
        this.wantsToSend = true;
        return -Errno.EAGAIN;
      }
      if (!this.#hasPair) return -Errno.EAGAIN;
      if (!this.#isInnerEmpty) continue;
      const got = this.#pull();
      if (got === 0) return this.#state = -Errno.ECONNRESET;
      if (got < 0) return got;
    }
    return this.#state === FINE ? this.#fail() : this.#state;
  }

  /** Notes that OpenSSL refuses the connection, and tells the peer. */
  #fail(): number {
    this.#state = -Errno.EPROTO;
    const verified = Number(this.#library.SSL_get_verify_result(this.#ssl));
    const reason = verified === 0 ? null : this.#library.X509_verify_cert_error_string(verified);
    const detail = reason === null ? "" : ` (${Deno.UnsafePointerView.getCString(reason)})`;
    this.why = `${takeSslErrors(this.#library) || "the peer breaks the protocol"}${detail}`;
    this.#hasWritten = true;
    this.flush();
    return this.#state;
  }

  /** After the handshake: what the kernel does, and a pair of BIOs for the rest. */
  #handOver(): void {
    const library = this.#library;
    library.ERR_clear_error();
    if (this.#hasPair) return;
    const reading = library.SSL_get_rbio(this.#ssl);
    const writing = library.SSL_get_wbio(this.#ssl);
    this.kernelSends = Number(library.BIO_ctrl(writing, BIO_CTRL_GET_KTLS_SEND, 0, null)) === 1;
    this.kernelReceives = Number(library.BIO_ctrl(reading, BIO_CTRL_GET_KTLS_RECV, 0, null)) === 1;
    if (this.kernelSends && this.kernelReceives) return;
    const pair = this.#makePair();
    // OpenSSL has no bytes of its own here: it receives no more than a record at a time.
    if (this.kernelSends) library.SSL_set0_rbio(this.#ssl, pair);
    else if (this.kernelReceives) library.SSL_set0_wbio(this.#ssl, pair);
    else library.SSL_set_bio(this.#ssl, pair, pair);
  }

  /** The version of TLS, such as `TLSv1.3`. */
  get version(): string {
    const text = this.#library.SSL_get_version(this.#ssl);
    return text === null ? "" : Deno.UnsafePointerView.getCString(text);
  }

  /** Whether there is received data, or an end, that the socket does not show any more. */
  get hasPending(): boolean {
    if (this.#state !== FINE) return !this.#closed;
    if (this.kernelReceives || this.#inner === null) return false;
    return this.#library.SSL_pending(this.#ssl) > 0 || !this.#isInnerEmpty;
  }

  get isInKernel(): boolean {
    return this.kernelSends && this.kernelReceives && this.#state === FINE &&
      this.#library.SSL_pending(this.#ssl) === 0;
  }

  /** Whether OpenSSL has taken all that was received for it. */
  get #isInnerEmpty(): boolean {
    return this.#library.BIO_ctrl_pending(this.#inner) === 0;
  }

  /** Whether encrypted bytes wait for room in the socket. */
  get hasUnsent(): boolean {
    return this.#hasWritten;
  }

  /**
   * Receives to the iovecs of a message, as recvmsg(2) without waiting does: bytes, 0 at the end of
   * the stream, or -errno: -EPROTO when the peer breaks TLS; `why` says more then.
   *
   * @param msghdr The message, for the kernel.
   * @param iovecsAt Offset of the message's iovecs in `view`.
   */
  receive(
    msghdr: Deno.PointerObject,
    view: DataView,
    iovecsAt: number,
    iovecs: number,
  ): number {
    if (this.kernelReceives) {
      const got = receiveMessage(this.fd, msghdr);
      // The next record is an alert, or changes keys: OpenSSL takes it.
      if (got !== -Errno.EIO) return got;
    }
    // What is left of the last receive comes first. The socket tells the loop of what it has besides.
    if (this.#isDrained && !this.hasPending) this.#isDrained = false;
    let total = 0;
    for (let i = 0; i < iovecs; i++) {
      const at = iovecsAt + i * IOVEC_BYTES;
      let to = this.#offsetOf(view, at);
      let left = view.getUint32(at + 8, true);
      while (left > 0) {
        const most = left < RECORD_BYTES ? left : RECORD_BYTES;
        const got = this.#read(most);
        if (got <= 0) return total > 0 ? total : got;
        copyMemory(to, this.#stageOffset, got);
        to += got;
        left -= got;
        total += got;
        // A record ended, and there is no other: one call less of OpenSSL, and one of the kernel.
        if (got < most && this.#isDrained && this.#isInnerEmpty) return total;
      }
    }
    return total;
  }

  /** The offset in I/O memory of an iovec. */
  #offsetOf(view: DataView, at: number): number {
    const address = view.getUint32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
    return address - this.#memoryStart;
  }

  /** Reads data of one record to the stage; returns as `receive` does. */
  #read(mostBytes: number): number {
    const library = this.#library;
    for (let i = 0; i < MOST_STEPS; i++) {
      if (this.#state !== FINE) return this.#state;
      const got = library.SSL_read(this.#ssl, this.#stage, mostBytes);
      if (got > 0) return got;
      const error = library.SSL_get_error(this.#ssl, got);
      if (error === SSL_ERROR_ZERO_RETURN) return this.#state = 0;
      // To answer a change of keys, OpenSSL may want to send while the socket is full. Such a
      // connection is ended: waiting for both directions would let a peer keep the loop busy.
      if (error !== SSL_ERROR_WANT_READ) return this.#fail();
      if (this.kernelReceives) return -Errno.EAGAIN;
      if (!this.#isInnerEmpty) continue;
      if (this.#isDrained) return -Errno.EAGAIN;
      const pulled = this.#pull();
      if (pulled === 0) this.#state = 0;
      if (pulled <= 0) return pulled;
    }
    return -Errno.EAGAIN;
  }

  /** Receives bytes of the socket for OpenSSL. Returns as `receive` does. */
  #pull(): number {
    // The pair is empty: there is room.
    const room = this.#library.BIO_nwrite0(this.#outer, this.#address);
    this.#putAddress(IN_IOVEC_AT, room);
    const got = receiveMessage(this.fd, this.#inMsghdr);
    if (got <= 0) return got;
    const taken = this.#library.BIO_nwrite(this.#outer, this.#address, got);
    assert(taken === got, "OpenSSL takes all that was received for it");
    this.#isDrained = got < room;
    return got;
  }

  /** Makes an iovec of bytes in the pair's buffers. */
  #putAddress(at: number, bytes: number): void {
    assert(bytes > 0, "A part of a BIO's buffer has bytes");
    const { view } = this.#arena;
    view.setUint32(at, this.#address[0], true);
    view.setUint32(at + 4, this.#address[1], true);
    view.setUint32(at + 8, bytes, true);
  }

  /**
   * Sends the iovecs of a message, as sendmsg(2) without waiting does. Bytes that it took may still
   * wait here; `flush` sends them.
   */
  send(
    msghdr: Deno.PointerObject,
    view: DataView,
    iovecsAt: number,
    iovecs: number,
  ): number {
    if (this.kernelSends) return sendMessage(this.fd, msghdr);
    if (this.#state < 0) return this.#state;
    let total = 0;
    let index = 0;
    let skipped = 0;
    while (index < iovecs) {
      const sent = this.flush();
      if (sent < 0) return total > 0 && sent === -Errno.EAGAIN ? total : sent;
      for (let room = OUT_BYTES; index < iovecs && room >= RECORD_BYTES + RECORD_OVERHEAD_BYTES;) {
        let staged = 0;
        let place: Deno.PointerObject | null = null;
        while (index < iovecs && staged < RECORD_BYTES) {
          const at = iovecsAt + index * IOVEC_BYTES;
          const length = view.getUint32(at + 8, true) - skipped;
          if (length >= RECORD_BYTES) {
            const from = this.#offsetOf(view, at) + skipped;
            // A whole record of data is encrypted from where it lies, after what is staged.
            const isSector = from % SECTOR_BYTES === 0;
            if (isSector && staged > 0) break;
            if (isSector) place = this.#placeOf(from / SECTOR_BYTES);
          }
          const part = length < RECORD_BYTES - staged ? length : RECORD_BYTES - staged;
          if (place === null) {
            copyMemory(this.#stageOffset + staged, this.#offsetOf(view, at) + skipped, part);
          }
          staged += part;
          skipped = part === length ? 0 : skipped + part;
          if (part === length) index++;
        }
        if (!this.#write(place ?? this.#stage, staged)) return this.#state;
        room -= staged + RECORD_OVERHEAD_BYTES;
        total += staged;
      }
    }
    const sent = this.flush();
    return sent < 0 && sent !== -Errno.EAGAIN ? sent : total;
  }

  #placeOf(sector: number): Deno.PointerObject {
    assert(isMemory(sector, RECORD_BYTES / SECTOR_BYTES), "A record goes beyond I/O memory");
    return this.#places.at(sector);
  }

  /** Encrypts a record; false when OpenSSL refuses. There is room for it. */
  #write(from: Deno.PointerObject, bytes: number): boolean {
    if (bytes === 0) return true;
    this.#hasWritten = true;
    const written = this.#library.SSL_write(this.#ssl, from, bytes);
    if (written === bytes) return true;
    this.#fail();
    return false;
  }

  /** Sends encrypted bytes that wait. Returns 0 when all have left, else -errno. */
  flush(): number {
    if (!this.#hasPair || this.kernelSends || this.#closed) {
      this.#hasWritten = false;
      return 0;
    }
    while (this.#hasWritten) {
      const bytes = this.#library.BIO_nread0(this.#outer, this.#address);
      if (bytes <= 0) {
        this.#hasWritten = false;
        return 0;
      }
      this.#putAddress(OUT_IOVEC_AT, bytes);
      const sent = sendMessage(this.fd, this.#outMsghdr);
      if (sent < 0) return sent;
      const left = this.#library.BIO_nread(this.#outer, this.#address, sent);
      assert(left === sent, "OpenSSL gives up what was sent");
    }
    return 0;
  }

  /** Receives into an array, for the negotiation; returns as `receive` does. */
  receiveBytes(into: Uint8Array): number {
    this.#isDrained = false;
    const got = this.#read(Math.min(into.length, RECORD_BYTES));
    if (got > 0) into.set(this.#arena.bytes.subarray(STAGE_AT, STAGE_AT + got));
    return got;
  }

  /** Sends an array of at most 16 KiB, for the negotiation; returns as `send` does. */
  sendBytes(bytes: Uint8Array): number {
    if (this.#state < 0) return this.#state;
    const sent = this.flush();
    if (sent < 0) return sent;
    const part = Math.min(bytes.length, RECORD_BYTES);
    this.#arena.bytes.set(bytes.subarray(0, part), STAGE_AT);
    if (this.kernelSends) {
      const written = this.#library.SSL_write(this.#ssl, this.#stage, part);
      if (written > 0) return written;
      const error = this.#library.SSL_get_error(this.#ssl, written);
      return error === SSL_ERROR_WANT_WRITE ? -Errno.EAGAIN : this.#fail();
    }
    if (!this.#write(this.#stage, part)) return this.#state;
    const left = this.flush();
    return left < 0 && left !== -Errno.EAGAIN ? left : part;
  }

  /** Tells the peer that this was all, if that can be sent at once, and frees the memory. */
  close(): void {
    if (this.#closed) return;
    const library = this.#library;
    if (this.#state >= 0 && this.flush() === 0) {
      library.SSL_shutdown(this.#ssl);
      library.ERR_clear_error();
      this.#hasWritten = true;
      this.flush();
    }
    this.#closed = true;
    this.#state = -Errno.ENOTCONN;
    this.#hasWritten = false;
    library.SSL_free(this.#ssl);
    if (this.#outer !== null) library.BIO_free(this.#outer);
    this.#arena.release();
  }
}
