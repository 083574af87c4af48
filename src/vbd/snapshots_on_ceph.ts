/**
 * Snapshots of a running device whose image is on Ceph: within the image, and by a clone.
 *
 * @module
 */
import { type DoneWith, Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { encodeName } from "../../ffi/names.ts";
import type { ImageClones } from "../driver/driver.ts";
import { lastLayer } from "../driver/layers.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import {
  type LiveSnapshot,
  refuserOf,
  refuseSecondary,
  requireRunning,
  WHAT,
  withMore,
} from "./snapshot_parts.ts";
import type { Vbd } from "./vbd.ts";
import { notOpenAgain } from "./vbd_errors.ts";

/** The type of a snapshot within an image on Ceph. */
export const INSIDE = "rbd";
/** The type of a snapshot after which the device goes on with a clone. */
export const BY_CLONE = "rbd-clone";
/** The answer to a snapshot has so many bytes for each name. */
const MOST_NAME_BYTES = 255;

/** Makes a snapshot within the running image, which stays the one that is open. */
export function snapshotInside(
  vbd: Vbd,
  { path: name, rename, done }: { path: string; rename: boolean; done: DoneWith<LiveSnapshot> },
): void {
  const refuse = refuserOf(vbd);
  requireRunning(vbd);
  const { driver: { type }, rest } = lastLayer(vbd.name);
  const image = vbd.images.find(({ spec }) => spec.type === type);
  if (type !== INSIDE || image?.makeSnapshot === undefined) {
    return refuse(Errno.EOPNOTSUPP, `${vbd.name} is no image on Ceph`);
  }
  if (rename) refuse(Errno.EINVAL, "an image on Ceph keeps its name");
  if (!/^[^/@,\0]+$/.test(name)) refuse(Errno.EINVAL, `${JSON.stringify(name)} cannot be its name`);
  const parent = `${INSIDE}:${rest.replace(/,.*/, "")}@${name}`;
  if (encodeName(parent).length > MOST_NAME_BYTES) refuse(Errno.ENAMETOOLONG, parent);
  image.makeSnapshot(name, (error) => {
    if (error !== null) done(error, null);
    else done(null, { name: vbd.name, parent, stallMs: 0 });
  });
}

/** A snapshot by a clone: what is made, and from what. */
interface ClonePlan {
  /** The name of the clone. */
  readonly after: string;
  /** The name of the snapshot that the clone is on. */
  readonly parent: string;
  readonly make: ImageClones["make"];
  readonly remove: ImageClones["remove"];
  /** The running image, behind its type. */
  readonly path: string;
  readonly name: string;
}

/**
 * Makes a snapshot of the running image and a clone of that, with which the device goes on. Requests wait
 * meanwhile, and others may unpause or close the device: then there is no clone. When a step fails, the
 * device runs on with the image that it had, as soon as that can be opened.
 */
export function snapshotByClone(
  vbd: Vbd,
  { name, rename, timeoutMs, scheduler, done }: {
    name: string;
    rename: boolean;
    timeoutMs: number;
    scheduler: Scheduler;
    done: DoneWith<LiveSnapshot>;
  },
): void {
  const plan = planClone(vbd, { name, rename });
  const startMs = scheduler.nowMs();
  /** Ends it after an error, with a clone that is of no use or without. */
  const fail = (error: SystemError, isMade: boolean): void => {
    if (!isMade) return done(error, null);
    plan.remove(plan.path, name, scheduler, (failure) => {
      done(withMore(error, failure === null ? "" : `; ${failure.message}`), null);
    });
  };
  const goBack = (error: SystemError, isMade: boolean): void =>
    vbd.reopening.runOn((why) => fail(notOpenAgain(vbd, error, why), isMade));
  vbd.pause((pauseError) => {
    if (pauseError !== null) return done(pauseError, null);
    const { opens } = vbd.retained;
    const isAsLeft = (): boolean => vbd.phase === "paused" && vbd.retained.opens === opens;
    try {
      // The image may have become full while the disk drained.
      refuseSecondary(vbd);
    } catch (error) {
      return goBack(systemError(error, WHAT), false);
    }
    plan.make(plan.path, name, scheduler, (error) => {
      if (!isAsLeft()) return fail(error ?? lateFor(vbd), error === null);
      if (error !== null) return goBack(error, false);
      vbd.resume(plan.after, (resumeError) => {
        if (resumeError !== null) return goBack(resumeError, true);
        done(null, { name: plan.after, parent: plan.parent, stallMs: scheduler.nowMs() - startMs });
      });
    });
  }, timeoutMs);
}

function lateFor({ minor }: Vbd): SystemError {
  const why = "it was unpaused or closed meanwhile";
  return new SystemError(Errno.ECANCELED, `${WHAT} of minor ${minor} (${why})`);
}

function planClone(vbd: Vbd, { name, rename }: { name: string; rename: boolean }): ClonePlan {
  const refuse = refuserOf(vbd);
  requireRunning(vbd);
  const { driver: { type, clones }, above, rest } = lastLayer(vbd.name);
  if (clones === undefined) return refuse(Errno.EOPNOTSUPP, `${vbd.name} is no image on Ceph`);
  if (rename) refuse(Errno.EINVAL, "an image on Ceph keeps its name");
  if (!/^[^/@,\0]+$/.test(name)) refuse(Errno.EINVAL, `${JSON.stringify(name)} cannot be its name`);
  const after = `${above}${type}:${clones.nameOf(rest, name)}`;
  const parent = `${type}:${rest.replace(/,.*/s, "")}@${name}`;
  for (const text of [after, parent]) {
    if (encodeName(text).length > MOST_NAME_BYTES) refuse(Errno.ENAMETOOLONG, text);
  }
  return { ...clones, after, parent, path: rest, name };
}
