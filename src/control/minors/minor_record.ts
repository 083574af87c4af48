import { systemError } from "../../../ffi/errno.ts";
import { minorPath } from "../paths.ts";
import {
  DEVICE_CHOICES,
  type DeviceChoice,
  QUEUE_CHOICES,
  type QueueChoice,
} from "../protocol/open_request.ts";

/**
 * What a tapdisk notes of a block device in the file of its minor, so that another one can take the
 * device over when it dies.
 */
export interface MinorRecord {
  /** Its node, such as /dev/ublkb0. */
  readonly node: string;
  readonly device: DeviceChoice;
  readonly queue: QueueChoice;
  /** `type:/path` */
  readonly image: string;
  readonly readOnly: boolean;
  readonly direct: boolean;
  readonly requestTimeoutSeconds: number;
  /** Whether the image opens with a key only, which is not noted. */
  readonly encrypted: boolean;
}

/** Notes a block device, or with null that there is none any more. Throws `SystemError`. */
export function writeMinorRecord(minor: number, record: MinorRecord | null): void {
  const path = minorPath(minor);
  try {
    // The file stays the same: whoever holds the minor holds its lock.
    Deno.writeTextFileSync(path, record === null ? "" : `${JSON.stringify(record)}\n`, {
      create: false,
    });
  } catch (error) {
    throw systemError(error, `Cannot write ${path}`);
  }
}

/** What can be done about a block device that a tapdisk left when it died. */
export function waysOut(minor: number, device: DeviceChoice): string {
  // The driver has taken such a device away; a node may be left.
  if (device === "blktap2") return `'tap-ctl destroy -p PID -m ${minor}' removes the rest`;
  return `'tap-ctl recover -m ${minor}' takes it over, 'tap-ctl destroy -p PID -m ${minor}' ends it`;
}

function isRecord(value: unknown): value is MinorRecord {
  if (typeof value !== "object" || value === null) return false;
  const fields = new Map(Object.entries(value));
  const texts = ["node", "image"].every((name) => typeof fields.get(name) === "string");
  const flags = ["readOnly", "direct", "encrypted"]
    .every((name) => typeof fields.get(name) === "boolean");
  return texts && flags && typeof fields.get("requestTimeoutSeconds") === "number" &&
    DEVICE_CHOICES.some((choice) => choice === fields.get("device")) &&
    QUEUE_CHOICES.some((choice) => choice === fields.get("queue"));
}

/** The block device that is noted for a minor, if it is there still; else null. */
export function readMinorRecord(minor: number): MinorRecord | null {
  try {
    const value: unknown = JSON.parse(Deno.readTextFileSync(minorPath(minor)));
    if (!isRecord(value)) return null;
    Deno.lstatSync(value.node);
    return value;
  } catch {
    // Most minors' files are empty, as the reference's all are.
    return null;
  }
}
