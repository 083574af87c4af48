/**
 * A tapdisk that answers what it is told to, in a thread of its own: tap-ctl's calls block. Each
 * connection takes the next plan.
 *
 * @module
 */
import { MESSAGE_BYTES } from "../../../../src/control/protocol/message.ts";
import { sendAll } from "./served_tapdisk.ts";

/** What one connection gets. */
export interface Plan {
  /** How much of the request is read first. */
  readonly read: number;
  /** What is sent, and how often. */
  readonly answer: Uint8Array<ArrayBuffer>;
  readonly times: number;
  /** Whether the connection then stays open, and nothing more comes. */
  readonly stays: boolean;
}

/** The thread, as its user sees it. */
export class LyingTapdisk {
  readonly #worker = new Worker(import.meta.url, { type: "module" });

  /** Listens at a path. */
  static async start(path: string): Promise<LyingTapdisk> {
    const tapdisk = new LyingTapdisk();
    const listening = new Promise((resolve) => tapdisk.#worker.onmessage = resolve);
    tapdisk.#worker.postMessage(path);
    await listening;
    return tapdisk;
  }

  /** What the next connections get. Plans of a call before that were not used are dropped. */
  tell(plans: readonly Plan[]): void {
    this.#worker.postMessage(plans);
  }

  end(): void {
    this.#worker.terminate();
  }
}

let plans: Plan[] = [];
const kept: Deno.Conn[] = [];

async function serve(connection: Deno.Conn): Promise<void> {
  // What it is told comes in a message, perhaps behind the connection.
  for (let i = 0; plans.length === 0 && i < 100; i++) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  const plan = plans.shift();
  const buffer = new Uint8Array(MESSAGE_BYTES);
  for (let got = 0; plan !== undefined && got < plan.read;) {
    const more = await connection.read(buffer);
    if (more === null) break;
    got += more;
  }
  for (let i = 0; plan !== undefined && i < plan.times; i++) await sendAll(connection, plan.answer);
  if (plan?.stays !== true) return connection.close();
  kept.push(connection);
  if (kept.length > 8) kept.shift()?.close();
}

async function listen(path: string): Promise<void> {
  const listener = Deno.listen({ transport: "unix", path });
  self.postMessage("");
  for await (const connection of listener) serve(connection).catch(() => connection.close());
}

declare const self: {
  postMessage(message: string): void;
  onmessage: ((event: MessageEvent<string | Plan[]>) => void) | null;
};
if ("WorkerGlobalScope" in globalThis) {
  self.onmessage = ({ data }) => {
    if (typeof data === "string") void listen(data);
    else plans = data;
  };
}
