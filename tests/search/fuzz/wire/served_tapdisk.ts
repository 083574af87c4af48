/**
 * A tapdisk of the sources in a process of its own, which lives over all cases of a worker.
 *
 * @module
 */
import assert from "node:assert/strict";
import { messageOf } from "../../../../ffi/errno.ts";
import { decodeResponse } from "../../../../src/control/protocol/answers.ts";
import {
  encodePlain,
  MESSAGE_BYTES,
  MessageType,
  messageType,
} from "../../../../src/control/protocol/message.ts";
import {
  encodeOpen,
  OPEN_DEFAULTS,
  type OpenRequest,
} from "../../../../src/control/protocol/open_request.ts";
import { commandLine } from "../../../support/control.ts";
import { openDescriptors, privateMemoryKib, waitUntil } from "../../../support/served.ts";

/** What the log says of a fault of the program. */
const FAULT = /\bfault\b|Uncaught|panicked/i;
/**
 * What the runtime's heap may add to the memory of a tapdisk from batch to batch. It grows for the first
 * 2500 disks that are opened, by up to 160 MiB, and then stays.
 */
const HEAP_KIB = 192 * 1024;
/** Batches after which the memory is taken that must not grow: compiled code, slots, the heap. */
const WARM_UP_BATCHES = 12;
/**
 * The most descriptors by which a batch can differ from another: four disks that are open have four
 * sockets each, images, a log, and a connection to a server or a bridge. What leaks is more soon.
 */
const DISKS_DESCRIPTORS = 40;

const PRINTED_CHARACTERS = 2000;

/** Sends bytes whole. */
export async function sendAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let sent = 0; sent < bytes.length;) sent += await connection.write(bytes.subarray(sent));
}

export class ServedTapdisk {
  readonly pid: number;
  readonly folder: string;
  readonly control: string;
  readonly #child: Deno.ChildProcess;
  #ended: Deno.CommandStatus | null = null;
  #printed = "";
  #logBytes = 0;
  #batches = 0;
  #descriptors = 0;
  #memoryKib = 0;

  private constructor(folder: string) {
    this.folder = folder;
    this.control = `${folder}/control`;
    const [program, ...args] = commandLine("tapdisk", "-D");
    this.#child = new Deno.Command(program, {
      args: [...args.slice(0, 1), "--no-check", ...args.slice(1)],
      env: {
        BLKTAP_CONTROL_DIR: this.control,
        BLKTAP_LOG_DIR: `${folder}/log`,
        BLKTAP_DEVICE: "none",
      },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.pid = this.#child.pid;
    this.#child.status.then((status) => this.#ended = status);
    void this.#hear();
  }

  /** Keeps the end of what it prints, which is its log too. */
  async #hear(): Promise<void> {
    for await (const text of this.#child.stderr.pipeThrough(new TextDecoderStream())) {
      this.#printed = (this.#printed + text).slice(-PRINTED_CHARACTERS);
    }
  }

  static async start(folder: string): Promise<ServedTapdisk> {
    Deno.mkdirSync(folder, { recursive: true });
    const tapdisk = new ServedTapdisk(folder);
    const isReady = (): boolean => tapdisk.#ended !== null || tapdisk.#logText(0).includes("Ready");
    await waitUntil(isReady, "tapdisk listens", 30_000);
    tapdisk.#checkAlive();
    return tapdisk;
  }

  get socket(): string {
    return `${this.control}/ctl${this.pid}`;
  }

  nbdSocket(minor: number): string {
    return `${this.control}/nbd${this.pid}.${minor}`;
  }

  /** Sends a control message; returns all that comes until the tapdisk closes the connection. */
  async ask(request: Uint8Array): Promise<Uint8Array> {
    const connection = await Deno.connect({ transport: "unix", path: this.socket });
    await sendAll(connection, request);
    return new Uint8Array(await new Response(connection.readable).arrayBuffer());
  }

  /** As `ask`; the answer must be of this type. */
  async order(request: Uint8Array, response: number): Promise<void> {
    const answer = await this.ask(request);
    assert.equal(answer.length, MESSAGE_BYTES);
    if (messageType(answer) === response) return;
    throw new Error(`The tapdisk refuses: ${decodeResponse(answer).message}`);
  }

  async attach(minor: number): Promise<void> {
    await this.order(encodePlain(MessageType.ATTACH, minor), MessageType.ATTACH_RSP);
  }

  /** Serves an image. */
  async serve(minor: number, image: string, options: Partial<OpenRequest> = {}): Promise<string> {
    // `tap-ctl allocate` makes this file; a tapdisk holds a lock on it.
    Deno.writeTextFileSync(`${this.control}/tapdisk/tapdisk-${minor}`, "");
    await this.attach(minor);
    const request = encodeOpen(minor, { ...OPEN_DEFAULTS, ...options, image });
    await this.order(request, MessageType.OPEN_RSP);
    return this.nbdSocket(minor);
  }

  #logText(from: number): string {
    const path = `${this.folder}/log/tapdisk.log`;
    try {
      using file = Deno.openSync(path);
      const bytes = new Uint8Array(Math.max(0, file.statSync().size - from));
      file.seekSync(from, Deno.SeekMode.Start);
      for (let done = 0; done < bytes.length;) done += file.readSync(bytes.subarray(done)) ?? 0;
      return new TextDecoder().decode(bytes);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return "";
      throw error;
    }
  }

  #checkAlive(): void {
    if (this.#ended === null) return;
    throw new Error(`tapdisk ended: ${JSON.stringify(this.#ended)}
${this.#printed}`);
  }

  /** Runs a batch; a finding is told with what the tapdisk logged last. */
  async telling<T>(batch: () => Promise<T>): Promise<T> {
    try {
      return await batch();
    } catch (error) {
      throw new Error(`${messageOf(error)}\nThe tapdisk's last words:\n${this.#printed}`, {
        cause: error,
      });
    }
  }

  /** After a batch: it lives, its log tells of no fault, and it has kept nothing. */
  async check(): Promise<void> {
    this.#checkAlive();
    const path = `${this.folder}/log/tapdisk.log`;
    const size = Deno.statSync(path).size;
    if (size > this.#logBytes) {
      const text = this.#logText(this.#logBytes);
      this.#logBytes = size;
      const line = text.split("\n").find((line) => FAULT.test(line));
      if (line !== undefined) throw new Error(`The log tells of a fault: ${line}`);
    }
    await this.#checkPlateau();
  }

  async #checkPlateau(): Promise<void> {
    this.#batches++;
    if (this.#batches < WARM_UP_BATCHES) return;
    if (this.#descriptors === 0) {
      this.#descriptors = openDescriptors(this.pid) + DISKS_DESCRIPTORS;
      this.#memoryKib = privateMemoryKib(this.pid) + HEAP_KIB;
    }
    const areClosed = (): boolean => openDescriptors(this.pid) <= this.#descriptors;
    await waitUntil(areClosed, `no more than ${this.#descriptors} descriptors are open`);
    const memoryKib = privateMemoryKib(this.pid);
    if (memoryKib <= this.#memoryKib) return;
    throw new Error(
      `tapdisk has ${memoryKib} KiB after ${this.#batches} batches; at most ` +
        `${this.#memoryKib} KiB are allowed`,
    );
  }

  /** Ends it. */
  async end(): Promise<void> {
    if (this.#ended === null) this.#child.kill("SIGKILL");
    await this.#child.status;
  }
}
