import {
  IHAVEOPT_HIGH,
  IHAVEOPT_LOW,
  MAXIMUM_BLOCK_BYTES,
  MINIMUM_BLOCK_BYTES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_FLAG_SEND_DF,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  NBDMAGIC_HIGH,
  NBDMAGIC_LOW,
  OLDSTYLE_MAGIC_HIGH,
  OLDSTYLE_MAGIC_LOW,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  PREFERRED_BLOCK_BYTES,
} from "../../nbd/protocol.ts";
import { Fields } from "../../nbd/fields.ts";
import type { TlsMode } from "../../tls/tls.ts";
import { contextsOf, isAskedFor, type MetaContext } from "./meta_contexts.ts";

/** The properties of the export that the handshake sends. */
export interface ExportDescription {
  readonly sizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly flags: number;
  /** Whether it has a log of changed blocks. */
  readonly hasLog: boolean;
}

/**
 * How a client is greeted: by the fixed newstyle negotiation, in the oldstyle, where the server tells
 * of its export and requests follow, or not at all, as the kernel's client wants it.
 */
export type GreetingStyle = "newstyle" | "oldstyle" | "none";

/** The states of a handshake. In `tls` it waits for `secured`. */
export const HANDSHAKE_STAGES = ["flags", "options", "tls", "transmission", "closed"] as const;
/** One of `HANDSHAKE_STAGES`. */
export type HandshakeStage = (typeof HANDSHAKE_STAGES)[number];

/** The exports of a server, and its TLS. */
export interface HandshakeServer {
  /** The names that a client is told. */
  names(): readonly string[];
  /** The export of a name as it is now; null when there is none. */
  find(name: string): ExportDescription | null;
  /** Lets a client use an export; returns why not, or null when it may. */
  enter(name: string): string | null;
  readonly tls: TlsMode;
  /** Whether every name is that of the same export. */
  readonly isSingle?: true;
}

/** A server with one export. Every name selects it, as in C blktap. */
function singleExport(describe: () => ExportDescription): HandshakeServer {
  return { names: () => [""], find: describe, enter: () => null, tls: "off", isSingle: true };
}

/** An error of a client that is answered, with the type of the answer. */
class Refusal extends Error {
  constructor(readonly type: number, message: string) {
    super(message);
  }
}

const OPTION_HEADER_BYTES = 16;
/** The longest option that is decoded. Longer ones are refused, and their content is discarded. */
const LONGEST_OPTION_BYTES = 8192;
/** The longest string of the specification: an export name or a query. */
const LONGEST_TEXT_BYTES = 4096;
/** The most options of a handshake. */
const MOST_OPTIONS = 256;
/** Zeros behind the size and flags of an export, in the oldstyle and after EXPORT_NAME. */
const PADDING_BYTES = 124;

/** How far a handshake is, for another process that goes on with it. */
export interface HandshakeState {
  readonly stage: HandshakeStage;
  readonly structuredReplies: boolean;
  /** The names of the contexts that the client chose. */
  readonly contexts: readonly string[];
  readonly noZeroes: boolean;
  readonly options: number;
  readonly skip: number;
}

/** Decodes the content of an option. Throws `RangeError` past its end. */
class OptionReader {
  #at = 0;

  constructor(readonly view: DataView) {}

  get isAtEnd(): boolean {
    return this.#at === this.view.byteLength;
  }

  u16(): number {
    this.#at += 2;
    return this.view.getUint16(this.#at - 2, false);
  }

  u32(): number {
    this.#at += 4;
    return this.view.getUint32(this.#at - 4, false);
  }

  /** The bytes of a string. They may be invalid UTF-8. */
  text(): Uint8Array {
    const length = this.u32();
    if (length > this.view.byteLength - this.#at) throw new RangeError("A text passes the end");
    if (length > LONGEST_TEXT_BYTES) throw new RangeError("A text is too long");
    const bytes = new Uint8Array(this.view.buffer, this.view.byteOffset + this.#at, length);
    this.#at += length;
    return bytes;
  }

  /** All bytes that are left. */
  rest(): Uint8Array {
    const start = this.view.byteOffset + this.#at;
    return new Uint8Array(this.view.buffer, start, this.view.byteLength - this.#at);
  }
}

/** A name as text. Bytes that are no UTF-8 make a name that no export has. */
function nameOf(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

/**
 * The server side of the negotiation. It consumes received bytes and returns messages by a callback.
 * It does not use a socket.
 */
export class Handshake {
  stage: HandshakeStage = "flags";
  structuredReplies = false;
  /** The meta contexts that the client chose, in the order of their numbers. */
  contexts: readonly MetaContext[] = [];
  readonly #server: HandshakeServer;
  readonly #send: (bytes: Uint8Array) => void;
  /** Whether the connection has TLS. */
  #isSecured = false;
  /** The export for which meta contexts were chosen. */
  #contextsOf = "";
  #noZeroes = false;
  #options = 0;
  #skip = 0;

  /**
   * @param served The exports; a function returns the only one as it is now.
   * @param send Sends bytes to the client.
   */
  constructor(
    served: HandshakeServer | (() => ExportDescription),
    send: (bytes: Uint8Array) => void,
  ) {
    this.#server = typeof served === "function" ? singleExport(served) : served;
    this.#send = send;
  }

  /**
   * The connection has TLS from now on. What was said before may be another's words: it counts no
   * more.
   */
  secured(): void {
    this.#isSecured = true;
    this.structuredReplies = false;
    this.contexts = [];
    this.stage = "options";
  }

  /** How far it is. It must be without TLS, and of a server with one export unless it has ended. */
  get state(): HandshakeState {
    return {
      stage: this.stage,
      structuredReplies: this.structuredReplies,
      contexts: this.contexts.map(({ name }) => name),
      noZeroes: this.#noZeroes,
      options: this.#options,
      skip: this.#skip,
    };
  }

  /** Goes on where another process was. */
  restore({ stage, structuredReplies, contexts, noZeroes, options, skip }: HandshakeState): void {
    this.stage = stage;
    this.structuredReplies = structuredReplies;
    this.contexts = contextsOf(true).filter(({ name }) => contexts.includes(name));
    this.#noZeroes = noZeroes;
    this.#options = options;
    this.#skip = skip;
  }

  /** Sends the greeting. */
  start(style: GreetingStyle = "newstyle"): void {
    this.stage = style === "newstyle" ? "flags" : "transmission";
    if (style === "oldstyle") return this.#oldstyle();
    if (style === "none") return;
    this.#send(
      new Fields().u32(NBDMAGIC_HIGH).u32(NBDMAGIC_LOW).u32(IHAVEOPT_HIGH).u32(IHAVEOPT_LOW)
        .u16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).done(),
    );
  }

  /** 152 bytes: magic numbers, the size, 16 bits of handshake flags, the export's flags, zeros. */
  #oldstyle(): void {
    const { sizeBytes, flags } = this.#described("");
    this.#send(
      new Fields().u32(NBDMAGIC_HIGH).u32(NBDMAGIC_LOW).u32(OLDSTYLE_MAGIC_HIGH)
        .u32(OLDSTYLE_MAGIC_LOW).u64(sizeBytes).u16(0).u16(flags).zeros(PADDING_BYTES).done(),
    );
  }

  /** Consumes received bytes; returns how many. The caller passes the rest again, with more. */
  consume(view: DataView): number {
    let taken = 0;
    while (this.stage === "flags" || this.stage === "options") {
      const step = this.#step(
        new DataView(view.buffer, view.byteOffset + taken, view.byteLength - taken),
      );
      if (step === 0) break;
      taken += step;
    }
    return taken;
  }

  #step(view: DataView): number {
    if (this.#skip > 0) {
      const skipped = Math.min(this.#skip, view.byteLength);
      this.#skip -= skipped;
      return skipped;
    }
    return this.stage === "flags" ? this.#takeFlags(view) : this.#takeOption(view);
  }

  #takeFlags(view: DataView): number {
    if (view.byteLength < 4) return 0;
    const flags = view.getUint32(0, false);
    const known = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;
    this.#noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
    this.stage = (flags & ~known) !== 0 ? "closed" : "options";
    return 4;
  }

  #takeOption(view: DataView): number {
    if (view.byteLength < OPTION_HEADER_BYTES) return 0;
    if (view.getUint32(0, false) !== IHAVEOPT_HIGH || view.getUint32(4, false) !== IHAVEOPT_LOW) {
      this.stage = "closed";
      return OPTION_HEADER_BYTES;
    }
    const option = view.getUint32(8, false);
    const length = view.getUint32(12, false);
    const isLong = length > LONGEST_OPTION_BYTES;
    if (!isLong && view.byteLength < OPTION_HEADER_BYTES + length) return 0;
    if (this.#options++ === MOST_OPTIONS) {
      this.stage = "closed";
      return OPTION_HEADER_BYTES;
    }
    if (isLong) return this.#refuseLong(option, length);
    const content = new DataView(view.buffer, view.byteOffset + OPTION_HEADER_BYTES, length);
    try {
      this.#answer(option, new OptionReader(content));
    } catch (error) {
      if (error instanceof RangeError) this.#reply(option, NBD_REP_ERR_INVALID);
      else if (error instanceof Refusal) this.#refuse(option, error);
      else throw error;
    }
    return OPTION_HEADER_BYTES + length;
  }

  #refuseLong(option: number, length: number): number {
    if (option === NBD_OPT_EXPORT_NAME) this.stage = "closed";
    else this.#reply(option, this.#isAllowed(option) ? NBD_REP_ERR_TOO_BIG : NBD_REP_ERR_TLS_REQD);
    this.#skip = length;
    return OPTION_HEADER_BYTES;
  }

  /** A refusal; EXPORT_NAME has none but the end of the connection. */
  #refuse(option: number, { type, message }: Refusal): void {
    if (option === NBD_OPT_EXPORT_NAME) this.stage = "closed";
    else this.#reply(option, type, new TextEncoder().encode(message));
  }

  #reply(option: number, type: number, content: Uint8Array = new Uint8Array(0)): void {
    this.#send(
      new Fields().u32(OPTION_REPLY_MAGIC_HIGH).u32(OPTION_REPLY_MAGIC_LOW).u32(option).u32(type)
        .u32(content.length).bytes(content).done(),
    );
  }

  /** Whether an option is one for this moment: without the TLS that is required, few are. */
  #isAllowed(option: number): boolean {
    return this.#isSecured || this.#server.tls !== "require" || option === NBD_OPT_STARTTLS ||
      option === NBD_OPT_ABORT;
  }

  #answer(option: number, content: OptionReader): void {
    if (!this.#isAllowed(option)) {
      throw new Refusal(NBD_REP_ERR_TLS_REQD, "this server requires TLS");
    }
    switch (option) {
      case NBD_OPT_STARTTLS:
        return this.#startTls(content);
      case NBD_OPT_EXPORT_NAME:
        return this.#exportName(content);
      case NBD_OPT_ABORT:
        this.#reply(option, NBD_REP_ACK);
        this.stage = "closed";
        return;
      case NBD_OPT_LIST:
        return this.#list(content);
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        return this.#info(option, content);
      case NBD_OPT_STRUCTURED_REPLY:
        return this.#structuredReply(content);
      case NBD_OPT_LIST_META_CONTEXT:
      case NBD_OPT_SET_META_CONTEXT:
        return this.#metaContext(option, content);
      default:
        this.#reply(option, NBD_REP_ERR_UNSUP);
    }
  }

  #startTls(content: OptionReader): void {
    if (this.#server.tls === "off") return this.#reply(NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP);
    if (!content.isAtEnd) throw new RangeError("STARTTLS has no content");
    if (this.#isSecured) throw new RangeError("There is TLS already");
    this.#reply(NBD_OPT_STARTTLS, NBD_REP_ACK);
    this.stage = "tls";
  }

  /** The export of a name, with the flags that are valid after the negotiated options. */
  #described(name: string): ExportDescription {
    const found = this.#server.find(name);
    if (found === null) throw new Refusal(NBD_REP_ERR_UNKNOWN, "there is no export of this name");
    const { flags, ...others } = found;
    return { ...others, flags: this.structuredReplies ? flags : flags & ~NBD_FLAG_SEND_DF };
  }

  /** Lets the client use an export. Contexts that it chose for another do not apply. */
  #enter(name: string): void {
    const why = this.#server.enter(name);
    if (why !== null) throw new Refusal(NBD_REP_ERR_POLICY, why);
    if (!this.#server.isSingle && this.#contextsOf !== name) this.contexts = [];
    this.stage = "transmission";
  }

  #exportName(content: OptionReader): void {
    const name = nameOf(content.rest());
    const { sizeBytes, flags } = this.#described(name);
    this.#enter(name);
    const padding = this.#noZeroes ? 0 : PADDING_BYTES;
    this.#send(new Fields().u64(sizeBytes).u16(flags).zeros(padding).done());
  }

  #list(content: OptionReader): void {
    if (!content.isAtEnd) throw new RangeError("LIST has no content");
    for (const name of this.#server.names()) {
      const bytes = new TextEncoder().encode(name);
      this.#reply(
        NBD_OPT_LIST,
        NBD_REP_SERVER,
        new Fields().u32(bytes.length).bytes(bytes).done(),
      );
    }
    this.#reply(NBD_OPT_LIST, NBD_REP_ACK);
  }

  #info(option: number, content: OptionReader): void {
    const name = content.text();
    const wanted: number[] = [];
    for (let left = content.u16(); left > 0; left--) wanted.push(content.u16());
    if (!content.isAtEnd) throw new RangeError("More than was announced");
    const { sizeBytes, flags } = this.#described(nameOf(name));
    if (option === NBD_OPT_GO) this.#enter(nameOf(name));
    const exported = new Fields().u16(NBD_INFO_EXPORT).u64(sizeBytes).u16(flags).done();
    this.#reply(option, NBD_REP_INFO, exported);
    if (wanted.includes(NBD_INFO_NAME)) {
      this.#reply(option, NBD_REP_INFO, new Fields().u16(NBD_INFO_NAME).bytes(name).done());
    }
    const sizes = new Fields().u16(NBD_INFO_BLOCK_SIZE).u32(MINIMUM_BLOCK_BYTES)
      .u32(PREFERRED_BLOCK_BYTES).u32(MAXIMUM_BLOCK_BYTES).done();
    this.#reply(option, NBD_REP_INFO, sizes);
    this.#reply(option, NBD_REP_ACK);
  }

  #structuredReply(content: OptionReader): void {
    if (!content.isAtEnd) throw new RangeError("STRUCTURED_REPLY has no content");
    this.structuredReplies = true;
    this.#reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
  }

  #metaContext(option: number, content: OptionReader): void {
    if (!this.structuredReplies) throw new RangeError("Meta contexts need structured replies");
    const exportName = nameOf(content.text());
    const setting = option === NBD_OPT_SET_META_CONTEXT;
    const offered = contextsOf(this.#described(exportName).hasLog);
    const count = content.u32();
    const chosen = new Set(!setting && count === 0 ? offered : []);
    for (let left = count; left > 0; left--) {
      const query = content.text();
      for (const context of offered) if (isAskedFor(context, query, !setting)) chosen.add(context);
    }
    if (!content.isAtEnd) throw new RangeError("More than was announced");
    const contexts = offered.filter((context) => chosen.has(context));
    if (setting) {
      this.contexts = contexts;
      this.#contextsOf = exportName;
    }
    for (const { id, name } of contexts) {
      const shown = new Fields().u32(setting ? id : 0).text(name).done();
      this.#reply(option, NBD_REP_META_CONTEXT, shown);
    }
    this.#reply(option, NBD_REP_ACK);
  }
}
