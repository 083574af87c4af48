import { errnoName } from "../../ffi/errno.ts";
import type { TracedOperation, TracedRequest, TraceSink } from "./collector.ts";
import { AT_IMAGE, kindName, stageName } from "./names.ts";
import { RECEIVING, TracedKind } from "./records.ts";

/** By kind, as blkparse has them: R, W, D for a discard, F for a flush; here also Z, S and I. */
const LETTERS: Readonly<Record<number, string>> = {
  [TracedKind.Read]: "R",
  [TracedKind.Write]: "W",
  [TracedKind.Flush]: "F",
  [TracedKind.Discard]: "D",
  [TracedKind.Zero]: "Z",
  [TracedKind.Status]: "S",
  [TracedKind.Fill]: "I",
};

/**
 * Writes a trace as lines in the manner of blkparse: minor, slot, number of the request, time in seconds
 * since the trace began, what happened, what the request does, its place. The lines of a request follow
 * each other; requests are in the order of their ends.
 */
export class TextLines implements TraceSink {
  readonly #minor: number;
  readonly #startMs: number;
  readonly #line: (line: string) => void;
  readonly #names = new Map<number, string>();
  /** By slot: the number of its last request. */
  readonly #numbers: number[] = [];

  constructor(
    { minor, startMs }: { minor: number; startMs: number },
    line: (line: string) => void,
  ) {
    this.#minor = minor;
    this.#startMs = startMs;
    this.#line = line;
  }

  /** The name of an image. */
  layer(layer: number, name: string): void {
    this.#names.set(layer, name);
  }

  request(request: TracedRequest): void {
    const { number, slot, kind, sector, count, startMs, endMs, errno, isUnfinished } = request;
    this.#numbers[slot] = number;
    const what = describe(kind, sector, count);
    const lines: [atMs: number, action: string, what: string][] = [[startMs, "Q", what]];
    for (const stage of request.stages) {
      const length = millis(stage.endMs - stage.startMs);
      const error = stage.errno === 0 ? "" : `, ${errnoName(stage.errno)}`;
      const action = stage.stage === RECEIVING ? "G" : stage.stage === AT_IMAGE ? "I" : "S";
      if (stage.stage === AT_IMAGE) {
        const at = describe(kind, sector + stage.doneSectors, count);
        lines.push([stage.startMs, "I", stage.errno === 0 ? what : `${at} [failed${error}]`]);
      } else {
        lines.push([stage.startMs, action, `${what} [${stageName(stage.stage)}, ${length} ms]`]);
      }
    }
    for (const operation of request.operations) lines.push(...this.#linesOf(operation));
    const failure = errno === 0 ? "" : `, ${errnoName(errno)}`;
    const end = isUnfinished ? "not ended" : `${millis(endMs - startMs)} ms${failure}`;
    lines.push([endMs, isUnfinished ? "U" : "C", `${what} [${end}]`]);
    // Equal times stay in this order, which is that of the stages.
    lines.sort(([a], [b]) => a - b);
    for (const [atMs, action, text] of lines) this.#print(slot, number, atMs, `${action} ${text}`);
  }

  #linesOf(operation: TracedOperation): [number, string, string][] {
    const { kind, sector, count, layer, submittedMs, endMs, errno } = operation;
    const name = this.#names.get(layer) ?? "an image that is not known";
    const place = `${describe(kind, sector, count)} [${name}`;
    const took = `${millis(endMs - submittedMs)} ms${errno === 0 ? "" : `, ${errnoName(errno)}`}`;
    return [[submittedMs, "D", `${place}]`], [endMs, "B", `${place}, ${took}]`]];
  }

  reply(slot: number, startMs: number, endMs: number): void {
    const took = `${millis(endMs - startMs)} ms`;
    this.#print(slot, this.#numbers[slot] ?? 0, endMs, `A [answered, ${took}]`);
  }

  operation(operation: TracedOperation): void {
    for (const [atMs, action, text] of this.#linesOf(operation)) {
      this.#print(null, 0, atMs, `${action} ${text}`);
    }
  }

  slotWait(startMs: number, endMs: number): void {
    const took = `${millis(endMs - startMs)} ms`;
    this.#print(null, 0, startMs, `S [clients wait for slots, ${took}]`);
  }

  #print(slot: number | null, number: number, atMs: number, text: string): void {
    const time = ((atMs - this.#startMs) / 1000).toFixed(9).padStart(14);
    const place = `${this.#minor}`.padStart(5);
    this.#line(
      `${place} ${`${slot ?? "-"}`.padStart(3)} ${`${number}`.padStart(8)} ${time} ${text}`,
    );
  }
}

function millis(ms: number): string {
  return ms.toFixed(3);
}

function describe(kind: number, sector: number, count: number): string {
  const letter = LETTERS[kind] ?? kindName(kind);
  return kind === TracedKind.Flush ? letter : `${letter} ${sector} + ${count}`;
}
