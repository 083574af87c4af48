/**
 * Hostile control messages to a tapdisk: all types, lengths and flags, texts without an end,
 * messages in parts, many connections. Beside them a disk is served, and files that no message may
 * change stay as they are.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../../../ffi/errno.ts";
import type { Random } from "../../../../src/testing/random.ts";
import {
  MESSAGE_BYTES,
  MessageType,
  messageType,
} from "../../../../src/control/protocol/message.ts";
import { createCbtLog } from "../../../../src/cbt/log_file.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { Bystanders } from "../wire/bystanders.ts";
import { anyBytes, hostileWord, mutated, pick } from "../wire/choose.ts";
import { sendAll, ServedTapdisk } from "../wire/served_tapdisk.ts";

const MIB = 1 << 20;
const CASES_OF_BATCH = 120;
const AT_ONCE = 6;
/** The minor of the disk that is served beside them: no message is about it, or only a question. */
const BYSTANDER = 0;
const VICTIMS = [1, 2, 3, 4];
const QUESTIONS: readonly number[] = [
  MessageType.PID,
  MessageType.LIST,
  MessageType.STATS,
  MessageType.DISK_INFO,
  MessageType.NODE,
  MessageType.WRITE_LOG,
];
const ORDERS: readonly number[] = [
  MessageType.ATTACH,
  MessageType.ATTACH,
  MessageType.ATTACH,
  MessageType.DETACH,
  MessageType.OPEN,
  MessageType.OPEN,
  MessageType.OPEN,
  MessageType.PAUSE,
  MessageType.RESUME,
  MessageType.CLOSE,
  MessageType.FORCE_SHUTDOWN,
  MessageType.SNAPSHOT,
  MessageType.LIMIT,
  MessageType.XENBLKIF_CONNECT,
  MessageType.XENBLKIF_DISCONNECT,
  MessageType.SERVE,
  MessageType.UNSERVE,
];
/** Flags that lengthen a message: a log's path, a key, limits. */
const ADD_LOG = 0x10;
const ENCRYPTED = 0x400;
const LIMITS = 0x100_0000;
/** Limits take so many bytes; the burst is behind six of 64 bits. */
const LIMITS_BYTES = 56;
const BURST_AT = 48;
const PATH_AT = 20;
const SECONDARY_AT = 282;
const TEXT_BYTES = 256;
const SNAPSHOTS = 6;
/** The most bytes of text behind a message that serves a disk over TCP. */
const MOST_SERVE_BYTES = 8192;

class ControlTarget implements Target {
  #tapdisk: ServedTapdisk | null = null;
  #bystanders: Bystanders | null = null;
  #server: Deno.Listener | null = null;
  #folder = "";
  #canary = "";
  #images: readonly string[] = [];
  /** Paths of logs of changed blocks: good ones, and others. */
  #logs: readonly string[] = [];

  async setUp({ folder }: SearchContext): Promise<void> {
    const tapdisk = await ServedTapdisk.start(`${folder}/c`);
    this.#tapdisk = tapdisk;
    this.#folder = `${tapdisk.folder}/images`;
    Deno.mkdirSync(`${this.#folder}/snapshots`, { recursive: true });
    const path = (name: string): string => `${this.#folder}/${name}`;
    for (const name of ["bystander.vhd", "a.vhd", "canary.vhd"]) {
      createDynamic(path(name), { sizeBytes: 16 * MIB });
    }
    Deno.writeFileSync(path("a.raw"), new Uint8Array(MIB));
    createCbtLog(path("a.cbtlog"), { sizeBytes: 16 * MIB });
    createCbtLog(path("raw.cbtlog"), { sizeBytes: MIB });
    this.#logs = ["a.cbtlog", "raw.cbtlog", "a.vhd", "canary.vhd", "none", "snapshots"].map(path);
    this.#canary = this.#digest();
    for (const minor of VICTIMS) {
      Deno.writeTextFileSync(`${tapdisk.control}/tapdisk/tapdisk-${minor}`, "");
    }
    const image = `vhd:${path("bystander.vhd")}`;
    const socket = await tapdisk.serve(BYSTANDER, image, { direct: false });
    const stand = { socket, offsetBytes: 0, lengthBytes: 12 * MIB };
    this.#bystanders = await Bystanders.start(tapdisk.pid, [stand]);
    this.#listen(path("n.sock"));
    this.#images = [
      `vhd:${path("a.vhd")}`,
      `aio:${path("a.raw")}`,
      `log:bc:1:vhd:${path("a.vhd")}`,
      `bc:1:ram:4`,
      `nbd:unix:${path("n.sock")}`,
      `nbd:unix:${path("none.sock")}:x`,
      `valve:${path("n.sock")}:ram:4`,
      `valve:${path("none.sock")}:vhd:${path("a.vhd")}`,
      `nbd:127.0.0.1:1`,
      `vhd:${path("none.vhd")}`,
      `vhd:${path("a.raw")}`,
      `aio:${this.#folder}`,
      "aio:/dev/null",
      "vhd:",
      ":",
      "vhd",
      "log:log:log:vhd:x",
      "nbd:",
      "ram:0",
      "ram:x",
      "qcow2:/none",
      "\u{1F600}:/x",
    ];
  }

  /** A server of an `nbd:` image that hangs up, or sends what no server sends. */
  #listen(path: string): void {
    const server = Deno.listen({ transport: "unix", path });
    this.#server = server;
    void (async () => {
      let count = 0;
      for await (const connection of server) {
        const noise = new Uint8Array(++count % 3 === 0 ? 0 : 40).fill(count);
        connection.write(noise).catch(() => {}).finally(() => connection.close());
      }
    })();
  }

  /** What the files hold that no message may change. */
  #digest(): string {
    return ["canary.vhd"].map((name) => {
      const { size, mtime, ino, mode } = Deno.statSync(`${this.#folder}/${name}`);
      return [name, size, mtime?.getTime(), ino, mode].join();
    }).join(";");
  }

  async run(random: Random, context: SearchContext): Promise<number> {
    const tapdisk = this.#tapdisk;
    if (tapdisk === null) throw new TypeError("There is no tapdisk");
    return await tapdisk.telling(async () => {
      for (let done = 0; done < CASES_OF_BATCH; done += AT_ONCE) {
        const asked = Array.from({ length: AT_ONCE }, () => this.#case(random, tapdisk, context));
        await Promise.all(asked);
      }
      this.#bystanders?.check();
      assert.equal(this.#digest(), this.#canary, "a file that no message may change");
      for (const { name } of Deno.readDirSync(`${this.#folder}/snapshots`)) {
        Deno.removeSync(`${this.#folder}/snapshots/${name}`);
      }
      await tapdisk.check();
      return CASES_OF_BATCH;
    });
  }

  async #case(random: Random, tapdisk: ServedTapdisk, context: SearchContext): Promise<void> {
    const request = this.#request(random);
    const type = messageType(request);
    const cookie = request[2] | request[3] << 8;
    context.trace(`message ${type} of minor ${cookie}, ${request.length} bytes`);
    const dice = random.below(20);
    if (dice === 0) return await this.#broken(random, tapdisk, request);
    const connection = await Deno.connect({ transport: "unix", path: tapdisk.socket });
    const cut = dice < 4 ? random.below(request.length) : 0;
    await sendAll(connection, request.subarray(0, cut));
    await sendAll(connection, request.subarray(cut)).catch(() => {});
    const answer = new Uint8Array(
      await new Response(connection.readable).arrayBuffer().catch(() => new ArrayBuffer(0)),
    );
    checkAnswer(type, answer);
    if (hasEndlessText(request)) checkRefusal(answer);
  }

  /** A peer that leaves within its message, or before it has the answer. */
  async #broken(random: Random, { socket }: ServedTapdisk, request: Uint8Array): Promise<void> {
    const connection = await Deno.connect({ transport: "unix", path: socket });
    const length = random.chance(0.5) ? request.length : random.below(request.length);
    await sendAll(connection, request.subarray(0, length)).catch(() => {});
    connection.close();
  }

  /** A message, and behind it what its flags announce. */
  #request(random: Random): Uint8Array<ArrayBuffer> {
    let message = new Uint8Array(MESSAGE_BYTES);
    const view = new DataView(message.buffer);
    let type = random.chance(0.35) ? pick(random, QUESTIONS) : pick(random, ORDERS);
    if (random.chance(0.05)) type = hostileWord(random, [0x200, 64, 67]) & 0xffff;
    view.setUint16(0, type, true);
    view.setUint16(
      2,
      random.chance(0.9) ? pick(random, VICTIMS) : pick(random, [5, 16383, 16384, 0xffff]),
      true,
    );
    if (type === MessageType.PAUSE) view.setUint32(8, pick(random, [0, 1, 50, 0xffff_ffff]), true);
    else view.setUint32(8, this.#flags(random), true);
    view.setUint32(12, hostileWord(random, [4]), true);
    view.setInt32(276, hostileWord(random), true);
    view.setUint16(280, pick(random, [0, 0, 1, 0xffff]), true);
    putText(random, message, PATH_AT, this.#path(random, type));
    if (random.chance(0.1)) putText(random, message, SECONDARY_AT, pick(random, this.#images));
    if (random.chance(0.1)) message = this.#mutated(random, message);
    if (random.chance(0.05)) message.fill(random.bits(), random.below(200) + 4);
    this.#spare(random, message);
    const flags = new DataView(message.buffer).getUint32(8, true);
    return withTrailer(random, message, { flags, logs: this.#logs });
  }

  #flags(random: Random): number {
    if (random.chance(0.6)) return pick(random, [0, 0, 1, 0x200]);
    if (random.chance(0.3)) {
      return pick(random, [ADD_LOG, ENCRYPTED, LIMITS, ADD_LOG | ENCRYPTED | LIMITS]);
    }
    return hostileWord(random);
  }

  #path(random: Random, type: number): string {
    if (type === MessageType.RESUME && random.chance(0.6)) return "";
    if (type !== MessageType.SNAPSHOT) {
      return random.chance(0.05)
        ? `vhd:${"x".repeat(random.below(250))}`
        : pick(random, this.#images);
    }
    if (random.chance(0.2)) return `${this.#folder}/canary.vhd`;
    return pick(random, [
      `${this.#folder}/snapshots/${random.below(SNAPSHOTS)}.vhd`,
      "relative",
      "/",
    ]);
  }

  #mutated(random: Random, message: Uint8Array): Uint8Array<ArrayBuffer> {
    const changed = new Uint8Array(MESSAGE_BYTES);
    changed.set(mutated(random, message).subarray(0, MESSAGE_BYTES));
    return changed;
  }

  /** The disk beside them is asked at most. The canary is no image of a message. */
  #spare(random: Random, message: Uint8Array<ArrayBuffer>): void {
    const view = new DataView(message.buffer);
    const isQuestion = QUESTIONS.includes(view.getUint16(0, true));
    if (view.getUint16(2, true) === BYSTANDER && !isQuestion) {
      view.setUint16(2, pick(random, VICTIMS), true);
    }
  }

  async tearDown(): Promise<void> {
    this.#server?.close();
    await this.#bystanders?.end();
    await this.#tapdisk?.end();
  }
}

/** Writes a text to its field; at times one that fills it without an end. */
function putText(random: Random, message: Uint8Array, at: number, text: string): void {
  const bytes = new TextEncoder().encode(text).subarray(0, TEXT_BYTES);
  const isEndless = random.chance(0.06);
  if (isEndless) message.fill(0x61, at, at + TEXT_BYTES);
  message.set(bytes, at);
}

/** A message with the bytes behind it that its flags announce, or with other ones. */
function withTrailer(
  random: Random,
  message: Uint8Array,
  { flags, logs }: { flags: number; logs: readonly string[] },
): Uint8Array<ArrayBuffer> {
  const type = messageType(message);
  const parts: number[] = [];
  if (type === MessageType.SERVE || type === MessageType.UNSERVE) {
    const text = serveText(random);
    const length = random.chance(0.9) ? text.length : hostileWord(random) >>> 0;
    new DataView(message.buffer, message.byteOffset).setUint32(8, length, true);
    const body = new Uint8Array(length > MOST_SERVE_BYTES ? 0 : length);
    body.set(text.subarray(0, body.length));
    parts.push(...body);
  }
  const hasTrailer = type === MessageType.OPEN || type === MessageType.RESUME;
  if (hasTrailer && (flags & ADD_LOG) !== 0) {
    const log = random.chance(0.3) ? anyBytes(random, TEXT_BYTES) : new Uint8Array(TEXT_BYTES);
    if (random.chance(0.8)) putText(random, log, 0, pick(random, logs));
    parts.push(...log);
  }
  if (type === MessageType.OPEN && (flags & LIMITS) !== 0) {
    const limits = random.chance(0.3)
      ? anyBytes(random, LIMITS_BYTES)
      : new Uint8Array(LIMITS_BYTES);
    if (random.chance(0.8)) limits.set([random.below(256), random.below(256)], BURST_AT);
    parts.push(...limits);
  }
  if (type === MessageType.OPEN && (flags & ENCRYPTED) !== 0) {
    const length = pick(random, [0, 1, 32, 64, 255]);
    parts.push(length, ...anyBytes(random, length));
  }
  if (random.chance(0.02)) parts.push(...anyBytes(random, 1 + random.below(600)));
  return Uint8Array.from([...message, ...parts]);
}

/** What is behind a message that serves a disk over TCP, or ends that: JSON, good and bad. */
function serveText(random: Random): Uint8Array {
  const tls = { mode: "off", certificates: null, psk: null, verifyPeer: false };
  const value = {
    addresses: pick<unknown>(random, [["127.0.0.1"], ["127.0.0.1", "::1"], ["nowhere"], [7], "x"]),
    port: pick(random, [0, 0, 0, 0, 65_536, -1, "80"]),
    name: pick(random, ["", "a", "b", "x".repeat(5000), null]),
    at: pick(random, ["*:1", 5, undefined]),
    tls: pick<unknown>(random, [tls, tls, { ...tls, mode: "require", psk: "/none" }, {}, null]),
    maxClients: pick(random, [1, 5, 512, 0, 1e9, 1.5]),
    maxClientsPerAddress: pick(random, [1, 5, 512, "1"]),
  };
  const text = new TextEncoder().encode(JSON.stringify(value));
  return random.chance(0.2) ? mutated(random, text) : text;
}

/** Whether a path of an order fills its field without an end. */
function hasEndlessText(request: Uint8Array): boolean {
  const type = messageType(request);
  const hasParams = type === MessageType.OPEN || type === MessageType.RESUME ||
    type === MessageType.SNAPSHOT;
  return hasParams &&
    [PATH_AT, SECONDARY_AT].some((at) => !request.subarray(at, at + TEXT_BYTES).includes(0));
}

/** The refusal of a text without an end, unless the order failed before it was read. */
function checkRefusal(answer: Uint8Array): void {
  if (answer.length === 0) return;
  assert.equal(messageType(answer), MessageType.ERROR, "a path without an end is accepted");
  const errno = new DataView(answer.buffer, answer.byteOffset).getInt32(8, true);
  const text = new TextDecoder().decode(answer.subarray(12, answer.indexOf(0, 12)));
  const isEarlier = errno === Errno.ENODEV || errno === Errno.ECANCELED ||
    text.includes("encryption key");
  assert.ok(isEarlier || text.includes("no end"), `a path without an end: ${text}`);
}

/** An answer is one message or a list, of the type that belongs to the question, or an error. */
function checkAnswer(type: number, answer: Uint8Array): void {
  if (answer.length === 0) return;
  assert.ok(answer.length >= MESSAGE_BYTES, `${answer.length} bytes answer message ${type}`);
  const view = new DataView(answer.buffer, answer.byteOffset, answer.byteLength);
  const got = messageType(answer);
  if (got === MessageType.ERROR) {
    const errno = view.getInt32(8, true);
    const end = answer.indexOf(0, 12);
    assert.ok(errno > 0 && errno < 4096, `error ${errno} answers message ${type}`);
    assert.ok(end > 12 && end < 12 + TEXT_BYTES, `the error of message ${type} has no text`);
    assert.equal(answer.length, MESSAGE_BYTES);
    return;
  }
  const isForced = type === MessageType.FORCE_SHUTDOWN;
  assert.equal(got, isForced ? MessageType.CLOSE_RSP : type + 1, `the answer to message ${type}`);
}

export const target: Target = new ControlTarget();
