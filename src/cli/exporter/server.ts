import type { Log } from "../../log/log.ts";
import { METRICS_MEDIA_TYPE } from "../../observe/prometheus.ts";
import { isKnownHost } from "../../web/access.ts";

/** Clients at once; more wait until one has gone. */
const MOST_CLIENTS = 16;
/** The longest head of a request, bytes. */
const MOST_HEAD_BYTES = 16 * 1024;
/** How long a client may take to send its request, and then to take the answer. */
const CLIENT_TIMEOUT_MS = 10_000;
/** How long not to accept clients after that has failed, as without descriptors. */
const ACCEPT_RETRY_MS = 1_000;

/** A connection. */
export type Client = Pick<Deno.Conn, "read" | "write" | "closeWrite" | "close">;

/** Where clients come from. */
export interface ClientSource {
  accept(): Promise<Client>;
  close(): void;
}

/** An answer. */
interface Answer {
  readonly status: string;
  readonly type: string;
  readonly body: string;
}

const PLAIN = "text/plain; charset=utf-8";

const INDEX = "blktap exporter: the metrics are at /metrics\n";

/** A site whose name was made to lead here (DNS rebinding) comes with that name. */
const WRONG_NAME: Answer = {
  status: "421 Misdirected Request",
  type: PLAIN,
  body:
    "Metrics are not served under that name. Use localhost or an address, or start with --name.\n",
};

function refusal(status: string): Answer {
  return { status, type: PLAIN, body: `${status}\n` };
}

/** What is asked for, and under which name of a host. */
interface Asked {
  readonly method: string;
  readonly path: string;
  /** The `Host` headers. */
  readonly hosts: readonly string[];
  /** Whether it is of HTTP/1.0, which has no `Host`; no browser asks so. */
  readonly isOld: boolean;
}

/** What a request asks for; null for what is no HTTP. */
function askedIn(head: string): Asked | null {
  const [, method, path, version] =
    /^([A-Z]+) (\/[^ ?]*)(?:\?[^ ]*)? HTTP\/1\.([01])\r?\n/.exec(head) ?? [];
  if (method === undefined) return null;
  const hosts = [...head.matchAll(/\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r?\n)/gi)];
  return { method, path, hosts: hosts.map(([, host]) => host), isOld: version === "0" };
}

/** The bytes of an answer; that to HEAD has no body. */
function bytesOf({ status, type, body }: Answer, isHead: boolean): Uint8Array {
  const content = new TextEncoder().encode(body);
  const head = new TextEncoder().encode(
    [
      `HTTP/1.1 ${status}`,
      `Content-Type: ${type}`,
      `Content-Length: ${content.length}`,
      "Connection: close",
      "Cache-Control: no-store",
      "X-Content-Type-Options: nosniff",
      ...(status.startsWith("405") ? ["Allow: GET, HEAD"] : []),
      "\r\n",
    ].join("\r\n"),
  );
  if (isHead) return head;
  const whole = new Uint8Array(head.length + content.length);
  whole.set(head);
  whole.set(content, head.length);
  return whole;
}

/**
 * Serves metrics by HTTP, a request on each connection. It reads no more of a request than its head. All that a
 * client can do is bounded: how many there are, how much they send, how long they take.
 */
export class MetricsServer {
  readonly #listener: ClientSource;
  readonly #text: () => Promise<string>;
  readonly #log: Log;
  readonly #names: readonly string[] | null;
  readonly #clients = new Set<Client>();
  #closed = false;
  #whenFewer: (() => void) | null = null;
  /** The answer that is being made, which all clients get that ask meanwhile. */
  #made: Promise<string> | null = null;

  /**
   * @param text Makes the metrics.
   * @param names Names of this machine under which it may be asked, beside `localhost` and addresses; null for all,
   * at a socket, which no page in a browser reaches.
   */
  constructor(
    listener: ClientSource,
    { text, log, names }: {
      text: () => Promise<string>;
      log: Log;
      names: readonly string[] | null;
    },
  ) {
    this.#listener = listener;
    this.#text = text;
    this.#log = log;
    this.#names = names;
  }

  /** Serves until `close`. */
  async run(): Promise<void> {
    while (!this.#closed) {
      if (this.#clients.size >= MOST_CLIENTS) {
        await new Promise<void>((resolve) => this.#whenFewer = resolve);
        continue;
      }
      let client: Client;
      try {
        client = await this.#listener.accept();
      } catch (error) {
        if (this.#closed) return;
        this.#log.warn(`Cannot take a client: ${error instanceof Error ? error.message : error}`);
        await new Promise((resolve) => setTimeout(resolve, ACCEPT_RETRY_MS));
        continue;
      }
      this.#clients.add(client);
      void this.#serve(client);
    }
  }

  /** Takes no more clients, and drops those that are there. */
  close(): void {
    this.#closed = true;
    this.#listener.close();
    for (const client of this.#clients) this.#drop(client);
    this.#whenFewer?.();
  }

  #drop(client: Client): void {
    if (!this.#clients.delete(client)) return;
    client.close();
    this.#whenFewer?.();
    this.#whenFewer = null;
  }

  async #serve(client: Client): Promise<void> {
    const timer = setTimeout(() => this.#drop(client), CLIENT_TIMEOUT_MS);
    try {
      const head = await readHead(client);
      if (head === null) return;
      const request = askedIn(head);
      const answer = bytesOf(await this.#answer(request), request?.method === "HEAD");
      for (let at = 0; at < answer.length;) at += await client.write(answer.subarray(at));
      await client.closeWrite();
      // Closing at once would drop the answer where bytes of the request are not read yet.
      await client.read(new Uint8Array(1024));
    } catch {
      // The client has gone, or took too long.
    } finally {
      clearTimeout(timer);
      this.#drop(client);
    }
  }

  async #answer(request: Asked | null): Promise<Answer> {
    if (request === null) return refusal("400 Bad Request");
    const { method, path } = request;
    if (!this.#isByName(request)) return WRONG_NAME;
    if (method !== "GET" && method !== "HEAD") return refusal("405 Method Not Allowed");
    if (path === "/") return { status: "200 OK", type: PLAIN, body: INDEX };
    if (path !== "/metrics") return refusal("404 Not Found");
    try {
      return { status: "200 OK", type: METRICS_MEDIA_TYPE, body: await this.#metrics() };
    } catch (error) {
      this.#log.error(`Cannot gather metrics: ${error instanceof Error ? error.message : error}`);
      return refusal("500 Internal Server Error");
    }
  }

  /** Whether a request comes by a name under which metrics are served. */
  #isByName({ hosts, isOld }: Asked): boolean {
    if (this.#names === null || (isOld && hosts.length === 0)) return true;
    return hosts.length === 1 && isKnownHost(hosts[0], this.#names);
  }

  #metrics(): Promise<string> {
    this.#made ??= this.#text().finally(() => this.#made = null);
    return this.#made;
  }
}

/** The head of a request; null when the client ends before it does. Throws for one that is too long. */
async function readHead(client: Client): Promise<string | null> {
  const bytes = new Uint8Array(MOST_HEAD_BYTES);
  for (let length = 0; length < bytes.length;) {
    const got = await client.read(bytes.subarray(length));
    if (got === null) return null;
    length += got;
    const text = new TextDecoder("latin1").decode(bytes.subarray(0, length));
    if (/\r?\n\r?\n/.test(text)) return text;
  }
  throw new Error("The head of the request is too long");
}
