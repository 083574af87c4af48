/**
 * Serves the disks of a list, and stops serving them, as at boot and at shutdown. A file for each name
 * has its minor, so that a second run changes nothing.
 *
 * @module
 */
import type { Secret } from "../../../ffi/secret.ts";
import { closeFile, lockExclusive, O_RDONLY, openFile } from "../../../ffi/files.ts";
import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import type { DeviceAddress, TimeLimit } from "./client.ts";
import type { ListedDevice } from "./device_list.ts";
import { nameDevice, unnameDevice } from "../minors/device_name.ts";
import { inventory, type InventoryEntry, silentTapdisks, withNodes } from "./inventory.ts";
import {
  type CreatedDevice,
  createDevice,
  destroyDevice,
  orphanedMinors,
  recoverDevice,
} from "./lifecycle.ts";
import { readMinorRecord } from "../minors/minor_record.ts";
import { serveRequest } from "./serve_choices.ts";
import { controlFolder, namesIn, prepareFolders } from "../paths.ts";

/** What the file of a name has. */
interface NameRecord extends CreatedDevice {
  readonly image: string;
}

/** A disk that is served under a name, and how it came to be served. */
export interface Restored extends CreatedDevice {
  readonly how: "created" | "recovered" | "served already";
}

function recordsFolder(): string {
  return `${controlFolder()}/names`;
}

function isRecord(value: unknown): value is NameRecord {
  if (typeof value !== "object" || value === null) return false;
  const fields = new Map(Object.entries(value));
  const node = fields.get("node");
  return ["pid", "minor"].every((field) => typeof fields.get(field) === "number") &&
    typeof fields.get("image") === "string" && (node === null || typeof node === "string");
}

function readRecord(name: string): NameRecord | null {
  try {
    const value: unknown = JSON.parse(Deno.readTextFileSync(`${recordsFolder()}/${name}`));
    return isRecord(value) ? value : null;
  } catch {
    return null;
  }
}

function writeRecord(name: string, { pid, minor, node, image }: NameRecord): void {
  const path = `${recordsFolder()}/${name}`;
  try {
    const text = `${JSON.stringify({ pid, minor, node, image })}\n`;
    Deno.writeTextFileSync(`${path}.new`, text, { mode: 0o600 });
    Deno.renameSync(`${path}.new`, path);
  } catch (error) {
    throw systemError(error, `Cannot write ${path}`);
  }
}

/**
 * Calls `work` while no other process restores or stops disks. Throws `SystemError` when the folder
 * of the names cannot be made.
 */
export async function withNamesLocked<Result>(work: () => Promise<Result>): Promise<Result> {
  const folder = recordsFolder();
  prepareFolders();
  try {
    Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw systemError(error, `Cannot create the folder ${folder}`);
  }
  const lock = openFile(folder, O_RDONLY);
  try {
    lockExclusive(lock);
    return await work();
  } finally {
    closeFile(lock);
  }
}

/** The disk of a record, if it is still served. Another disk may have its minor meanwhile. */
function servedBy(record: NameRecord): CreatedDevice | null {
  const entries = inventory({ minor: record.minor });
  const found = entries.find(({ pid, args }) => pid === record.pid || args === record.image);
  if (found?.silent || (found === undefined && silentTapdisks(entries).length > 0)) {
    const pids = silentTapdisks(entries).join(", ");
    const what = `Cannot tell whether ${record.image} is served (tapdisk ${pids} does not answer)`;
    throw new SystemError(Errno.ETIMEDOUT, what);
  }
  return found === undefined ? null : asCreated(found);
}

/** A served disk with its block device; null for an entry that is not a disk. */
function asCreated(entry: InventoryEntry): CreatedDevice | null {
  const { pid, minor, args } = entry;
  if (pid === null || minor === null || args === null) return null;
  return { pid, minor, node: withNodes([entry])[0].device };
}

/** Whether a tapdisk that died has left the block device of a record. */
function isOrphan({ minor, image }: NameRecord): boolean {
  return orphanedMinors().includes(minor) && readMinorRecord(minor)?.image === image;
}

/** A served disk with this image that has no name yet. */
function servedImage(image: string, present: readonly InventoryEntry[]): CreatedDevice | null {
  const named = new Set(restoredNames().map((name) => readRecord(name)?.minor ?? null));
  const found = present.find(({ args, minor }) => args === image && !named.has(minor));
  return found === undefined ? null : asCreated(found);
}

/** Frees the minor of a tapdisk that died and left no block device. */
async function clearAway(record: NameRecord): Promise<void> {
  const left = inventory({ minor: record.minor }).some(({ pid }) => pid === null);
  if (left) await destroyDevice(record, {});
}

async function serve(
  listed: ListedDevice,
  record: NameRecord | null,
  key: Secret | undefined,
): Promise<Restored> {
  if (record !== null && isOrphan(record)) {
    return { ...await recoverDevice(record.minor, { key }), how: "recovered" };
  }
  if (record !== null) await clearAway(record);
  const overTcp = serveRequest(listed.overTcp);
  const request = { ...listed, serve: overTcp === null ? [] : [overTcp] };
  return { ...await createDevice(request, { key }), how: "created" };
}

/**
 * Serves a disk of a list and gives it its name. A disk that is already served is left as it is; a
 * disk whose tapdisk died is taken over. Throws `SystemError`, `TapdiskError`.
 *
 * @param present What was served before the first disk of the list.
 * @param readKey Reads the key of an encrypted image; called only when the key is needed.
 */
export async function restoreDevice(
  listed: ListedDevice,
  { present, readKey }: {
    present: readonly InventoryEntry[];
    readKey: () => Secret | undefined;
  },
): Promise<Restored> {
  const record = readRecord(listed.name);
  const served = (record === null ? null : servedBy(record)) ??
    servedImage(listed.image, present);
  const restored: Restored = served === null
    ? await serve(listed, record, readKey())
    : { ...served, how: "served already" };
  writeRecord(listed.name, { ...restored, image: listed.image });
  if (restored.node !== null) nameDevice(listed.name, restored.node);
  return restored;
}

/** The names of what was restored, the last one first. */
export function restoredNames(): string[] {
  return namesIn(recordsFolder())
    .map((name) => ({ name, minor: readRecord(name)?.minor }))
    .filter((entry): entry is { name: string; minor: number } => entry.minor !== undefined)
    .sort((a, b) => b.minor - a.minor)
    .map(({ name }) => name);
}

/**
 * Stops serving what was restored under a name. Throws `SystemError`, `TapdiskError`: EBUSY when the
 * block device is in use; it then stays as it is.
 *
 * @returns False when nothing of that name is served.
 */
export async function stopRestored(name: string, limit: TimeLimit): Promise<boolean> {
  const record = readRecord(name);
  if (record === null) return false;
  const served: DeviceAddress | null = servedBy(record) ?? (isOrphan(record) ? record : null);
  if (served !== null) await destroyDevice(served, limit);
  if (record.node !== null) unnameDevice(name, record.node);
  Deno.removeSync(`${recordsFolder()}/${name}`);
  return served !== null;
}
