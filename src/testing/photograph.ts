import type { DiskState } from "./disk_state.ts";
import type { Random } from "./random.ts";
import { randomCut, type SimulatedFile } from "./simulated_file.ts";
import { Survival } from "./survival.ts";
import { type Change, type Cut, type Kept, lengthChanges, type Segment } from "./unflushed.ts";

/** An operation of the queue that has not ended. */
export interface OperationInFlight {
  readonly file: SimulatedFile;
  /** Null for a sync. */
  readonly write: { readonly offsetBytes: number; readonly segments: readonly Segment[] } | null;
}

/** A change that a power cut at this moment may undo. */
export interface UndecidedChange {
  /**
   * "names": a change of names. "length": the length of a file becomes `offsetBytes`. Data that lies
   * behind the end of the file is lost with it.
   */
  readonly kind: "write" | "punch" | "length" | "names";
  /** A name of the file, its newest if it has one; for "names", the names that it leads to. */
  readonly path: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Whether the change belongs to an operation of the queue that has not ended. */
  readonly inFlight: boolean;
  /** The index of a change that this one needs: without it this one is lost as well; or -1. */
  readonly needs: number;
}

/** Options of a photograph. */
export interface PhotographOptions {
  /** Whether the photograph itself records unflushed changes, for further cuts. */
  readonly powerCuts?: boolean;
}

/** The changes of one file with the part of the undecided changes that is about them. */
interface FileChanges {
  readonly file: SimulatedFile;
  readonly changes: readonly Change[];
  /** The index of the undecided change by change; -1 for none. */
  readonly data: readonly number[];
  /** The indexes of changes that change the length, and of their undecided changes. */
  readonly lengths: readonly { readonly change: number; readonly undecided: number }[];
}

/** All that a power cut decides. */
export interface Undecided {
  readonly list: readonly UndecidedChange[];
  readonly files: ReadonlyMap<SimulatedFile, FileChanges>;
}

/** Photographs a disk; everything that a power cut decides is drawn. */
export function photographAtRandom(
  state: DiskState,
  { random, inFlight, powerCuts }: {
    random: Random;
    inFlight: readonly OperationInFlight[];
    powerCuts: boolean;
  },
): DiskState {
  const seed = random.bits();
  const carriedOut = inFlight.filter(() => random.chance(0.5));
  const survival = new Survival(random);
  // A sync in flight that was carried out made what was before it durable, and all names.
  const synced = new Set(
    carriedOut.filter(({ write }) => write === null).map(({ file }) => file),
  );
  const { versions } = state;
  const newest = versions.length - 1;
  const names = versions[synced.size > 0 ? newest : survival.below(versions.length)];
  return state.withFiles({ seed, powerCuts, names }, (file) => {
    const { changes, inFlightFrom } = withOperations(file, carriedOut);
    const done = synced.has(file) ? inFlightFrom : 0;
    const cut = randomCut(changes.length - done, survival);
    return file.afterCut(changes, {
      lengths: cut.lengths + done,
      keeps: (index) => index < done || cut.keeps(index - done),
    }, powerCuts);
  });
}

/** The changes of a file, then those that operations in flight will make. */
function withOperations(
  file: SimulatedFile,
  operations: readonly OperationInFlight[],
): { changes: Change[]; inFlightFrom: number } {
  const changes = [...file.unflushed.changes];
  const inFlightFrom = changes.length;
  for (const { file: itsFile, write } of operations) {
    if (itsFile !== file || write === null) continue;
    changes.push(file.writeInFlight({ ...write, before: changes.at(-1) ?? null }));
  }
  return { changes, inFlightFrom };
}

/** Lists all that a power cut decides now. */
export function undecidedOf(state: DiskState, inFlight: readonly OperationInFlight[]): Undecided {
  const list: UndecidedChange[] = [];
  const files = new Map<SimulatedFile, FileChanges>();
  const nothing = { offsetBytes: 0, lengthBytes: 0, inFlight: false };
  for (let i = 1; i < state.versions.length; i++) {
    const path = [...state.versions[i].keys()].join();
    list.push({ kind: "names", path, ...nothing, needs: i === 1 ? -1 : i - 2 });
  }
  for (const [path, file] of state.versions.toReversed().flatMap((names) => [...names])) {
    if (!files.has(file)) files.set(file, addFile(list, { path, file, inFlight }));
  }
  return { list, files };
}

function addFile(
  list: UndecidedChange[],
  { path, file, inFlight }: {
    path: string;
    file: SimulatedFile;
    inFlight: readonly OperationInFlight[];
  },
): FileChanges {
  const { changes, inFlightFrom } = withOperations(file, inFlight);
  const lengths: { change: number; undecided: number }[] = [];
  for (const change of lengthChanges(changes, file.unflushed.startBytes)) {
    const needs = lengths.at(-1)?.undecided ?? -1;
    lengths.push({ change, undecided: list.length });
    const { sizeBytes: offsetBytes } = changes[change];
    const isInFlight = change >= inFlightFrom;
    list.push({ kind: "length", path, offsetBytes, lengthBytes: 0, inFlight: isInFlight, needs });
  }
  const data = changes.map((change, i) => {
    if (change.kind === "truncate") return -1;
    const { kind, offsetBytes, endBytes } = change;
    const lengthBytes = endBytes - offsetBytes;
    const isInFlight = i >= inFlightFrom;
    list.push({ kind, path, offsetBytes, lengthBytes, inFlight: isInFlight, needs: -1 });
    return list.length - 1;
  });
  return { file, changes, data, lengths };
}

/** Photographs a disk with a choice of what is kept. */
export function photographOf(
  state: DiskState,
  { undecided: { list, files }, keep, powerCuts }: {
    undecided: Undecided;
    keep: (index: number) => Kept;
    powerCuts: boolean;
  },
): DiskState {
  const choices = list.map((_, index) => keep(index));
  const isKept = (index: number): boolean => choices[index] !== false;
  let version = 0;
  while (version + 1 < state.versions.length && isKept(version)) version++;
  const names = state.versions[version];
  return state.withFiles({ seed: 1, powerCuts, names }, (file) => {
    const found = files.get(file);
    if (found === undefined) throw new TypeError("The changes are those of another moment");
    const { changes, data, lengths } = found;
    const lost = lengths.find(({ undecided }) => !isKept(undecided));
    const cut: Cut = {
      lengths: lost?.change ?? changes.length,
      keeps: (index) => choices[data[index]],
    };
    return file.afterCut(changes, cut, powerCuts);
  });
}
