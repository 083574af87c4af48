/**
 * A process that runs every n-th seed of a search, and reports in lines of JSON.
 *
 * @module
 */
import { SEARCHES } from "./registry.ts";
import type { SearchContext } from "./search.ts";

/** What a worker is to do. */
export interface WorkerTask {
  readonly search: string;
  readonly firstSeed: number;
  readonly seedStep: number;
  /** The worker ends when it has searched so many units; null for no limit. */
  readonly units: number | null;
  /** The worker ends after so many milliseconds; null for no limit. */
  readonly milliseconds: number | null;
  readonly only: string | null;
  readonly tracing: boolean;
}

/** A line from a worker. */
export type WorkerReport =
  | { readonly kind: "seed"; readonly seed: number }
  | {
    readonly kind: "progress";
    readonly units: number;
    readonly residentBytes: number;
    readonly counts: Readonly<Record<string, number>>;
  }
  | { readonly kind: "failure"; readonly seed: number; readonly reason: string }
  | { readonly kind: "trace"; readonly line: string };

function report(line: WorkerReport): void {
  const bytes = new TextEncoder().encode(`${JSON.stringify(line)}\n`);
  for (let done = 0; done < bytes.length;) {
    done += Deno.stdout.writeSync(bytes.subarray(done));
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  return (error.stack ?? error.message) +
    (cause === undefined ? "" : `\ncaused by: ${reasonOf(cause)}`);
}

/** A folder in memory, if there is one: a slow disk must not look like a slow program. */
function memoryFolder(): string | undefined {
  try {
    return Deno.statSync("/dev/shm").isDirectory ? "/dev/shm" : undefined;
  } catch {
    return undefined;
  }
}

/** Runs the seeds of a task; returns whether nothing was found. */
export async function work(task: WorkerTask): Promise<boolean> {
  const load = SEARCHES[task.search];
  if (load === undefined) throw new TypeError(`There is no search ${task.search}`);
  const search = await load();
  const counts: Record<string, number> = {};
  const folder = Deno.makeTempDirSync({
    dir: memoryFolder(),
    prefix: `blktap-search-${task.search}-`,
  });
  const context: SearchContext = {
    tracing: task.tracing,
    only: task.only,
    folder,
    trace: (line) => {
      if (task.tracing) report({ kind: "trace", line });
    },
    count: (what, increment = 1) => {
      counts[what] = (counts[what] ?? 0) + increment;
    },
  };
  const endMs = task.milliseconds === null ? Infinity : performance.now() + task.milliseconds;
  let seed = task.firstSeed;
  try {
    report({ kind: "seed", seed });
    await search.setUp?.(context);
    for (let units = 0; units < (task.units ?? Infinity); seed += task.seedStep) {
      if (performance.now() >= endMs) break;
      report({ kind: "seed", seed });
      units += await search.run(seed, context);
      const { rss: residentBytes } = Deno.memoryUsage();
      report({ kind: "progress", units, residentBytes, counts });
      if (task.tracing) break;
    }
    return true;
  } catch (error) {
    report({ kind: "failure", seed, reason: reasonOf(error) });
    return false;
  } finally {
    await search.tearDown?.(context);
    Deno.removeSync(folder, { recursive: true });
  }
}

if (import.meta.main) Deno.exit(await work(JSON.parse(Deno.args[0])) ? 0 : 1);
