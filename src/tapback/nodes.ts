/**
 * The nodes that tapback writes beside the state of its side (Xen's public io/blkif.h).
 *
 * @module
 */
import { MOST_RING_PAGE_ORDER } from "../../ffi/blkif_ring.ts";
import { type DiskInfo, RingFeature } from "../control/protocol/disk_info.ts";
import type { GuestRing } from "../control/protocol/guest_ring.ts";
import { type DeviceSeen, MINOR_NODE, RING_NODE } from "./observation.ts";

/** Bits of `info` (VDISK_* of io/blkif.h). */
const VDISK_CDROM = 1;
const VDISK_READONLY = 4;

/** Nodes by name. */
type Values = Record<string, string>;

/** The most segments of a request with a table of them. */
const MOST_SEGMENTS = "256";
/** A discard frees what it can; what it cannot free, it leaves. */
const DISCARD: Values = {
  "feature-discard": "1",
  "discard-granularity": "4096",
  "discard-alignment": "0",
  "discard-secure": "0",
};

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
  { pid, minor, file }: { readonly pid: number; readonly minor: number; readonly file: string },
): Values {
  const values: Values = { "kthread-pid": String(pid), [MINOR_NODE]: `${minor} ${file}` };
  const path = seen.own.get("physical-device-path") ?? null;
  if (path !== null && seen.disk !== null && seen.disk.pid !== pid) {
    values["physical-device-path"] = path.replace(/nbd\d+\.\d+$/, `nbd${pid}.${minor}`);
    if (seen.own.get("pid") !== null) values.pid = String(pid);
  }
  return missing(seen, values);
}

/** What was noted by `tapdiskNodes` of the disk that is named; empty when that is nothing. */
export function fileOf(
  seen: DeviceSeen,
  { pid, minor }: { readonly pid: number | null; readonly minor: number },
): string {
  if (seen.own.get("kthread-pid") !== String(pid)) return "";
  const text = seen.own.get(MINOR_NODE) ?? "";
  const [, number, file = ""] = /^(\d{1,10}) (.*)$/.exec(text) ?? [];
  return Number(number) === minor ? file : "";
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

/** A tapdisk and the ring that it has, as `RING_NODE` has it. */
export function ringRecord(
  { pid, minor }: { readonly pid: number; readonly minor: number },
  ring: GuestRing,
): string {
  return `${pid}.${minor} ${ringText(ring)}`;
}

/** What `RING_NODE` says; null when it says nothing. */
export function recordOf(
  seen: DeviceSeen,
): { readonly pid: number; readonly minor: number; readonly ring: string } | null {
  const text = seen.own.get(RING_NODE) ?? "";
  const [, pid, minor, ring] = /^(\d{1,10})\.(\d{1,10}) (.*)$/.exec(text) ?? [];
  return pid === undefined ? null : { pid: Number(pid), minor: Number(minor), ring };
}

/** What notes that another tapdisk has gone on with the ring that is noted; nothing when that is noted. */
export function movedRecord(
  seen: DeviceSeen,
  { pid, minor }: { readonly pid: number; readonly minor: number },
): Values {
  const record = recordOf(seen);
  if (record === null || (record.pid === pid && record.minor === minor)) return {};
  return { [RING_NODE]: `${pid}.${minor} ${record.ring}` };
}

/** The nodes of a feature; what was offered with another tapdisk before is taken back. */
function offered(seen: DeviceSeen, name: string, isOffered: boolean, nodes: Values): Values {
  if (isOffered) return nodes;
  return (seen.own.get(name) ?? null) === null ? {} : { [name]: "0" };
}

/** What a guest reads when this side is connected, and whether its disk is not what it was told. */
export function connectedNodes(
  seen: DeviceSeen,
  { info: disk, ringFeatures }: { readonly info: DiskInfo; readonly ringFeatures: number },
  { barrier }: DeviceOptions,
): { readonly nodes: Values; readonly isNew: boolean } {
  const info = disk.info | (seen.isCdrom ? VDISK_CDROM : 0) |
    (seen.isWritable ? 0 : VDISK_READONLY);
  const size: Values = {
    "sector-size": String(disk.sectorSizeBytes),
    sectors: String(disk.sectors),
    info: String(info),
  };
  const can = (feature: number): boolean => (ringFeatures & feature) !== 0;
  const nodes: Values = {
    "feature-barrier": barrier ? "1" : "0",
    "feature-flush-cache": can(RingFeature.FLUSH) ? "1" : "0",
    ...offered(seen, "feature-max-indirect-segments", can(RingFeature.INDIRECT), {
      "feature-max-indirect-segments": MOST_SEGMENTS,
    }),
    ...offered(
      seen,
      "feature-discard",
      can(RingFeature.DISCARD) && seen.allowsDiscard && seen.isWritable,
      DISCARD,
    ),
    ...size,
  };
  return { nodes, isNew: Object.keys(missing(seen, size)).length > 0 };
}
