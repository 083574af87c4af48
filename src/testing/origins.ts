import type { DiskQueue } from "../queue/disk_queue.ts";

/** Frames of these folders only pass operations on. */
const PASSED_ON = /^src\/(?:testing|queue|files)\//;
const FRAMES = 40;
const FRAMES_SHOWN = 3;

/**
 * The code that asks for an operation: file, line and function of the product code, and of its
 * callers.
 */
export function originOfCall(): string {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = FRAMES;
  const stack = new Error().stack ?? "";
  Error.stackTraceLimit = limit;
  const frames: string[] = [];
  for (const line of stack.split("\n").slice(1)) {
    const found = /^\s+at (?:(.*) \()?file:.*?\/((?:src|tests)\/.*?:\d+):\d+\)?$/.exec(line);
    if (found === null || PASSED_ON.test(found[2])) continue;
    const name = (found[1] ?? "").replace(/^.*[. ]/, "");
    frames.push(name === "" || name === "<anonymous>" ? found[2] : `${found[2]} ${name}`);
    if (frames.length === FRAMES_SHOWN) break;
  }
  return frames.join(" < ");
}

/** The origins of the operations that a queue gathers until the end of the turn. */
export class QueueOrigins {
  readonly #origins = new Map<string, string>();

  note(kind: number, file: number, sector: number): void {
    this.#origins.set(`${kind} ${file} ${sector}`, originOfCall());
  }

  /** Takes the origin of an operation that begins at `sector`; of merged ones, that of the first. */
  take(kind: number, file: number, sector: number): string | null {
    const key = `${kind} ${file} ${sector}`;
    const origin = this.#origins.get(key) ?? null;
    this.#origins.delete(key);
    return origin;
  }
}

/**
 * Notes who calls a queue, which hands operations to the disk only at the end of the turn, when the
 * callers are gone.
 */
export function noteOrigins(queue: DiskQueue, origins: QueueOrigins): void {
  const { read, write, sync } = queue;
  queue.read = (file, sector, count, memorySector, owner, token): void => {
    origins.note(0, file, sector);
    read.call(queue, file, sector, count, memorySector, owner, token);
  };
  queue.write = (file, sector, count, memorySector, owner, token): void => {
    origins.note(1, file, sector);
    write.call(queue, file, sector, count, memorySector, owner, token);
  };
  queue.sync = (file, owner, token): void => {
    origins.note(2, file, 0);
    sync.call(queue, file, owner, token);
  };
}
