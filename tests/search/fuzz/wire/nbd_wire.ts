/**
 * The client's end of an NBD connection for many small messages: one read takes what has come. It
 * shares nothing with the server that it talks to.
 *
 * @module
 */
import { HungUp, type Reply } from "../../../support/nbd_client.ts";
import { sendAll } from "./served_tapdisk.ts";

const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
const CHUNK_NONE = 0;
const CHUNK_DATA = 1;
const CHUNK_HOLE = 2;
const CHUNK_STATUS = 5;
const CHUNK_ERROR = 0x8001;
/** The most that is waited for a server; it answers in milliseconds. */
const SILENCE_MS = 60_000;

export interface OptionAnswer {
  readonly option: number;
  readonly type: number;
  readonly data: Uint8Array;
}

export class NbdWire {
  readonly #connection: Deno.UnixConn;
  readonly #chunk = new Uint8Array(256 * 1024);
  #buffer = new Uint8Array(0);
  #closed = false;

  private constructor(connection: Deno.UnixConn) {
    this.#connection = connection;
  }

  static async connect(path: string): Promise<NbdWire> {
    return new NbdWire(await Deno.connect({ transport: "unix", path }));
  }

  /** Sends; false when the server has closed the connection. */
  async send(bytes: Uint8Array): Promise<boolean> {
    try {
      await sendAll(this.#connection, bytes);
      return true;
    } catch (error) {
      if (this.#closed || error instanceof Deno.errors.BrokenPipe) return false;
      if (error instanceof Deno.errors.ConnectionReset) return false;
      throw error;
    }
  }

  async #more(): Promise<void> {
    const silence = setTimeout(() => this.close(), SILENCE_MS);
    let got: number | null;
    try {
      got = await this.#connection.read(this.#chunk);
    } catch (error) {
      if (this.#closed) throw new Error(`The server said nothing for ${SILENCE_MS} ms`);
      if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
      got = null;
    } finally {
      clearTimeout(silence);
    }
    if (got === null) throw new HungUp(`It hung up; ${this.#buffer.length} bytes are left over`);
    const all = new Uint8Array(this.#buffer.length + got);
    all.set(this.#buffer);
    all.set(this.#chunk.subarray(0, got), this.#buffer.length);
    this.#buffer = all;
  }

  /** Receives exactly so many bytes. */
  async receive(count: number): Promise<DataView> {
    while (this.#buffer.length < count) await this.#more();
    const { buffer, byteOffset } = this.#buffer;
    this.#buffer = this.#buffer.subarray(count);
    return new DataView(buffer, byteOffset, count);
  }

  /** Takes what comes until the server closes the connection; returns how many bytes. */
  async drain(): Promise<number> {
    try {
      for (;;) await this.#more();
    } catch (error) {
      if (!(error instanceof HungUp)) throw error;
      return this.#buffer.length;
    }
  }

  async optionAnswer(): Promise<OptionAnswer> {
    const view = await this.receive(20);
    if (view.getBigUint64(0) !== OPTION_REPLY_MAGIC) throw new Error("Not an answer to an option");
    const [option, type, length] = [8, 12, 16].map((at) => view.getUint32(at));
    if (length > 8192 + 2) throw new Error(`An answer of ${length} bytes to option ${option}`);
    const data = await this.receive(length);
    return { option, type, data: new Uint8Array(data.buffer, data.byteOffset, length) };
  }

  /** All answers to an option; the last one is an acknowledgement or an error. */
  async optionAnswers(option: number): Promise<OptionAnswer[]> {
    const answers: OptionAnswer[] = [];
    for (;;) {
      const answer = await this.optionAnswer();
      answers.push(answer);
      if (answer.option !== option) throw new Error(`Asked ${option}, answered ${answer.option}`);
      if (answer.type === 1 || answer.type >= 0x8000_0000) return answers;
      if (answers.length > 8) throw new Error("More answers than there can be");
    }
  }

  /**
   * The next reply to a request.
   *
   * @param readBytesOf The length of the READ of a cookie; 0 for any other request.
   */
  async reply(readBytesOf: (cookie: number) => number): Promise<Reply> {
    const magic = (await this.receive(4)).getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const view = await this.receive(12);
      const error = view.getUint32(0);
      const cookie = Number(view.getBigUint64(4));
      const data = await this.receive(error === 0 ? readBytesOf(cookie) : 0);
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      return { cookie, error, data: bytes, chunks: [], extents: [] };
    }
    if (magic !== STRUCTURED_REPLY_MAGIC) throw new Error(`Not a reply: ${magic.toString(16)}`);
    return await this.#chunks();
  }

  async #chunks(): Promise<Reply> {
    const chunks: number[] = [];
    const extents: [number, number][] = [];
    let error = 0;
    let data: Uint8Array = new Uint8Array(0);
    for (;;) {
      if (chunks.length > 0) {
        const magic = (await this.receive(4)).getUint32(0);
        if (magic !== STRUCTURED_REPLY_MAGIC) throw new Error("Another chunk has no magic number");
      }
      const head = await this.receive(16);
      const [flags, type, length] = [head.getUint16(0), head.getUint16(2), head.getUint32(12)];
      const cookie = Number(head.getBigUint64(4));
      if (flags > 1 || length > 33 << 20) throw new Error(`A chunk of ${length} bytes, ${flags}`);
      chunks.push(type);
      const content = await this.receive(length);
      if (type === CHUNK_ERROR) error = content.getUint32(0);
      else if (type === CHUNK_DATA) {
        data = new Uint8Array(content.buffer, content.byteOffset + 8, length - 8);
      } else if (type === CHUNK_STATUS) {
        for (let at = 4; at < length; at += 8) {
          extents.push([content.getUint32(at), content.getUint32(at + 4)]);
        }
      } else if (type !== CHUNK_NONE && type !== CHUNK_HOLE) throw new Error(`Chunk type ${type}`);
      if (flags === 1) return { cookie, error, data, chunks, extents };
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection.close();
  }
}
