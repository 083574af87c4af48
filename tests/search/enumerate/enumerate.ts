/**
 * The enumeration: for each canonical operation, every moment of its run is photographed with every
 * choice of what a power cut leaves, and each of its calls fails once. `operation.ts` says what an
 * operation is, `operations/` lists them.
 *
 * - **Cuts.** At each call that changes something, and at the end: every subset of the undecided
 *   changes, and halves of writes (`choices.ts`). The subset that keeps all whose calls have ended is
 *   what a killed process leaves, and must hold more. For some, the recovery is cut again, or the
 *   operation is run again.
 * - **Errors.** Each call fails once with each error that it can have, or ends short. The operation
 *   reports an error or succeeds; the images are in order, without a power cut and with one; and the
 *   operation can be run again.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { allowParentsIn, ANY_FOLDER } from "../../../src/files/confinement.ts";
import { Random } from "../../../src/testing/random.ts";
import {
  changesOnly,
  describeOperation,
  type DiskOperation,
  SimulatedDisk,
  type Verdict,
} from "../../../src/testing/simulated_disk.ts";
import type { SearchContext } from "../search.ts";
import { choicesOf } from "./choices.ts";
import { judge, type Moment, writeBeforeRevert } from "./judge.ts";
import type { Operation, Stages } from "./operation.ts";
import { type Version, versionOf } from "./versions.ts";

/** The recovery is cut in one of so many photographs. */
const CUT_AGAIN_EVERY = 23;
/** The operation is run again after one of so many photographs, at most so often. */
const RUN_AGAIN_EVERY = 41;
const MOST_RUNS_AGAIN = 25;

type Counts = Pick<SearchContext, "count" | "trace" | "tracing">;

/** The stages of a run without faults. */
interface Plan {
  readonly operation: Operation;
  /** The disk before the operation; all is durable. */
  readonly origin: SimulatedDisk;
  readonly versions: readonly Version[];
  /** The calls of the operation. */
  readonly calls: readonly DiskOperation[];
}

/** How far a run is. */
class Progress implements Stages {
  /** The number of the stage that has ended last, and of the last that is durable. */
  last = 0;
  durable = 0;

  ended(): void {
    this.last++;
  }

  flushed(): void {
    this.durable = this.last;
  }
}

function syncAll(disk: SimulatedDisk): void {
  for (const path of disk.paths) {
    const file = disk.open(path, "write");
    file.sync();
    file.close();
  }
}

async function planOf(operation: Operation): Promise<Plan> {
  const origin = new SimulatedDisk({ seed: 7, powerCuts: true });
  operation.make(origin);
  const versions = [versionOf(origin, operation)];
  operation.damage?.(origin);
  syncAll(origin);
  using disk = origin.copy();
  const calls: DiskOperation[] = [];
  disk.beforeOperation = (call) => void calls.push(call);
  const withoutHook = (work: () => void): void => {
    const { beforeOperation } = disk;
    disk.beforeOperation = null;
    work();
    disk.beforeOperation = beforeOperation;
  };
  const progress = new Progress();
  await operation.run(disk, {
    ended: () => {
      progress.ended();
      withoutHook(() => versions.push(versionOf(disk, operation)));
    },
    flushed: () => {},
  });
  disk.beforeOperation = null;
  if (progress.last === 0) versions.push(versionOf(disk, operation));
  const plan = { operation, origin, versions, calls };
  const last = versions.length - 1;
  judge(disk, operation, { versions, from: last, to: last, cut: false, done: true });
  return plan;
}

/** Tries all cuts and errors of an operation. */
export async function enumerate(
  operation: Operation,
  { seed, counts }: { seed: number; counts: Counts },
): Promise<void> {
  // The roots of parents are in files of the machine, which would be read for each image.
  const roots = allowParentsIn([ANY_FOLDER]);
  try {
    const plan = await planOf(operation);
    using _origin = plan.origin;
    const random = new Random(seed);
    await new Cuts(plan, random, counts).run();
    await new Errors(plan, random, counts).run();
  } finally {
    allowParentsIn(roots);
  }
}

function within<Result>(what: () => string, work: () => Result): Result {
  try {
    return work();
  } catch (error) {
    throw new Error(what(), { cause: error });
  }
}

const COUNTED = {
  subset: "subsets of undecided changes",
  "sampled subset": "subsets of more than 12 undecided changes, not all of them",
  torn: "subsets with a torn write",
};

/** The cuts of one operation. */
class Cuts {
  readonly #seen = new Set<string>();
  readonly #again: { disk: SimulatedDisk; what: string }[] = [];
  readonly #progress = new Progress();
  /** What `repair` did after the cuts. */
  readonly #repairs = new Set<string>();
  #epoch = 0;
  #photographs = 0;
  #call = 0;
  /** What was found first. The code under test may swallow an exception of the hook. */
  #found: unknown = null;

  constructor(readonly plan: Plan, readonly random: Random, readonly counts: Counts) {}

  async run(): Promise<void> {
    const { operation, origin } = this.plan;
    using disk = origin.copy();
    disk.beforeOperation = changesOnly((call) => {
      this.#call++;
      this.counts.count("moments that were cut");
      this.counts.trace(`${this.#call}: ${describeOperation(call, 0)}`);
      try {
        if (this.#found === null) this.#look(disk, false);
      } catch (error) {
        this.#found = error;
        throw error;
      }
      if (call.kind === "sync" || call.kind === "sync folder") this.#epoch++;
    });
    if (this.counts.tracing) disk.trace = (): void => {};
    try {
      await operation.run(disk, this.#progress);
    } catch (error) {
      throw this.#found ?? error;
    }
    if (this.#found !== null) throw this.#found;
    disk.beforeOperation = null;
    this.#look(disk, true);
    const undecided = disk.undecided();
    assert.deepEqual(undecided, [], "The operation has ended, and not all of it is durable");
    // A repair that the promises allow for must be necessary at times, or it is not tested.
    const { repairs } = operation;
    const seen = [...this.#repairs];
    assert.ok(repairs === undefined || seen.some((line) => repairs.test(line)), seen.join());
    for (const { disk, what } of this.#again) await this.#runAgain(disk, what);
  }

  #look(disk: SimulatedDisk, done: boolean): void {
    const list = disk.undecided();
    const { last, durable } = this.#progress;
    const { versions } = this.plan;
    for (const choice of choicesOf(list, this.random)) {
      const key = `${this.#epoch} ${last} ${durable} ${done} ${choice.isKill} ${choice.key}`;
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      this.#photographs++;
      this.counts.count(COUNTED[choice.kind]);
      if (choice.isKill) this.counts.count("of these, what a killed process leaves");
      const end = versions.length - 1;
      const moment: Moment = {
        versions,
        from: done ? end : choice.isKill ? last : durable,
        to: done ? end : Math.min(last + 1, end),
        cut: !choice.isKill,
        done,
      };
      const what = (): string =>
        `Power cut before call ${this.#call + (done ? 1 : 0)}, with ` +
        list.map(({ kind, path, offsetBytes, lengthBytes }, i) => {
          const kept = choice.keep(i);
          const text = kept === true ? "kept" : kept === false ? "lost" : "torn";
          return `\n  ${text}: ${kind} ${path} ${offsetBytes}+${lengthBytes}`;
        }).join("");
      within(
        what,
        () => this.#judge(disk.photographWith(choice.keep, { powerCuts: true }), moment),
      );
    }
  }

  #judge(photo: SimulatedDisk, moment: Moment): void {
    const { operation } = this.plan;
    using _photo = photo;
    const runsAgain = !moment.done && this.#photographs % RUN_AGAIN_EVERY === 0;
    if (this.#photographs % CUT_AGAIN_EVERY === 0) this.#cutAgain(photo, moment);
    if (writeBeforeRevert(photo, operation)) this.counts.count("writes before a revert");
    for (const line of judge(photo, operation, moment)) this.#repairs.add(line);
    if (!runsAgain || this.#again.length >= MOST_RUNS_AGAIN) return;
    this.#again.push({ disk: photo.copy(), what: `after call ${this.#call}` });
  }

  /** Cuts the power at each change of a recovery, and recovers again. */
  #cutAgain(photo: SimulatedDisk, moment: Moment): void {
    using disk = photo.copy();
    disk.beforeOperation = changesOnly(() => {
      for (let i = 0; i < 2; i++) {
        using second = disk.photograph(this.random);
        this.counts.count("cuts of a recovery");
        this.#photographs++;
        judge(second, this.plan.operation, { ...moment, cut: true });
      }
    });
    judge(disk, this.plan.operation, moment);
  }

  async #runAgain(photo: SimulatedDisk, what: string): Promise<void> {
    using disk = photo;
    this.counts.count("runs after a cut");
    try {
      await runToEnd(disk, this.plan);
    } catch (error) {
      throw new Error(`Run again ${what}`, { cause: error });
    }
  }
}

/** Runs an operation on recovered images, and requires that all of it is there. */
async function runToEnd(
  disk: SimulatedDisk,
  { operation, versions }: Pick<Plan, "operation" | "versions">,
): Promise<void> {
  const { again = operation.run } = operation;
  if (again === null) return;
  await again(disk, new Progress());
  const end = versions.length - 1;
  judge(disk, operation, { versions, from: end, to: end, cut: false, done: true });
}

/** The errors that a call can have. */
function faultsOf({ kind, lengthBytes, queued }: DiskOperation): Verdict[] {
  const faults: Verdict[] = [Errno.EIO];
  const takesRoom = ["write", "create", "truncate", "rename", "link", "punch"];
  if (takesRoom.includes(kind)) faults.push(Errno.ENOSPC);
  if ((kind === "read" || kind === "write") && lengthBytes > 512) {
    const half = Math.ceil(lengthBytes / 1024) * 512;
    if (half < lengthBytes) faults.push({ does: "shorten", lengthBytes: half });
    if (!queued) faults.push({ does: "shorten", lengthBytes: 100 });
  }
  if (queued && kind === "write") faults.push({ does: "fail late", errno: Errno.EIO });
  return faults;
}

/** The errors of one operation. */
class Errors {
  constructor(readonly plan: Plan, readonly random: Random, readonly counts: Counts) {}

  async run(): Promise<void> {
    const { calls, operation } = this.plan;
    for (const [index, call] of calls.entries()) {
      for (const fault of faultsOf(call)) {
        if (typeof fault === "number" && operation.leavesOut?.includes(fault)) continue;
        try {
          await this.#fail(index, fault);
        } catch (error) {
          const what = describeOperation(call, fault);
          throw new Error(`Call ${index + 1} fails: ${what}`, { cause: error });
        }
      }
    }
  }

  async #fail(index: number, fault: Verdict): Promise<void> {
    const { operation, origin, versions } = this.plan;
    using disk = origin.copy();
    let calls = 0;
    disk.beforeOperation = (call) => {
      if (calls++ !== index) return 0;
      // The order of calls may differ once queued operations have ended in another order.
      return typeof fault === "number" || isPossible(call, fault) ? fault : 0;
    };
    const progress = new Progress();
    let done = true;
    try {
      await operation.run(disk, progress);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      done = false;
    }
    disk.beforeOperation = null;
    this.counts.count(done ? "errors that a retry has overcome" : "errors that were reported");
    const end = versions.length - 1;
    const { last, durable } = progress;
    const to = done ? end : Math.min(last + 1, end);
    for (let i = 0; i < 2; i++) {
      using photo = disk.photograph(this.random);
      this.counts.count("cuts after an error");
      const from = done ? end : durable;
      judge(photo, operation, { versions, from, to, cut: true, done });
    }
    disk.killProcesses();
    judge(disk, operation, { versions, from: done ? end : last, to, cut: false, done });
    if (!done) await runToEnd(disk, this.plan);
  }
}

function isPossible(
  { kind, lengthBytes, queued }: DiskOperation,
  fault: Exclude<Verdict, number>,
): boolean {
  if (fault.does === "fail late") return queued && kind === "write";
  return (kind === "read" || kind === "write") && fault.does === "shorten" &&
    fault.lengthBytes < lengthBytes;
}
