/**
 * The client's side of the control socket, which is all that tap-ctl does, against a tapdisk that
 * lies. Each call ends in time: with a result that makes sense, or with an error that has a number and
 * a text.
 *
 * @module
 */
import assert from "node:assert/strict";
import { errnoOf, SystemError } from "../../../../ffi/errno.ts";
import {
  attachDevice,
  closeImage,
  detachDevice,
  openImage,
  pauseDevice,
  resumeDevice,
  snapshotDevice,
} from "../../../../src/control/client/client.ts";
import { deviceLog } from "../../../../src/control/client/device_log.ts";
import { inventory, withLimits, withNodes } from "../../../../src/control/client/inventory.ts";
import {
  askNode,
  askPid,
  deviceStatistics,
  limitDevice,
} from "../../../../src/control/client/questions.ts";
import { encodeListEntry } from "../../../../src/control/protocol/list.ts";
import { MESSAGE_BYTES, MessageType } from "../../../../src/control/protocol/message.ts";
import { OPEN_DEFAULTS } from "../../../../src/control/protocol/open_request.ts";
import type { Random } from "../../../../src/testing/random.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { anyBytes, hostileLong, hostileWord, mutated, pick } from "../wire/choose.ts";
import { LyingTapdisk, type Plan } from "../wire/lying_tapdisk.ts";

const CALLS_OF_BATCH = 100;
/** The longest time limit of a call is that of `inventory`, 3 s; a slow machine needs some more. */
const MOST_MS = 15_000;
const LIMIT = { timeoutMs: 20 };
const pid = Deno.pid;
const device = { pid, minor: 3 };

/** A call, and the type of the answer that it waits for. */
interface Call {
  readonly name: string;
  readonly response: number;
  /** Whether a peer that stays silent keeps it for longer than a case may take. */
  readonly isPatient: boolean;
  readonly run: () => unknown;
}

const snapshot = { path: "/x", rename: false, timeoutSeconds: 0 };
const CALLS: readonly Call[] = [
  ["pid", MessageType.PID_RSP, true, () => askPid(pid)],
  ["node", MessageType.NODE_RSP, true, () => askNode(device)],
  ["limit", MessageType.LIMIT_RSP, true, () => limitDevice(device, { readIops: 5 })],
  ["stats", MessageType.STATS_RSP, true, () => deviceStatistics(device)],
  ["log", MessageType.WRITE_LOG_RSP, true, () => deviceLog(device)],
  ["attach", MessageType.ATTACH_RSP, true, () => attachDevice(device)],
  ["detach", MessageType.DETACH_RSP, false, () => detachDevice(device, LIMIT)],
  [
    "open",
    MessageType.OPEN_RSP,
    true,
    () => openImage(device, { ...OPEN_DEFAULTS, image: "vhd:/x" }),
  ],
  [
    "open",
    MessageType.OPEN_RSP,
    true,
    () => openImage(device, { ...OPEN_DEFAULTS, image: "vhd:/x", changedBlocks: "/x.cbtlog" }),
  ],
  ["close", MessageType.CLOSE_RSP, false, () => closeImage(device, LIMIT)],
  ["pause", MessageType.PAUSE_RSP, true, () => pauseDevice(device, LIMIT)],
  ["snapshot", MessageType.SNAPSHOT_RSP, true, () => snapshotDevice(device, snapshot)],
  ["unpause", MessageType.RESUME_RSP, true, () => resumeDevice(device, { image: null })],
  ...[null, "/x.cbtlog"].map((changedBlocks) => [
    "unpause",
    MessageType.RESUME_RSP,
    true,
    () => resumeDevice(device, { image: null, changedBlocks }),
  ]),
  ["list", MessageType.LIST_RSP, true, () => withLimits(withNodes(inventory()))],
].map(([name, response, isPatient, run]) => ({ name, response, isPatient, run }) as Call);

class TapCtlTarget implements Target {
  #tapdisk: LyingTapdisk | null = null;
  #control = "";

  async setUp({ folder }: SearchContext): Promise<void> {
    this.#control = `${folder}/t`;
    Deno.mkdirSync(`${this.#control}/tapdisk`, { recursive: true });
    this.#tapdisk = await LyingTapdisk.start(`${this.#control}/ctl${pid}`);
  }

  run(random: Random, context: SearchContext): number {
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", this.#control);
    try {
      for (let i = 0; i < CALLS_OF_BATCH; i++) this.#call(random, context);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    }
    return CALLS_OF_BATCH;
  }

  #call(random: Random, context: SearchContext): void {
    const call = pick(random, CALLS);
    const plans = Array.from({ length: 4 }, () => planFor(random, call));
    const [{ answer, times, stays }] = plans;
    context.trace(
      `${call.name}: ${answer.length} bytes, ${times} times, ${stays ? "stays" : "ends"}`,
    );
    this.#tapdisk?.tell(plans);
    const startMs = performance.now();
    try {
      checkResult(call, call.run());
    } catch (error) {
      checkError(call, error);
    }
    const tookMs = performance.now() - startMs;
    assert.ok(tookMs < MOST_MS, `${call.name} took ${tookMs} ms`);
  }

  tearDown(): void {
    this.#tapdisk?.end();
  }
}

function planFor(random: Random, call: Call): Plan {
  const answer = answerTo(random, call);
  // An answer that is not whole ends with its connection, or the call waits for the rest.
  const mayStay = !call.isPatient && random.chance(0.2);
  return {
    read: random.chance(0.9) ? MESSAGE_BYTES : 0,
    answer,
    times: random.chance(0.1) ? random.below(4) : random.chance(0.02) ? 3000 : 1,
    stays: mayStay,
  };
}

function answerTo(random: Random, { response }: Call): Uint8Array<ArrayBuffer> {
  if (random.chance(0.05)) return anyBytes(random, random.below(1200));
  const isList = response === MessageType.LIST_RSP;
  let message = isList ? listOf(random) : new Uint8Array(MESSAGE_BYTES);
  const view = new DataView(message.buffer);
  if (!isList) {
    const types = [response, response, response, MessageType.ERROR, hostileWord(random) & 0xffff];
    view.setUint16(0, pick(random, types), true);
    view.setUint16(2, 3, true);
    if (random.chance(0.5)) message.set(anyBytes(random, 12), 8);
    if (view.getUint16(0, true) === MessageType.ERROR) {
      view.setInt32(
        8,
        pick(random, [0, 1, 22, 255, 256, 512, -22, -0x8000_0000, 0x7fff_ffff]),
        true,
      );
    }
    if (random.chance(0.2)) message.fill(pick(random, [0x61, 0x1b, 0xff]), 12);
    view.setBigUint64(16, hostileLong(random, [4100, 8200, 1 << 20]), true);
  }
  if (random.chance(0.2)) message = mutated(random, message);
  const behind = random.chance(0.5) ? anyBytes(random, pick(random, [0, 1, 4100, 8200, 9000])) : [];
  return Uint8Array.from([...message, ...behind]);
}

function listOf(random: Random): Uint8Array<ArrayBuffer> {
  const count = random.below(5);
  const parts: number[] = [];
  for (let i = 0; i <= count; i++) {
    const isHostile = random.chance(0.3);
    parts.push(...encodeListEntry(0, {
      count: isHostile ? hostileWord(random) | 0 : count - i,
      minor: isHostile ? hostileWord(random) | 0 : i,
      state: isHostile ? hostileWord(random) | 0 : 0,
      path: pick(random, ["vhd:/x", "", ":", "no type", "\u001b[2J\n:x", "vhd:/é"]),
    }));
  }
  return Uint8Array.from(parts);
}

function checkError({ name }: Call, error: unknown): void {
  if (!(error instanceof SystemError)) throw new Error(`${name} throws ${error}`, { cause: error });
  const status = errnoOf(error);
  assert.ok(
    status > 0 && status < 256,
    `${name} ends with exit status ${status}: ${error.message}`,
  );
  assert.ok(error.message.length > 0 && error.message.length < 2000, name);
}

function checkResult({ name }: Call, result: unknown): void {
  if (name === "stats") assert.ok(typeof result === "string" && result.length < 1 << 26);
  if (name === "pid") {
    assert.ok(typeof result === "number" && result > 0, `the process is ${result}`);
  }
  if (name === "log") checkLog(result as ReturnType<typeof deviceLog>);
  if (name !== "list") return;
  for (const { minor, state } of result as ReturnType<typeof inventory>) {
    assert.ok(minor === null || (minor >= 0 && minor < 16384), `minor ${minor} is listed`);
    assert.ok(state === null || state >= 0, `state ${state} is listed`);
  }
}

function checkLog({ sectors, runs }: ReturnType<typeof deviceLog>): void {
  let at = 0;
  for (const [first, count] of runs) {
    assert.ok(
      first >= at && count > 0 && first + count <= sectors,
      `run ${first}+${count} of ${sectors}`,
    );
    at = first + count;
  }
}

export const target: Target = new TapCtlTarget();
