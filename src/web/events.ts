import { failedRequests } from "../observe/rates.ts";
import type { DiskSample } from "../observe/sample.ts";
import type { WatchedDisk } from "./watched.ts";

/** Something that happened to a disk, found by comparing two samples. */
export interface DiskEvent {
  /** When it was seen, milliseconds since 1970. */
  readonly timeMs: number;
  /** `pid.minor`. */
  readonly key: string;
  /** The image's path at that time; empty without one. */
  readonly path: string;
  readonly isProblem: boolean;
  /** What happened, for people. */
  readonly text: string;
}

type Told = Pick<DiskEvent, "isProblem" | "text">;

function told(text: string, isProblem = false): Told {
  return { text, isProblem };
}

const STATE_TEXTS: Readonly<Record<WatchedDisk["state"], Told>> = {
  empty: told("has no image"),
  running: told("runs"),
  retrying: told("requests failed, and are tried again", true),
  hanging: told("does not get answers from its storage", true),
  pausing: told("is being paused"),
  paused: told("is paused"),
  closing: told("is being closed"),
  closed: told("its image is closed"),
  failed: told("was ended by a fault", true),
  "no answer": told("its tapdisk does not answer", true),
};

/** What became of a chain: a snapshot puts an image on top, a coalesce takes images away. */
function chainChange(before: DiskSample, after: DiskSample): Told | null {
  const [old, now] = [before, after].map(({ chain }) => chain.map(({ path }) => path));
  // While a disk is paused, it has no images open.
  if (old.length === 0 || now.length === 0) return null;
  if (old.length === now.length && old.every((path, index) => path === now[index])) return null;
  if (now.length === old.length + 1) {
    return told(`a snapshot was made: ${now[1]} keeps the data, ${now[0]} takes all writes`);
  }
  return told(`its chain has ${now.length} images, ${old.length} before; ${now[0]} is on top`);
}

function changesOf(before: WatchedDisk, after: WatchedDisk): Told[] {
  const found: Told[] = [];
  if (before.state !== after.state) found.push(STATE_TEXTS[after.state]);
  const chain = chainChange(before.sample, after.sample);
  if (chain !== null) found.push(chain);
  const failed = failedRequests(after.sample) - failedRequests(before.sample);
  if (failed > 0) found.push(told(`${failed} request${failed === 1 ? "" : "s"} failed`, true));
  return found;
}

/** What happened between two samples, the first first. */
export function eventsBetween(
  before: ReadonlyMap<string, WatchedDisk>,
  after: ReadonlyMap<string, WatchedDisk>,
  timeMs: number,
): DiskEvent[] {
  const events: DiskEvent[] = [];
  const add = ({ key, sample: { path } }: WatchedDisk, what: Told): void => {
    events.push({ timeMs, key, path, ...what });
  };
  for (const [key, disk] of after) {
    const old = before.get(key);
    if (old === undefined) add(disk, told("is served"));
    else for (const change of changesOf(old, disk)) add(disk, change);
  }
  for (const [key, disk] of before) if (!after.has(key)) add(disk, told("is not served any more"));
  return events;
}
