import { systemError } from "../../../ffi/errno.ts";
import { pathExists } from "../../../ffi/paths.ts";
import { minorPath, minorRecordPath } from "../paths.ts";
import { type DeviceChoice, type OpenRequest, parseOpenRequest } from "../protocol/open_request.ts";

/**
 * A tapdisk writes this record of its block device, or of a guest's ring, to the file of the minor.
 * When the tapdisk dies, another one can take the device over: it opens the image as the record says.
 */
export interface MinorRecord extends OpenRequest {
  /** What stays: the node of the block device, such as /dev/ublkb0, or the journal of a ring. */
  readonly node: string;
  /** Whether the image opens only with a key, which is not in the record. */
  readonly encrypted: boolean;
  /** Whether the image became full: what was written since is at its secondary image alone. */
  readonly full?: boolean;
}

/**
 * Writes the record of a block device or of a ring; null when there is none any more. A file beside that
 * of the minor has the new record until it is written: a process that is killed meanwhile leaves the
 * record before or the new one. Throws `SystemError`: there may be none then, or the new one beside the file.
 */
export function writeMinorRecord(minor: number, record: MinorRecord | null): void {
  const path = minorPath(minor);
  const aside = minorRecordPath(minor);
  try {
    if (record === null) {
      removeIfThere(aside);
      return Deno.writeTextFileSync(path, "", { create: false });
    }
    const text = `${JSON.stringify(record)}\n`;
    try {
      writeWhole(aside, text);
    } catch {
      // Such as for want of room. A record that stays, and names what is over, would be worse than none.
      removeIfThere(aside);
    }
    // The file stays the same: whoever holds the minor holds its lock.
    Deno.writeTextFileSync(path, text, { create: false });
    removeIfThere(aside);
  } catch (error) {
    throw systemError(error, `Cannot write ${path}`);
  }
}

/** Writes a file that is there with all of a text, or not at all. */
function writeWhole(path: string, text: string): void {
  const draft = `${path}.draft`;
  removeIfThere(draft);
  {
    using file = Deno.openSync(draft, { write: true, createNew: true, mode: 0o600 });
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
    file.syncSync();
  }
  Deno.renameSync(draft, path);
}

function removeIfThere(path: string): void {
  // There is seldom one, and an error of the runtime takes half a millisecond.
  if (!pathExists(path, { link: true })) return;
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** What the administrator can do about a block device, or a ring, of a tapdisk that died. */
export function recoveryHint(minor: number, device: DeviceChoice): string {
  // The driver removes such a device when its tapdisk dies; the node may still exist.
  if (device === "blktap2") return `'tap-ctl destroy -p PID -m ${minor}' removes the rest`;
  return `'tap-ctl recover -m ${minor}' takes it over, 'tap-ctl destroy -p PID -m ${minor}' ends it`;
}

function parseMinorRecord(value: unknown): MinorRecord | null {
  const request = parseOpenRequest(value);
  if (request === null || typeof value !== "object" || value === null) return null;
  const { node, encrypted, full }: { node?: unknown; encrypted?: unknown; full?: unknown } = value;
  if (typeof node !== "string" || typeof encrypted !== "boolean") return null;
  return { ...request, node, encrypted, ...(full === true ? { full } : {}) };
}

/** The record of a minor's block device or ring, if that still exists; else null. */
export function readMinorRecord(minor: number): MinorRecord | null {
  const record = recordIn(minorPath(minor)) ?? recordIn(minorRecordPath(minor));
  try {
    if (record !== null) Deno.lstatSync(record.node);
    return record;
  } catch {
    return null;
  }
}

/** The record in a file; null when there is none, or a part of one. */
function recordIn(path: string): MinorRecord | null {
  if (!pathExists(path)) return null;
  try {
    const text = Deno.readTextFileSync(path);
    // The file of a minor without a block device or a ring is empty.
    return text === "" ? null : parseMinorRecord(JSON.parse(text));
  } catch {
    return null;
  }
}

/** Removes what a process that was killed has left beside the file of a minor. */
export function removeMinorLeftovers(minor: number): void {
  removeIfThere(minorRecordPath(minor));
  removeIfThere(`${minorRecordPath(minor)}.draft`);
}
