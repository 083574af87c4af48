import { pathExists, pathStatus } from "../../../ffi/paths.ts";
import type { ImageSpec } from "../../driver/driver.ts";
import { parseExportName } from "../../driver/nbd/export_name.ts";
import { isSameFile } from "../../files/open_file.ts";
import { listeningSockets } from "../../frontend/listening.ts";
import type { Device } from "../daemon/device.ts";
import { readMinorRecord } from "../minors/minor_record.ts";

/**
 * Why an image can be opened by this process only; null when it is not so. When the next process failed
 * with such an image, this one could not open it again.
 */
function whyBound({ type, path }: ImageSpec): string | null {
  if (type === "rbd") {
    return "its image is on Ceph, whose lock belongs to this process; pause it first, and unpause it " +
      "after the upgrade";
  }
  if (!type.startsWith("nbd")) return null;
  const { server } = parseExportName(path, undefined, type.startsWith("nbds"));
  if (server.kind === "descriptor") return `its connection ${path} was handed to this process`;
  if (server.kind === "unix" && isServedHere(server.path)) {
    return `its image ${type}:${path} is another disk of this process`;
  }
  return null;
}

/** Whether this process listens at a socket. It accepts no connection while it hands over. */
function isServedHere(path: string): boolean {
  try {
    const file = pathStatus(path);
    return listeningSockets().some(({ at }) => pathExists(at) && isSameFile(pathStatus(at), file));
  } catch {
    return false;
  }
}

/**
 * Why another process would open other files than this one has open; null when it would not. It looks at the
 * files, whose server may not answer: whoever calls has found out that it does.
 */
export function whyOtherFiles({ parts: { vbd } }: Device): string | null {
  const { stray } = vbd.reopening;
  if (stray === null) return null;
  return `${stray} is not the file that is open and has the data; give that its name back, or close the disk`;
}

/** Why another process cannot take a device over, without its minor; null when it can. */
export function whyStaying(device: Device): string | null {
  const { vbd, access, request } = device.parts;
  if (request === null) return vbd.phase === "closed" ? null : "its image is being opened";
  if (vbd.failed) return "a fault has ended its disk; 'tap-ctl recover' opens it again";
  if (vbd.reopening.isRunning) return "its images wait until they can be opened again";
  if (vbd.phase !== "open" && vbd.phase !== "paused") return "its disk changes its state";
  if (vbd.phase === "paused" && vbd.requests.outstanding > 0) {
    return "its disk is paused, and requests wait; 'tap-ctl unpause' lets them end";
  }
  const { secondary } = vbd.statistics();
  if (secondary !== null) return `its secondary image is in the state ${secondary.state}`;
  if (request.existingParent !== null) {
    return "it reads another tapdisk's disk in place of its parent";
  }
  for (const { spec } of vbd.images) {
    const why = whyBound(spec);
    if (why !== null) return why;
  }
  const [first] = vbd.retained.names;
  if (first !== undefined) return `the content of ${first} is in the memory of this process`;
  if (access.isDeviceBound) {
    return `its block device (${access.kind}) is bound to this process; 'tap-ctl destroy' and 'create' ` +
      "make another";
  }
  // The journal of a ring is named in the record.
  const isRecorded = readMinorRecord(device.minor)?.device === "none";
  if (isRecorded && access.rings.journal === null) {
    return "the ring of a guest was left, and tapback has not connected it again";
  }
  if (access.rings.whyStaying !== null) return access.rings.whyStaying;
  for (const { whyStaying } of access.handovers) if (whyStaying !== null) return whyStaying;
  return null;
}
