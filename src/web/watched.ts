import type { DiskSample } from "../observe/sample.ts";
import type { DiskState } from "../observe/state.ts";
import type { Activity } from "./activity.ts";

/** A disk now, and what it did since the sample before. */
export interface WatchedDisk {
  /** `pid.minor`. */
  readonly key: string;
  /** The last sample; of a tapdisk that does not answer, the last one that there was. */
  readonly sample: DiskSample;
  readonly state: DiskState | "no answer";
  /** Null when it is not known. */
  readonly activity: Activity | null;
}

/** The name of a disk's image, `vhd:/disk.vhd`; empty without one. */
export function imageOf({ type, path }: Pick<DiskSample, "type" | "path">): string {
  return path === "" ? "" : `${type}:${path}`;
}

/** Tells a disk from all others of this host. */
export function keyOf({ pid, minor }: Pick<DiskSample, "pid" | "minor">): string {
  return `${pid}.${minor}`;
}

/** The address of a disk's page. */
export function pathOf({ sample: { pid, minor } }: WatchedDisk): string {
  return `/disks/${pid}/${minor}`;
}
