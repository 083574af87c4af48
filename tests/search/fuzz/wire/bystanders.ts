/**
 * Clients that behave, beside hostile ones. They run in a process of their own, so that neither
 * the hostile clients' work nor its pauses delay them. Each writes, reads back and compares, and
 * measures how long that took.
 *
 * Other programs may keep the processors. A wait counts only for the part in which the threads of
 * the tapdisk and of this process had a processor or wanted none: the kernel counts the time that a
 * thread was ready to run and did not (`/proc/PID/task/TID/schedstat`). A stop of the whole machine shows as a timer that comes
 * late, and does not count either.
 *
 * @module
 */
import { NbdClient, noise } from "../../../support/nbd_client.ts";
import { waitUntil } from "../../../support/served.ts";

/** Where a client works. */
export interface Stand {
  readonly socket: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

const ROUND_BYTES = 32 * 1024;
const PAUSE_MS = 15;
/**
 * The longest that a round may take: a write and a read. Who keeps others waiting is dropped after half
 * a second, or else after a minute; the client itself waits for a processor, too.
 */
const LONGEST_MS = 3000;
const TICK_MS = 20;

/**
 * Milliseconds that the threads of a process waited for a processor. The loop runs on the first
 * thread, which waits for the others: for those that collect garbage, for one.
 */
function waitedForProcessorMs(pid: number): number {
  let waitedMs = 0;
  try {
    for (const { name } of Deno.readDirSync(`/proc/${pid}/task`)) {
      const [, waited] = Deno.readTextFileSync(`/proc/${pid}/task/${name}/schedstat`).split(" ");
      waitedMs += Number(waited) / 1e6;
    }
  } catch {
    // The process, or a thread of it, has ended.
  }
  return waitedMs;
}

/** Milliseconds that the first thread of a process had a processor. */
function workedMs(pid: number): number {
  try {
    return Number(Deno.readTextFileSync(`/proc/${pid}/schedstat`).split(" ")[0]) / 1e6;
  } catch {
    return 0;
  }
}

/** How late the timers of this process came, in all. */
class Lateness {
  totalMs = 0;
  #dueMs = performance.now() + TICK_MS;

  start(): void {
    setInterval(() => {
      const nowMs = performance.now();
      this.totalMs += Math.max(0, nowMs - this.#dueMs - TICK_MS);
      this.#dueMs = nowMs + TICK_MS;
    }, TICK_MS);
  }
}

const lateness = new Lateness();

/** Time that no program is to blame for, up to now. */
function excusedMs(pid: number): number {
  return Math.max(lateness.totalMs, waitedForProcessorMs(pid) + waitedForProcessorMs(Deno.pid));
}

async function stand({ socket, offsetBytes, lengthBytes }: Stand, pid: number): Promise<never> {
  const { client } = await NbdClient.open(socket);
  // A first write waits for a sync of the disk, which others of the machine may delay.
  for (let at = 0; at < lengthBytes; at += ROUND_BYTES) {
    await client.write(offsetBytes + at, new Uint8Array(ROUND_BYTES));
  }
  for (let round = 1;; round++) {
    const data = noise(ROUND_BYTES, round);
    const offset = offsetBytes + round * ROUND_BYTES % lengthBytes;
    const startMs = performance.now();
    const excusedBefore = excusedMs(pid);
    const workedBefore = workedMs(pid);
    await client.write(offset, data);
    const got = await client.read(offset, ROUND_BYTES);
    const wrong = data.findIndex((byte, i) => byte !== got[i]);
    if (wrong >= 0) throw new Error(`A well-behaved client got wrong data at ${offset + wrong}`);
    const tookMs = performance.now() - startMs;
    if (tookMs > LONGEST_MS) {
      const excused = excusedMs(pid) - excusedBefore;
      const text =
        `waited ${tookMs.toFixed(0)} ms at ${socket}, ${excused.toFixed(0)} ms of them ` +
        `for a processor, while tapdisk worked ${(workedMs(pid) - workedBefore).toFixed(0)} ms`;
      if (tookMs - excused > LONGEST_MS) throw new Error(`A well-behaved client ${text}`);
    }
    Deno.stdout.writeSync(Uint8Array.of(46));
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

/** The process of clients that behave. */
export class Bystanders {
  readonly #child: Deno.ChildProcess;
  readonly #ended: Promise<void>;
  #rounds = 0;
  #errors = "";
  #isOver = false;

  constructor(tapdiskPid: number, stands: readonly Stand[]) {
    const args = ["run", "-A", "--no-check", import.meta.url, JSON.stringify([tapdiskPid, stands])];
    this.#child = new Deno.Command(Deno.execPath(), {
      args,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#ended = Promise.all([this.#count(), this.#hear()]).then(() => {
      this.#isOver = true;
    });
  }

  /** Starts them, and waits until each has made rounds. */
  static async start(tapdiskPid: number, stands: readonly Stand[]): Promise<Bystanders> {
    const bystanders = new Bystanders(tapdiskPid, stands);
    await bystanders.goOn();
    return bystanders;
  }

  async #count(): Promise<void> {
    for await (const chunk of this.#child.stdout) this.#rounds += chunk.length;
  }

  async #hear(): Promise<void> {
    const text = this.#child.stderr.pipeThrough(new TextDecoderStream());
    for await (const chunk of text) this.#errors += chunk;
  }

  /** Throws when one of them was served wrongly, or had to wait. */
  check(): void {
    if (this.#isOver) throw new Error(`The well-behaved clients ended: ${this.#errors}`);
  }

  /** Waits for two more rounds. */
  async goOn(): Promise<void> {
    const goal = this.#rounds + 2;
    const areServed = (): boolean => this.#isOver || this.#rounds >= goal;
    await waitUntil(areServed, "well-behaved clients are served", 30_000);
    this.check();
  }

  async end(): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.#ended;
    await this.#child.status;
  }
}

async function main(): Promise<void> {
  const [pid, stands]: [number, Stand[]] = JSON.parse(Deno.args[0]);
  lateness.start();
  await Promise.all(stands.map((one) => stand(one, pid)));
}

if (import.meta.main) {
  await main().catch((error) => {
    console.error(error);
    Deno.exit(1);
  });
}
