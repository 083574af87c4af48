/**
 * Takes the connections of clients, counts them, and passes their bytes to the HTTP server, which listens
 * on a socket that nobody else reaches. The runtime's HTTP server has no limits of its own: whoever opens
 * connections and says nothing would have them for ever.
 *
 * @module
 */

/** Connections at the same time. */
export const MOST_CONNECTIONS = 256;
/** Connections of one address, so that one client does not shut out the others. */
export const MOST_OF_ADDRESS = 128;
/** Strangers who are told so at the same time; others are closed at once. */
export const MOST_STRANGERS = 16;
/** How long a client may take for its request, apart from the body. */
const HEADER_MS = 10_000;
/** After this time without a byte in either direction a connection ends. */
const IDLE_MS = 200_000;
/** How often idle ones are looked for, as a part of the shorter of these times. */
const LOOKS = 4;
/** The longest head of a request. */
const MOST_HEAD_BYTES = 32 * 1024;
const BUFFER_BYTES = 16 * 1024;

/** How a request begins. HTTP/2 would have many requests on a connection. */
const REQUEST_LINE = /^[A-Z]+ \/\S* HTTP\/1\.[01]\r\n/;
const HEAD_END = "\r\n\r\n";

/** What is said to those who are not served. */
const REFUSALS = {
  wrong: ["400 Bad Request", "This is no request of HTTP/1.1 for a page."],
  busy: ["503 Service Unavailable", "Too many connections. Try again."],
  stranger: [
    "403 Forbidden",
    "Only root and the user who started this page may see it without a token. " +
    "Start it with --token-file.",
  ],
} as const;

/** How clients are taken. */
export interface FrontDoorOptions {
  /** The socket of the HTTP server. */
  readonly inner: string;
  /** Whether a client may connect at all. */
  readonly mayConnect: (conn: Deno.Conn) => boolean;
  /** Other times, for tests. */
  readonly headerMs?: number;
  readonly idleMs?: number;
}

/** A connection that is passed on. */
interface Passage {
  readonly outer: Deno.Conn;
  inner: Deno.Conn | null;
  readonly address: string;
  /** It may not connect at all, and takes no place of those who may. */
  readonly isStranger: boolean;
  readonly sinceMs: number;
  lastMs: number;
  hasHead: boolean;
}

/** Ends a connection; of one that has ended already nothing is left. */
function closeConn(conn: Deno.Conn | null): void {
  try {
    conn?.close();
  } catch {
    // It is closed.
  }
}

async function writeAll(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await conn.write(bytes.subarray(done));
}

function addressOf({ remoteAddr }: Deno.Conn): string {
  return remoteAddr.transport === "tcp" ? remoteAddr.hostname : "";
}

/** The front door of the page. */
export class FrontDoor {
  readonly #listener: Deno.Listener;
  readonly #options: FrontDoorOptions;
  readonly #passages = new Set<Passage>();
  readonly #timer: number;
  readonly #headerMs: number;
  readonly #idleMs: number;

  constructor(listener: Deno.Listener, options: FrontDoorOptions) {
    this.#listener = listener;
    this.#options = options;
    const { headerMs = HEADER_MS, idleMs = IDLE_MS } = options;
    this.#headerMs = headerMs;
    this.#idleMs = idleMs;
    this.#timer = setInterval(() => this.#endIdle(), Math.min(headerMs, idleMs) / LOOKS);
  }

  /** How many clients are connected. */
  get count(): number {
    return this.#passages.size;
  }

  /** Takes clients until `close` is called. */
  async run(): Promise<void> {
    for (;;) {
      let outer: Deno.Conn;
      try {
        outer = await this.#listener.accept();
      } catch (error) {
        if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) {
          return;
        }
        // A client that has gone, or no descriptor is left: others may come and go meanwhile.
        await new Promise((resolve) => setTimeout(resolve, 100));
        continue;
      }
      this.#take(outer);
    }
  }

  /** Takes no more clients. */
  stop(): void {
    try {
      this.#listener.close();
    } catch {
      // It is closed.
    }
  }

  /** Ends all connections. */
  close(): void {
    this.stop();
    clearInterval(this.#timer);
    for (const passage of this.#passages) this.#end(passage);
  }

  #take(outer: Deno.Conn): void {
    const nowMs = performance.now();
    const passage = {
      outer,
      inner: null,
      address: addressOf(outer),
      isStranger: !this.#options.mayConnect(outer),
      sinceMs: nowMs,
      lastMs: nowMs,
      hasHead: false,
    };
    const alike = [...this.#passages].filter((each) => each.isStranger === passage.isStranger);
    const most = passage.isStranger ? MOST_STRANGERS : MOST_CONNECTIONS;
    if (alike.length >= most) return closeConn(outer);
    this.#passages.add(passage);
    const done = this.#serve(passage, alike);
    // A client that goes away is no error.
    done.catch(() => {}).finally(() => this.#end(passage));
  }

  async #serve(passage: Passage, others: readonly Passage[]): Promise<void> {
    if (passage.isStranger) return await this.#refuse(passage, "stranger");
    const isTcp = passage.outer.remoteAddr.transport === "tcp";
    const ofAddress = others.filter(({ address }) => address === passage.address).length;
    if (isTcp && ofAddress >= MOST_OF_ADDRESS) return await this.#refuse(passage, "busy");
    await this.#pass(passage);
  }

  /** Refuses a client whose request was not read. */
  async #refuse({ outer }: Passage, why: keyof typeof REFUSALS): Promise<void> {
    await outer.read(new Uint8Array(BUFFER_BYTES));
    await this.#say(outer, why);
  }

  async #say(outer: Deno.Conn, why: keyof typeof REFUSALS): Promise<void> {
    const [status, text] = REFUSALS[why];
    await writeAll(
      outer,
      new TextEncoder().encode(
        `HTTP/1.1 ${status}\r\ncontent-type: text/plain; charset=utf-8\r\n` +
          `content-length: ${text.length + 1}\r\nconnection: close\r\n` +
          `content-security-policy: default-src 'none'\r\n\r\n${text}\n`,
      ),
    );
    await outer.closeWrite();
  }

  async #pass(passage: Passage): Promise<void> {
    const inner = await Deno.connect({ transport: "unix", path: this.#options.inner });
    passage.inner = inner;
    const requests = this.#requests(passage, inner);
    requests.catch(() => {});
    // The answer is all: a connection has one request.
    await this.#copy(passage, inner, passage.outer);
    await passage.outer.closeWrite();
  }

  /** Passes the head of a request only when it is whole, and then what follows. */
  async #requests(passage: Passage, inner: Deno.Conn): Promise<void> {
    const { outer } = passage;
    const head = new Uint8Array(MOST_HEAD_BYTES);
    const decoder = new TextDecoder("latin1");
    let length = 0;
    while (!passage.hasHead) {
      const got = await outer.read(head.subarray(length));
      if (got === null || got === 0) return this.#end(passage);
      // The end may have come in two parts. What was looked at before is not looked at again.
      const from = Math.max(0, length - HEAD_END.length + 1);
      length += got;
      passage.hasHead = decoder.decode(head.subarray(from, length)).includes(HEAD_END);
    }
    if (!REQUEST_LINE.test(decoder.decode(head.subarray(0, length)))) {
      await this.#say(outer, "wrong");
      return this.#end(passage);
    }
    await writeAll(inner, head.subarray(0, length));
    await this.#copy(passage, outer, inner);
  }

  async #copy(passage: Passage, from: Deno.Conn, to: Deno.Conn): Promise<void> {
    const buffer = new Uint8Array(BUFFER_BYTES);
    for (;;) {
      const length = await from.read(buffer);
      if (length === null) return;
      await writeAll(to, buffer.subarray(0, length));
      passage.lastMs = performance.now();
    }
  }

  #endIdle(): void {
    const nowMs = performance.now();
    for (const passage of this.#passages) {
      const { hasHead, sinceMs, lastMs } = passage;
      const isLate = hasHead ? nowMs - lastMs > this.#idleMs : nowMs - sinceMs > this.#headerMs;
      if (isLate) this.#end(passage);
    }
  }

  #end(passage: Passage): void {
    this.#passages.delete(passage);
    closeConn(passage.outer);
    closeConn(passage.inner);
  }
}
