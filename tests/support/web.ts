/**
 * Pages of `blktap web` for tests, and HTTP without a library: with any header, over TCP and UNIX sockets.
 *
 * @module
 */
import { commandLine, type ControlBench } from "./control.ts";

/** An answer. */
export interface RawAnswer {
  readonly status: number;
  /** By names in small letters. */
  readonly headers: Headers;
  readonly body: string;
}

/** Where a page is. */
export type PageAddress = { readonly port: number } | { readonly path: string };

/** A page that runs. */
export class RunningPage {
  readonly child: Deno.ChildProcess;
  /** The line that it printed. */
  readonly line: string;
  readonly #errors: Promise<string>;
  readonly #reader: ReadableStreamDefaultReader<string>;

  private constructor(
    child: Deno.ChildProcess,
    { line, errors, reader }: {
      line: string;
      errors: Promise<string>;
      reader: ReadableStreamDefaultReader<string>;
    },
  ) {
    this.child = child;
    this.line = line;
    this.#errors = errors;
    this.#reader = reader;
  }

  /** Starts one, from the sources or as `program` says, and waits until it listens. */
  static async start(
    bench: Pick<ControlBench, "env">,
    args: readonly string[],
    { program }: { program?: string } = {},
  ): Promise<RunningPage> {
    const [command, ...rest] = program === undefined
      ? commandLine("web", ...args)
      : [program, "web", ...args];
    const child = new Deno.Command(command, {
      args: rest,
      env: bench.env,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const errors = new Response(child.stderr).text();
    const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (!text.includes("\n")) {
      const { done, value } = await reader.read();
      if (done) throw new Error(`blktap web ended: ${text}${await errors}`);
      text += value;
    }
    return new RunningPage(child, { line: text.split("\n")[0], errors, reader });
  }

  /** Where browsers find it, with the token if one was made. */
  get url(): string {
    const [url] = /http:\S+/.exec(this.line) ?? [];
    if (url === undefined) throw new Error(`No address: ${this.line}`);
    return url;
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  /** Ends it by a signal; returns its exit status and what it printed as errors. */
  async end(signal: Deno.Signal = "SIGTERM"): Promise<{ code: number; errors: string }> {
    try {
      this.child.kill(signal);
    } catch {
      // It has ended.
    }
    const { code } = await this.child.status;
    await this.#reader.cancel();
    return { code, errors: await this.#errors };
  }
}

/** Calls `body` with a page, and ends it afterwards. */
export async function withPage(
  bench: Pick<ControlBench, "env">,
  args: readonly string[],
  body: (page: RunningPage) => Promise<void>,
): Promise<void> {
  const page = await RunningPage.start(bench, args);
  try {
    await body(page);
  } finally {
    await page.end();
  }
}

/** Connects to a page. */
export async function connect(address: PageAddress): Promise<Deno.Conn> {
  return "port" in address
    ? await Deno.connect({ hostname: "127.0.0.1", port: address.port })
    : await Deno.connect({ transport: "unix", path: address.path });
}

/** The bytes of a request, with exactly these headers beside those that end the connection. */
export function requestText(
  { method = "GET", path = "/", headers = {}, body = "" }: RawRequest,
): string {
  const lines = Object.entries({
    host: "localhost",
    connection: "close",
    ...(body === "" ? {} : {
      "content-type": "application/x-www-form-urlencoded",
      "content-length": String(new TextEncoder().encode(body).length),
    }),
    ...headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\n${lines.join("")}\r\n${body}`;
}

/** A request. */
export interface RawRequest {
  readonly method?: string;
  readonly path?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

async function readAll(conn: Deno.Conn): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  try {
    for await (const part of conn.readable) parts.push(part);
  } catch (error) {
    if (!(error instanceof Deno.errors.ConnectionReset)) throw error;
  }
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** The body of chunks (RFC 9112, 7.1). */
function unchunked(text: string): string {
  let body = "";
  for (let at = 0;;) {
    const end = text.indexOf("\r\n", at);
    const length = parseInt(text.slice(at, end), 16);
    if (end < 0 || !(length > 0)) return body;
    body += text.slice(end + 2, end + 2 + length);
    at = end + 2 + length + 2;
  }
}

/** Sends a request, and reads the answer to its end. */
export async function ask(address: PageAddress, request: RawRequest = {}): Promise<RawAnswer> {
  const conn = await connect(address);
  const writer = conn.writable.getWriter();
  await writer.write(new TextEncoder().encode(requestText(request)));
  writer.releaseLock();
  // As one character for a byte, so that lengths of chunks are right.
  const received = await readAll(conn);
  let text = "";
  for (const byte of received) text += String.fromCharCode(byte);
  const end = text.indexOf("\r\n\r\n");
  const [first, ...lines] = text.slice(0, end).split("\r\n");
  const headers = new Headers(lines.map((line): [string, string] => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 1).trim()];
  }));
  const raw = text.slice(end + 4);
  const body = headers.get("transfer-encoding") === "chunked" ? unchunked(raw) : raw;
  const bytes = Uint8Array.from(body, (character) => character.charCodeAt(0));
  return {
    status: Number(/^HTTP\/1\.1 (\d+)/.exec(first)?.[1]),
    headers,
    body: new TextDecoder().decode(bytes),
  };
}

/** The value of a hidden field of a form. */
export function fieldIn(markup: string, name: string): string {
  const [, value] = new RegExp(`name="${name}"[^>]* value="([^"]*)"`).exec(markup) ?? [];
  if (value === undefined) throw new Error(`No field ${name} in ${markup}`);
  return value.replaceAll("&quot;", '"').replaceAll("&#39;", "'").replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}
