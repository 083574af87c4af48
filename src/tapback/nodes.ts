/**
 * The nodes that tapback writes beside the state of its side (Xen's public io/blkif.h).
 *
 * @module
 */
import { MOST_RING_PAGE_ORDER } from "../../ffi/blkif_ring.ts";
import type { DiskInfo } from "../control/protocol/disk_info.ts";
import type { GuestRing } from "../control/protocol/guest_ring.ts";
import { type DeviceSeen, RING_NODE } from "./observation.ts";

/** Bits of `info` (VDISK_* of io/blkif.h). */
const VDISK_CDROM = 1;
const VDISK_READONLY = 4;

/** Nodes by name. */
type Values = Record<string, string>;

/** Those of `values` that are not in xenstore. */
function missing(seen: DeviceSeen, values: Values): Values {
  return Object.fromEntries(
    Object.entries(values).filter(([name, value]) => seen.own.get(name) !== value),
  );
}

/** What a guest needs before it makes its ring. */
export function initialNodes(seen: DeviceSeen): Values {
  return missing(seen, { "max-ring-page-order": String(MOST_RING_PAGE_ORDER) });
}

/**
 * What names the tapdisk. A disk that another tapdisk took over has the nodes by which the
 * toolstack's script ends it.
 */
export function tapdiskNodes(
  seen: DeviceSeen,
  { pid, minor }: { readonly pid: number; readonly minor: number },
): Values {
  const values: Values = { "kthread-pid": String(pid) };
  const path = seen.own.get("physical-device-path") ?? null;
  if (path !== null && seen.disk !== null && seen.disk.pid !== pid) {
    values["physical-device-path"] = path.replace(/nbd\d+\.\d+$/, `nbd${pid}.${minor}`);
    if (seen.own.get("pid") !== null) values.pid = String(pid);
  }
  return missing(seen, values);
}

/** What is chosen for all devices. */
export interface DeviceOptions {
  /** Whether barriers are offered. */
  readonly barrier: boolean;
}

/** A ring as text: two that are equal are the same ring. */
export function ringText({ references, port, protocol }: GuestRing): string {
  return `${references.join(",")} ${port} ${protocol}`;
}

/** What tells a tapback that starts later which ring is connected. */
export function ringNodes(seen: DeviceSeen, ring: string): Values {
  return missing(seen, { [RING_NODE]: ring });
}

/** What a guest reads when this side is connected, and whether its disk is not what it was told. */
export function connectedNodes(
  seen: DeviceSeen,
  disk: DiskInfo,
  { barrier }: DeviceOptions,
): { readonly nodes: Values; readonly isNew: boolean } {
  const info = disk.info | (seen.isCdrom ? VDISK_CDROM : 0) |
    (seen.isWritable ? 0 : VDISK_READONLY);
  const size: Values = {
    "sector-size": String(disk.sectorSizeBytes),
    sectors: String(disk.sectors),
    info: String(info),
  };
  const nodes = { "feature-barrier": barrier ? "1" : "0", ...size };
  return { nodes, isNew: Object.keys(missing(seen, size)).length > 0 };
}
