import { askNode, type DeviceAddress, listDevices } from "./client.ts";
import type { ListEntry } from "../protocol/message.ts";
import { readMinorRecord } from "../minors/minor_record.ts";
import { listMinors } from "../minors/minors.ts";
import { controlFolder, namesIn, nbdSocketPath, numberAfter } from "../paths.ts";

/** A tapdisk, a device of one, or an allocated minor; what does not apply is null. */
export interface InventoryEntry {
  readonly pid: number | null;
  readonly minor: number | null;
  /** A union of TD_VBD_* bits. */
  readonly state: number | null;
  readonly type: string | null;
  readonly path: string | null;
  /** `type:/path` */
  readonly args: string | null;
  /** The socket on which the disk is served by NBD. */
  readonly nbd: string | null;
  /** The block device that the disk is; of those with a tapdisk `withNode` finds it out. */
  readonly device: string | null;
}

const NOTHING: InventoryEntry = {
  pid: null,
  minor: null,
  state: null,
  type: null,
  path: null,
  args: null,
  nbd: null,
  device: null,
};

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function deviceEntry(pid: number, { minor, state, path: args }: ListEntry): InventoryEntry {
  const entry = { ...NOTHING, pid, minor, state };
  const colon = args.indexOf(":");
  if (colon < 0) return entry;
  const nbd = nbdSocketPath(pid, minor);
  return {
    ...entry,
    type: args.slice(0, colon),
    path: args.slice(colon + 1),
    args,
    nbd: exists(nbd) ? nbd : null,
  };
}

/** An entry with the block device that a tapdisk tells of when it is asked. */
export function withNode(entry: InventoryEntry): InventoryEntry {
  const { pid, minor, args } = entry;
  if (pid === null || minor === null || args === null) return entry;
  return { ...entry, device: nodeOf({ pid, minor }) };
}

/** A device's node; null without one, or when its tapdisk is another implementation. */
function nodeOf(address: DeviceAddress): string | null {
  try {
    return askNode(address);
  } catch {
    return null;
  }
}

/** A minor without a tapdisk, and what one that died has left there. */
function orphan(minor: number): InventoryEntry {
  const left = readMinorRecord(minor);
  return { ...NOTHING, minor, device: left?.node ?? null };
}

/**
 * The devices of one tapdisk in ascending order of minors; the tapdisk alone when it has none or
 * does not tell; nothing when there is no such tapdisk.
 */
export function inventoryOf(pid: number): InventoryEntry[] {
  let devices: ListEntry[] = [];
  try {
    devices = listDevices(pid);
  } catch (error) {
    if (!isBusy(error)) return [];
  }
  if (devices.length === 0) return [{ ...NOTHING, pid }];
  return devices
    .sort((a, b) => a.minor - b.minor)
    .map((device) => deviceEntry(pid, device));
}

/** Whether a tapdisk is there that does not answer, rather than none at all. */
function isBusy(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ETIMEDOUT";
}

/**
 * Everything there is: each tapdisk's devices, tapdisks without any, and minors that no tapdisk
 * has. Throws `SystemError` when the folders cannot be read.
 */
export function inventory(): InventoryEntry[] {
  const pids = namesIn(controlFolder())
    .map((name) => numberAfter(name, "ctl"))
    .filter((pid) => pid !== undefined)
    .sort((a, b) => a - b);
  const minors = new Set(listMinors());
  const entries = pids.flatMap(inventoryOf);
  for (const { minor } of entries) if (minor !== null) minors.delete(minor);
  return [...entries, ...Array.from(minors, orphan)];
}
