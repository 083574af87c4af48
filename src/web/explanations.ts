import type { DeviceAddress } from "../control/client/client.ts";
import { askPatiently } from "../control/client/survey.ts";
import { decodeFacts, explainedLength, type ToldFacts } from "../control/protocol/explain.ts";
import { encodePlain, MessageType } from "../control/protocol/message.ts";
import { type Finding, findings, healthFinding, roomWanted } from "../observe/findings.ts";
import { Rooms } from "../observe/rooms.ts";
import { keyOf } from "./watched.ts";

/** How long a tapdisk may take to answer. */
const TIMEOUT_MS = 800;
/** Two looks that are further apart say nothing of what a disk does now, and those that are closer too little. */
const KEPT_MS = 10_000;
const SHORTEST_MS = 500;

/** A look at a disk that waited for nothing. */
interface Look {
  readonly atMs: number;
  readonly facts: ToldFacts;
  /** What came of it. */
  readonly found: Finding[];
}

async function askFacts({ pid, minor }: DeviceAddress): Promise<ToldFacts> {
  const [outcome] = await askPatiently([{
    pid,
    request: encodePlain(MessageType.EXPLAIN, minor),
    response: MessageType.EXPLAIN_RSP,
    what: `Cannot explain minor ${minor} of tapdisk ${pid}`,
    length: explainedLength,
    takeText: decodeFacts,
  }], { timeoutMs: TIMEOUT_MS, atOnce: 1 });
  if ("error" in outcome) throw outcome.error;
  return outcome.answer;
}

/** What disks wait for, in the sentences of `tap-ctl explain`. */
export class Explanations {
  readonly #ask: (device: DeviceAddress) => Promise<ToldFacts>;
  readonly #rooms: Rooms;
  readonly #nowMs: () => number;
  readonly #before = new Map<string, Look>();

  constructor({ ask = askFacts, rooms = new Rooms(), nowMs = () => performance.now() }: {
    ask?: (device: DeviceAddress) => Promise<ToldFacts>;
    rooms?: Rooms;
    nowMs?: () => number;
  } = {}) {
    this.#ask = ask;
    this.#rooms = rooms;
    this.#nowMs = nowMs;
  }

  /** A line for each finding. Throws `SystemError`, `TapdiskError`: a tapdisk of before does not know the question. */
  async of(device: DeviceAddress): Promise<readonly string[]> {
    const facts = await this.#ask(device);
    const file = roomWanted(facts);
    const found = findings(facts, file === null ? null : await this.#rooms.of(file));
    return (found.length > 0 ? found : this.#healthOf(device, facts)).map(lineOf);
  }

  #healthOf(device: DeviceAddress, facts: ToldFacts): Finding[] {
    const atMs = this.#nowMs();
    for (const [key, { atMs: thenMs }] of this.#before) {
      if (atMs - thenMs > KEPT_MS) this.#before.delete(key);
    }
    const before = this.#before.get(keyOf(device));
    if (before !== undefined && atMs - before.atMs < SHORTEST_MS) return before.found;
    const found = before === undefined
      ? []
      : [healthFinding(before.facts, facts, atMs - before.atMs)];
    this.#before.set(keyOf(device), { atMs, facts, found });
    return found;
  }
}

function lineOf({ says, advice }: Finding): string {
  return advice === "" ? says : `${says} ${advice}`;
}
