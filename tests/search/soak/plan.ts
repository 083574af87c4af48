/**
 * Which disks a soak has: all kinds, in several tapdisks.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import type { DiskPlan } from "./disk.ts";

/** Disks of one tapdisk; see `Group`. */
export interface GroupPlan {
  readonly name: string;
  readonly isKilled: boolean;
  readonly isRestored: boolean;
  readonly disks: readonly DiskPlan[];
}

type Sketch =
  & Pick<DiskPlan, "kind" | "base">
  & Partial<Pick<DiskPlan, "filters" | "snapshots" | "isEncrypted" | "medium">>;

const VHD: Sketch = { kind: "vhd", base: "dynamic" };
const FIXED: Sketch = { kind: "fixed", base: "fixed" };
const CHAIN: Sketch = { kind: "chain", base: "dynamic", snapshots: 3 };
const RAW_CHAIN: Sketch = { kind: "chain on raw", base: "raw", snapshots: 2 };
const SECRET: Sketch = { kind: "encrypted", base: "dynamic", isEncrypted: true };
const SECRET_CHAIN: Sketch = { ...SECRET, kind: "encrypted chain", snapshots: 2 };
const RAW: Sketch = { kind: "raw", base: "raw" };
const RAM: Sketch = { kind: "ram", base: "ram" };
const NBDKIT: Sketch = { kind: "nbd to nbdkit", base: "nbdkit" };
const QEMU: Sketch = { kind: "nbd to qemu-nbd", base: "qemu-nbd" };
// Caches are small, so that they are full soon: a pause empties them, and memory goes up and down.
const CACHED: Sketch = { kind: "cached", base: "dynamic", filters: "bc:2:" };
const CACHED_RAW: Sketch = { kind: "cached raw", base: "raw", filters: "bc:1:" };
const LOGGED: Sketch = { kind: "logged", base: "dynamic", filters: "log:" };
const STACKED: Sketch = { kind: "log and cache", base: "dynamic", filters: "log:bc:2:" };
const SMALL_VHD: Sketch = { ...VHD, kind: "vhd on a small disk", medium: "small" };
const SMALL_RAW: Sketch = { ...RAW, kind: "raw on a small disk", medium: "small" };

/** The disk whose only client measures how long a request takes. */
export const QUIET_KIND = "quiet";
/** A disk that has no client. With it alone, a tapdisk takes as much at the end as at the start. */
export const IDLE_KIND = "idle";

/** Encrypted disks, as something that may be missing. */
export const ENCRYPTED = "encrypted";

const IDLE: Sketch = { kind: IDLE_KIND, base: "raw" };

const GROUPS: readonly {
  name: string;
  isKilled?: true;
  isRestored?: true;
  disks: readonly Sketch[];
}[] = [
  {
    name: "steady 1",
    disks: [
      IDLE,
      { kind: QUIET_KIND, base: "dynamic", medium: "tmpfs" },
      ...[VHD, VHD, FIXED, CHAIN, RAW, SECRET, CACHED_RAW, LOGGED, SMALL_VHD],
    ],
  },
  {
    name: "steady 2",
    disks: [
      IDLE,
      VHD,
      CHAIN,
      RAW_CHAIN,
      SECRET_CHAIN,
      NBDKIT,
      QEMU,
      STACKED,
      RAW,
      SMALL_RAW,
      CACHED,
    ],
  },
  {
    name: "killed 1",
    isKilled: true,
    disks: [VHD, VHD, CHAIN, RAW, SECRET, NBDKIT, CACHED, FIXED, RAM],
  },
  { name: "killed 2", isKilled: true, disks: [VHD, RAW_CHAIN, QEMU, RAM, STACKED, SMALL_VHD] },
  { name: "restored 1", isKilled: true, isRestored: true, disks: [VHD] },
  { name: "restored 2", isKilled: true, isRestored: true, disks: [RAW] },
  { name: "restored 3", isKilled: true, isRestored: true, disks: [CHAIN] },
  { name: "restored 4", isKilled: true, isRestored: true, disks: [CACHED] },
];

const SIZES_MIB = [24, 32, 40];

/** The groups of a seed. `missing` names bases and media that this machine does not have. */
export function planOf(random: Random, missing: ReadonlySet<string>): GroupPlan[] {
  let number = 0;
  const complete = (sketch: Sketch): DiskPlan => ({
    name: `d${`${++number}`.padStart(2, "0")}`,
    ...{ filters: "", snapshots: 0, isEncrypted: false },
    medium: random.chance(0.6) ? "tmpfs" : "disk",
    ...sketch,
    sizeMib: SIZES_MIB[random.below(SIZES_MIB.length)],
    writers: [QUIET_KIND, IDLE_KIND].includes(sketch.kind) ? 0 : random.chance(0.3) ? 2 : 1,
    options: optionsOf(random),
  });
  return GROUPS.map(({ name, isKilled = false, isRestored = false, disks }) => ({
    ...{ name, isKilled, isRestored },
    disks: disks
      .filter(({ base, medium, isEncrypted }) =>
        !missing.has(base) && !missing.has(medium ?? "") && !(isEncrypted && missing.has(ENCRYPTED))
      )
      .map(complete),
  }));
}

function optionsOf(random: Random): string[] {
  const options: string[] = [];
  if (random.chance(0.3)) options.push("--queue", "io_uring");
  if (random.chance(0.3)) options.push("-D");
  return options;
}
