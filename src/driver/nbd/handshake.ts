import { Errno, SystemError } from "../../../ffi/errno.ts";
import { Fields } from "../../nbd/fields.ts";
import {
  BASE_ALLOCATION,
  IHAVEOPT_HIGH,
  IHAVEOPT_LOW,
  MAXIMUM_BLOCK_BYTES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBDMAGIC_HIGH,
  NBDMAGIC_LOW,
  OLDSTYLE_MAGIC_HIGH,
  OLDSTYLE_MAGIC_LOW,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
} from "../../nbd/protocol.ts";

/** What a server says of an export, and what was agreed on. */
export interface RemoteExport {
  readonly sizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly flags: number;
  /** Whether reads are answered in structured form. */
  readonly structured: boolean;
  /** The number that `base:allocation` goes by; null when the server does not have it. */
  readonly allocationId: number | null;
  /** What requests start and end on a multiple of, and the most bytes of a read or write. */
  readonly minimumBlockBytes: number;
  readonly maximumBlockBytes: number;
}

const GREETING_BYTES = 18;
const OLDSTYLE_BYTES = 152;
const REPLY_HEADER_BYTES = 20;
/** The longest answer that is taken; real ones are names and sentences. */
const LONGEST_REPLY_BYTES = 16 * 1024;
/** The most answers of one handshake; real servers send fewer than ten. */
const MOST_REPLIES = 64;
const EXPORT_NAME_PADDING_BYTES = 124;

const refusals = new Map<number, [errno: number, why: string]>([
  [NBD_REP_ERR_UNKNOWN, [Errno.ENOENT, "the server has no such export"]],
  [NBD_REP_ERR_POLICY, [Errno.EACCES, "the server does not allow it"]],
  [NBD_REP_ERR_TLS_REQD, [
    Errno.EACCES,
    "the server wants TLS, which the types nbds and nbds+unix have",
  ]],
  [NBD_REP_ERR_SHUTDOWN, [Errno.ESHUTDOWN, "the server is shutting down"]],
  [NBD_REP_ERR_BLOCK_SIZE_REQD, [Errno.EINVAL, "the server wants larger blocks"]],
]);

/**
 * The client's half of the fixed newstyle negotiation of one export. A server that greets in the
 * oldstyle has one export, and there is no negotiation. It takes bytes as they come and says what to
 * send; it neither reads nor writes a socket.
 */
export class ClientHandshake {
  /** What is to be sent, in order; the caller takes it out. */
  readonly toSend: Uint8Array[] = [];
  /** What came of it; null while it goes on. */
  result: RemoteExport | null = null;
  /** Whether the server waits for TLS, after which the caller calls `secured`. */
  isSecuring = false;
  readonly #exportName: string;
  readonly #title: string;
  readonly #wantsTls: boolean;
  #received: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  /** The option that an answer is awaited to; 0 before the first. */
  #option = 0;
  #replies = 0;
  #noZeroes = false;
  #structured = false;
  #allocationId: number | null = null;
  #sizeBytes = -1;
  #flags = 0;
  #minimumBlockBytes = 1;
  #maximumBlockBytes = MAXIMUM_BLOCK_BYTES;

  /**
   * @param title What the export is called in errors.
   * @param wantsTls Whether nothing is said of the export before there is TLS.
   */
  constructor(exportName: string, title: string, wantsTls = false) {
    this.#exportName = exportName;
    this.#title = title;
    this.#wantsTls = wantsTls;
  }

  /** The connection has TLS from now on. */
  secured(): void {
    this.isSecuring = false;
    this.#ask(NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0));
  }

  /** Takes what the server sent. Throws `SystemError` when there is no agreement. */
  receive(bytes: Uint8Array): void {
    const all = new Uint8Array(this.#received.length + bytes.length);
    all.set(this.#received);
    all.set(bytes, this.#received.length);
    let at = 0;
    while (this.result === null && !this.isSecuring) {
      const taken = this.#takeOne(new DataView(all.buffer, at));
      if (taken === 0) break;
      at += taken;
    }
    this.#received = all.slice(at);
    // Bytes ahead of TLS may be another's words.
    const isOver = this.result !== null || this.isSecuring;
    if (isOver && this.#received.length > 0) throw this.#breach();
  }

  #failure(errno: number, why: string): SystemError {
    return new SystemError(errno, `Cannot open ${this.#title} (${why})`);
  }

  #breach(): SystemError {
    return this.#failure(Errno.EPROTO, "the server breaks the NBD protocol");
  }

  /** Works through one message; returns its bytes, 0 when it is not there as a whole. */
  #takeOne(view: DataView<ArrayBuffer>): number {
    if (this.#option === 0) return this.#greeting(view);
    if (this.#option === NBD_OPT_EXPORT_NAME) return this.#exportNameAnswer(view);
    return this.#optionReply(view);
  }

  #greeting(view: DataView): number {
    if (view.byteLength < GREETING_BYTES) return 0;
    if (view.getUint32(0) !== NBDMAGIC_HIGH || view.getUint32(4) !== NBDMAGIC_LOW) {
      throw this.#failure(Errno.EPROTO, "what answers there is no NBD server");
    }
    const isOld = view.getUint32(8) === OLDSTYLE_MAGIC_HIGH &&
      view.getUint32(12) === OLDSTYLE_MAGIC_LOW;
    if (isOld && this.#wantsTls) {
      throw this.#failure(Errno.EPROTONOSUPPORT, "the server knows only the oldstyle, without TLS");
    }
    if (isOld) return this.#oldstyleGreeting(view);
    const flags = view.getUint16(16);
    if ((flags & NBD_FLAG_FIXED_NEWSTYLE) === 0) {
      throw this.#failure(Errno.EPROTONOSUPPORT, "the server does not speak fixed newstyle NBD");
    }
    if (view.getUint32(8) !== IHAVEOPT_HIGH || view.getUint32(12) !== IHAVEOPT_LOW) {
      throw this.#breach();
    }
    this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
    const common = NBD_FLAG_FIXED_NEWSTYLE | (flags & NBD_FLAG_NO_ZEROES);
    this.toSend.push(new Fields().u32(common).done());
    const option = this.#wantsTls ? NBD_OPT_STARTTLS : NBD_OPT_STRUCTURED_REPLY;
    this.#ask(option, new Uint8Array(0));
    return GREETING_BYTES;
  }

  /** The size, 16 bits of handshake flags, NBD_FLAG_* of the transmission, and zeros. */
  #oldstyleGreeting(view: DataView): number {
    if (view.byteLength < OLDSTYLE_BYTES) return 0;
    this.#noteSize(view, 16, view.getUint16(26));
    this.#finish();
    return OLDSTYLE_BYTES;
  }

  #ask(option: number, content: Uint8Array): void {
    this.#option = option;
    const header = new Fields().u32(IHAVEOPT_HIGH).u32(IHAVEOPT_LOW).u32(option);
    this.toSend.push(header.u32(content.length).done(), content);
  }

  #named(): Fields {
    const name = new TextEncoder().encode(this.#exportName);
    return new Fields().u32(name.length).text(this.#exportName);
  }

  #askForAllocation(): void {
    const query = new Fields().u32(1).u32(BASE_ALLOCATION.length).text(BASE_ALLOCATION).done();
    const name = this.#named().done();
    this.#ask(NBD_OPT_SET_META_CONTEXT, Uint8Array.from([...name, ...query]));
  }

  #askToGo(): void {
    this.#ask(NBD_OPT_GO, this.#named().u16(1).u16(NBD_INFO_BLOCK_SIZE).done());
  }

  #optionReply(view: DataView<ArrayBuffer>): number {
    if (view.byteLength < REPLY_HEADER_BYTES) return 0;
    const type = view.getUint32(12);
    const length = view.getUint32(16);
    const isReply = view.getUint32(0) === OPTION_REPLY_MAGIC_HIGH &&
      view.getUint32(4) === OPTION_REPLY_MAGIC_LOW && view.getUint32(8) === this.#option;
    if (!isReply || length > LONGEST_REPLY_BYTES) throw this.#breach();
    if (this.#replies === MOST_REPLIES) {
      throw this.#failure(Errno.EPROTO, "the server answers without end");
    }
    if (view.byteLength < REPLY_HEADER_BYTES + length) return 0;
    const content = new DataView(view.buffer, view.byteOffset + REPLY_HEADER_BYTES, length);
    this.#replies++;
    if (type > 0x7fff_ffff) this.#refused(type, content);
    else this.#accepted(type, content);
    return REPLY_HEADER_BYTES + length;
  }

  #accepted(type: number, content: DataView<ArrayBuffer>): void {
    if (type === NBD_REP_META_CONTEXT && this.#option === NBD_OPT_SET_META_CONTEXT) {
      this.#noteContext(content);
    } else if (type === NBD_REP_INFO && this.#option === NBD_OPT_GO) this.#noteInfo(content);
    else if (type !== NBD_REP_ACK) throw this.#breach();
    else if (this.#option === NBD_OPT_STARTTLS) this.isSecuring = true;
    else if (this.#option === NBD_OPT_STRUCTURED_REPLY) {
      this.#structured = true;
      this.#askForAllocation();
    } else if (this.#option === NBD_OPT_SET_META_CONTEXT) this.#askToGo();
    else this.#finish();
  }

  /** An option was refused: what is not needed is done without. */
  #refused(type: number, content: DataView<ArrayBuffer>): void {
    if (this.#option === NBD_OPT_STARTTLS) {
      throw this.#failure(Errno.EPROTONOSUPPORT, "the server has no TLS");
    }
    if (this.#option !== NBD_OPT_GO) {
      if (type === NBD_REP_ERR_TLS_REQD) throw this.#refusal(type, content);
      this.#allocationId = null;
      this.#askToGo();
    } else if (type === NBD_REP_ERR_UNSUP) {
      // The one option that every server has; its content is the name and nothing else.
      this.#ask(NBD_OPT_EXPORT_NAME, new TextEncoder().encode(this.#exportName));
    } else throw this.#refusal(type, content);
  }

  #refusal(type: number, content: DataView<ArrayBuffer>): SystemError {
    const hex = `0x${type.toString(16)}`;
    const [errno, why] = refusals.get(type) ?? [Errno.EIO, `the server refuses with error ${hex}`];
    const bytes = new Uint8Array(content.buffer, content.byteOffset, content.byteLength);
    const said = JSON.stringify(new TextDecoder().decode(bytes));
    return this.#failure(errno, content.byteLength === 0 ? why : `${why}: it says ${said}`);
  }

  #noteContext(content: DataView<ArrayBuffer>): void {
    if (content.byteLength < 4) throw this.#breach();
    const bytes = new Uint8Array(content.buffer, content.byteOffset + 4, content.byteLength - 4);
    if (new TextDecoder().decode(bytes) === BASE_ALLOCATION) {
      this.#allocationId = content.getUint32(0);
    }
  }

  #noteInfo(content: DataView): void {
    const type = content.byteLength < 2 ? -1 : content.getUint16(0);
    if (type === NBD_INFO_EXPORT && content.byteLength === 12) this.#noteExport(content, 2);
    else if (type === NBD_INFO_BLOCK_SIZE && content.byteLength === 14) {
      this.#minimumBlockBytes = content.getUint32(2);
      this.#maximumBlockBytes = content.getUint32(10);
    } else if (type < 0 || type === NBD_INFO_EXPORT || type === NBD_INFO_BLOCK_SIZE) {
      throw this.#breach();
    }
  }

  #noteExport(view: DataView, at: number): void {
    this.#noteSize(view, at, view.getUint16(at + 8));
  }

  #noteSize(view: DataView, at: number, flags: number): void {
    this.#sizeBytes = view.getUint32(at) * 0x1_0000_0000 + view.getUint32(at + 4);
    this.#flags = flags;
  }

  /** The answer to NBD_OPT_EXPORT_NAME has no header; a refusal is that the server hangs up. */
  #exportNameAnswer(view: DataView): number {
    const length = 10 + (this.#noZeroes ? 0 : EXPORT_NAME_PADDING_BYTES);
    if (view.byteLength < length) return 0;
    this.#noteExport(view, 0);
    this.#finish();
    return length;
  }

  #finish(): void {
    if (this.#sizeBytes < 0 || this.#minimumBlockBytes === 0) throw this.#breach();
    this.result = {
      sizeBytes: this.#sizeBytes,
      flags: this.#flags,
      structured: this.#structured,
      allocationId: this.#allocationId,
      minimumBlockBytes: this.#minimumBlockBytes,
      maximumBlockBytes: this.#maximumBlockBytes,
    };
  }
}
