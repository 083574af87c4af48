import { type DoneWith, Errno, messageOf, SystemError, systemError } from "../../ffi/errno.ts";
import { canonicalPath, folderOf, normalizePath } from "../files/paths.ts";
import { admitParent, confinementOf, describeRefusal } from "../files/confinement.ts";
import { fileInName, lastLayer } from "../driver/layers.ts";
import { snapshotQcow2 } from "../qcow2/snapshot.ts";
import { snapshot } from "../vhd/snapshot.ts";
import { removeOwn, type Storage } from "../files/storage.ts";
import { isSameFile } from "../files/open_file.ts";
import {
  type LiveSnapshot,
  refuserOf,
  refuseSecondary,
  requireRunning,
  WHAT,
  withMore,
} from "./snapshot_parts.ts";
import { BY_CLONE, INSIDE, snapshotByClone, snapshotInside } from "./snapshots_on_ceph.ts";
import type { VbdContext } from "./vbd_context.ts";
import type { Vbd } from "./vbd.ts";
import { notOpenAgain } from "./vbd_errors.ts";

export type { LiveSnapshot } from "./snapshot_parts.ts";

/** How a snapshot of a running device is made. */
export interface LiveSnapshotOptions {
  /** Path of the new image; with `rename`, the one that the running image goes by from now on. */
  readonly path: string;
  /** Moves the running image aside and gives its name to the new one. */
  readonly rename: boolean;
  /** How long draining may take, milliseconds. */
  readonly timeoutMs: number;
  /**
   * `rbd`: the snapshot is one within the image on Ceph, and `path` is its name. `rbd-clone`: the new image
   * is a clone of it, and `path` is its name. Else the type of the new image; without it, `qcow2` on a
   * QCOW2, and `vhd` on all others.
   */
  readonly childType?: string;
}

/** The paths before and after a snapshot. */
interface Plan {
  /** Drivers in front of the image's own, each with its colon. */
  readonly stack: string;
  /** The running image. */
  readonly image: string;
  /** Its type, as a parent. */
  readonly parentAs: "vhd" | "raw" | "qcow2";
  /** The driver of the new image. */
  readonly childType: "vhd" | "qcow2";
  /** Where the running image is afterwards. */
  readonly parent: string;
  /** Where the new image is afterwards, and where it is made. */
  readonly child: string;
  readonly draft: string;
}

/**
 * Puts a new, empty image on top of the running one, which keeps what the disk holds at this moment.
 * Requests wait meanwhile. When a step fails, the device runs on with the image that it had. After
 * each step there is a valid image under the name that was served.
 */
export function liveSnapshot(
  context: VbdContext,
  vbd: Vbd,
  { path, rename, timeoutMs, childType, done }: LiveSnapshotOptions & {
    readonly done: DoneWith<LiveSnapshot>;
  },
): void {
  const { scheduler, files: { storage } } = context;
  let plan: Plan;
  try {
    if (childType === INSIDE) return snapshotInside(vbd, { path, rename, done });
    if (childType === BY_CLONE) {
      return snapshotByClone(vbd, { name: path, rename, timeoutMs, scheduler, done });
    }
    plan = planFor(vbd, { storage, path, rename, childType });
  } catch (error) {
    return done(systemError(error, WHAT), null);
  }
  const startMs = scheduler.nowMs();
  const goBack = (error: SystemError, also = ""): void =>
    vbd.reopening.runOn((why) => done(notOpenAgain(vbd, withMore(error, also), why), null));
  vbd.pause((pauseError) => {
    if (pauseError !== null) return done(pauseError, null);
    try {
      // The image may have become full while the disk drained.
      refuseSecondary(vbd);
      makeChild(storage, plan);
    } catch (error) {
      return goBack(systemError(error, WHAT));
    }
    const name = `${plan.stack}${plan.childType}:${plan.child}`;
    vbd.resume(name, (resumeError) => {
      if (resumeError === null) {
        const stallMs = scheduler.nowMs() - startMs;
        return done(null, { name, parent: plan.parent, stallMs });
      }
      const failure = undo(storage, plan);
      goBack(resumeError, failure === "" ? "" : `; ${failure}`);
    });
  }, timeoutMs);
}

function planFor(
  vbd: Vbd,
  { storage, path, rename, childType }: {
    storage: Storage;
    path: string;
    rename: boolean;
    childType?: string;
  },
): Plan {
  const refuse = refuserOf(vbd);
  requireRunning(vbd);
  if (lastLayer(vbd.name).driver.type === INSIDE) {
    refuse(
      Errno.EOPNOTSUPP,
      "an image on Ceph has its snapshots on the cluster: say --type rbd, or rbd-clone",
    );
  }
  const file = fileInName(vbd.name);
  if (file === null || file.driver.parentAs === undefined) {
    return refuse(
      Errno.EOPNOTSUPP,
      `${vbd.name} is neither VHD nor QCOW2 nor raw`,
    );
  }
  const { parentAs } = file.driver;
  const type = childType ?? (parentAs === "qcow2" ? "qcow2" : "vhd");
  if (type !== "vhd" && type !== "qcow2") {
    return refuse(Errno.EINVAL, `the new image is a vhd or a qcow2, not ${JSON.stringify(type)}`);
  }
  if (type === "vhd" && parentAs === "qcow2") {
    return refuse(Errno.EOPNOTSUPP, "a VHD cannot be on a QCOW2");
  }
  const stack = file.above;
  const image = canonicalPath(storage, file.path);
  const common = { stack, image, parentAs, childType: type } as const;
  if (!path.startsWith("/")) refuse(Errno.EINVAL, `${path} is not an absolute path`);
  const target = normalizePath(storage, path);
  const isDevice = storage.exists(target) && storage.status(target).kind === "block";
  if (storage.exists(target) && (rename || !isDevice)) refuse(Errno.EEXIST, `${target} exists`);
  if (!rename) {
    const confinement = confinementOf(storage, target);
    if (admitParent(storage, confinement, image) === null) {
      refuse(Errno.EPERM, describeRefusal(confinement, image));
    }
    return { ...common, parent: image, child: target, draft: target };
  }
  if (storage.status(image).kind !== "file") {
    refuse(Errno.EINVAL, `${image} is a device, which cannot be renamed`);
  }
  // An image refers to its parent by a path from its own folder.
  const folder = folderOf(image);
  const there = folderOf(target);
  if (there !== folder && canonicalPath(storage, there) !== folder) {
    refuse(Errno.EXDEV, `${target} must be in ${folder}, like the image`);
  }
  const draft = `${image}.snapshot`;
  if (storage.exists(draft)) refuse(Errno.EEXIST, `${draft}, of an attempt that ended early`);
  return { ...common, parent: target, child: image, draft };
}

/** Makes the new image. When that fails, the files are as before. */
function makeChild(storage: Storage, plan: Plan): void {
  const moves = plan.parent !== plan.image;
  if (moves) linkParent(storage, plan);
  const wasThere = storage.exists(plan.draft);
  try {
    writeChild(storage, plan);
    if (moves) storage.rename(plan.draft, plan.child);
  } catch (error) {
    // Renamed already, if it was the sync of the folder that failed.
    if (moves && !isSameFile(storage.locate(plan.child), storage.locate(plan.parent))) {
      storage.rename(plan.parent, plan.child);
      throw error;
    }
    if (!wasThere && storage.exists(plan.draft)) storage.remove(plan.draft);
    if (moves) storage.remove(plan.parent);
    throw error;
  }
}

function writeChild(storage: Storage, { draft, parent, parentAs, childType }: Plan): void {
  if (childType === "qcow2") {
    const type = parentAs === "raw" ? "aio" : parentAs;
    return snapshotQcow2(draft, { storage, parent: { type, path: parent } });
  }
  // Each layer keeps its moment, also one in which nothing had been written.
  snapshot(draft, { storage, parent, rawParent: parentAs === "raw", keepEmptyParent: true });
}

/** Gives the image its second name. When that fails, the name is gone again. */
function linkParent(storage: Storage, { image, parent }: Plan): void {
  try {
    storage.link(image, parent);
  } catch (error) {
    const taken = error instanceof SystemError && error.errno === Errno.EEXIST;
    if (!taken) removeOwn(storage, parent, storage.locate(image));
    throw error;
  }
}

/** Removes a new image again; returns why that failed, or nothing. */
function undo(storage: Storage, plan: Plan): string {
  try {
    if (plan.parent !== plan.image) storage.rename(plan.parent, plan.image);
    else if (storage.status(plan.child).kind === "file") storage.remove(plan.child);
    return "";
  } catch (error) {
    return messageOf(error);
  }
}
