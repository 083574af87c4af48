import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { DeviceMaker } from "../../frontend/block_device.ts";
import { readMinorRecord, recoveryHint } from "../minors/minor_record.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import { type DevicePlan, makersFor } from "./disk_access.ts";

/** What is done with the block device of a disk, and what its minor has from before. */
export interface PlannedDevice {
  readonly plan: DevicePlan;
  /** The journal of a ring that a tapdisk before left. */
  readonly leftJournal: string | null;
  /** Whether the file of the minor has a record. */
  readonly isRecorded: boolean;
}

/**
 * Which block device is made, or taken over from a tapdisk that had the minor and died. Throws
 * `SystemError`: EBUSY, ESTALE, EOPNOTSUPP.
 */
export function planDevice(
  { image, device }: OpenRequest,
  minor: number,
  known: readonly DeviceMaker[],
): PlannedDevice {
  const orphan = readMinorRecord(minor);
  // The users of a ring do not see which kind of block device there is beside it.
  const isRing = orphan?.device === "none";
  const isSame = orphan?.image === image && (isRing || orphan.device === device);
  if (orphan !== null && !isSame) {
    const was = `${orphan.node} was left there with ${orphan.image}`;
    const hint = `${was}; ${recoveryHint(minor, orphan.device)}`;
    throw new SystemError(Errno.EBUSY, `Cannot open ${image} on minor ${minor} (${hint})`);
  }
  if (orphan?.full === true) {
    const hint = `it became full, and what was written since is in ${orphan.secondary} alone; ` +
      `'tap-ctl destroy -p PID -m ${minor}' ends the device`;
    throw new SystemError(Errno.ESTALE, `Cannot open ${image} on minor ${minor} (${hint})`);
  }
  const leftJournal = isRing ? orphan.node : null;
  const makers = makersFor(device, known);
  const recover = isRing ? null : orphan?.node ?? null;
  const plan = { makers, required: device !== "auto", recover };
  return { plan, leftJournal, isRecorded: orphan !== null };
}
