/**
 * What xenstore has of a device: its nodes, read and checked. A guest writes the nodes of its frontend
 * as it likes; what is not valid here is not used.
 *
 * @module
 */
import { BlkifProtocol, MOST_RING_PAGE_ORDER } from "../../ffi/blkif_ring.ts";
import type { GuestDevice, GuestRing } from "../control/protocol/guest_ring.ts";
import { shown, stateOf, XenbusState } from "./xenbus.ts";

/** Reads one node; null when there is none. */
export type ReadNode = (path: string) => string | null;

/** The disk that a device is to have: a minor, and the tapdisk that is named with it. */
export interface WantedDisk {
  /** Null when only a device of the kernel's blktap driver is known. */
  readonly pid: number | null;
  readonly minor: number;
  /** The major number of that device; null with `pid`. */
  readonly major: number | null;
}

/** The guest's side of a device. */
export interface FrontendSeen {
  /** A `XenbusState`. */
  readonly state: number;
  /** Its ring, in states 3 and 4; null when what it wrote is no ring. */
  readonly ring: GuestRing | null;
  /** What is wrong with its ring; empty when nothing is. */
  readonly fault: string;
}

/** A device, as xenstore has it. */
export interface DeviceSeen {
  /** The path of the guest's side. */
  readonly frontendPath: string;
  /** The state of this side, as text; empty when there is none. */
  readonly stateText: string;
  readonly state: number;
  /** Null when the guest's side does not exist. */
  readonly frontend: FrontendSeen | null;
  /** False when the toolstack removes the device. */
  readonly isOnline: boolean;
  /** Whether the toolstack's script has done its work. */
  readonly isReady: boolean;
  readonly isWritable: boolean;
  readonly isCdrom: boolean;
  readonly allowsDiscard: boolean;
  /** Null when there is no disk, as in an empty drive. */
  readonly disk: WantedDisk | null;
  /** The present values of nodes that this side writes; null for those that do not exist. */
  readonly own: ReadonlyMap<string, string | null>;
}

/**
 * The node with the ring that a tapdisk has, for a tapback that starts later. It is written before the
 * tapdisk is asked, and emptied after the tapdisk has let go of the ring.
 */
export const RING_NODE = "tapback-ring";

/** The node with the minor of the disk, and what tells it from a later one with the same number. */
export const MINOR_NODE = "tapback-minor";

/** The nodes whose present values are looked at before they are written. */
const OWN_NODES = [
  "max-ring-page-order",
  "kthread-pid",
  "sectors",
  "sector-size",
  "info",
  "feature-discard",
  "feature-max-indirect-segments",
  "pid",
  "physical-device-path",
  MINOR_NODE,
  RING_NODE,
] as const;

/** A whole number up to a limit; null for any other text. */
function numberOf(text: string | null, most: number): number | null {
  if (text === null || !/^\d{1,10}$/.test(text)) return null;
  const number = Number(text);
  return number <= most ? number : null;
}

const MOST_U32 = 0xffff_ffff;
const MOST_PID = 0x7fff_ffff;

/** The protocols by the names that guests write (io/protocols.h). This machine is x86-64. */
const PROTOCOLS: ReadonlyMap<string, BlkifProtocol> = new Map<string, BlkifProtocol>([
  ["x86_32-abi", BlkifProtocol.X86_32],
  ["x86_64-abi", BlkifProtocol.Native],
]);

/** A fault of a guest's ring. */
class RingFault extends Error {}

function wantNumber(name: string, text: string | null, most = MOST_U32): number {
  const number = numberOf(text, most);
  if (number !== null) return number;
  throw new RingFault(`${name} is ${text === null ? "missing" : shown(text)}`);
}

function protocolOf(text: string | null): BlkifProtocol {
  if (text === null) return BlkifProtocol.X86_32;
  const protocol = PROTOCOLS.get(text);
  if (protocol !== undefined) return protocol;
  throw new RingFault(`protocol is ${shown(text)}`);
}

/** How a ring is served: nodes that the toolstack writes. */
interface Service {
  readonly pollDurationUs: number;
  readonly pollIdleThreshold: number;
  readonly isReadOnly: boolean;
}

function ringOf(read: ReadNode, path: string, guest: GuestDevice, service: Service): GuestRing {
  const orderText = read(`${path}/ring-page-order`);
  const order = orderText === null
    ? 0
    : wantNumber("ring-page-order", orderText, MOST_RING_PAGE_ORDER);
  const names = order === 0
    ? ["ring-ref"]
    : Array.from({ length: 1 << order }, (_, i) => `ring-ref${i}`);
  return {
    ...guest,
    references: names.map((name) => wantNumber(name, read(`${path}/${name}`))),
    port: wantNumber("event-channel", read(`${path}/event-channel`)),
    protocol: protocolOf(read(`${path}/protocol`)),
    ...service,
  };
}

/** The largest polling time, microseconds: no guest keeps a processor for longer. */
const MOST_POLL_US = 1_000_000;

function frontendOf(
  read: ReadNode,
  path: string,
  guest: GuestDevice,
  service: Service,
): FrontendSeen | null {
  const text = read(`${path}/state`);
  if (text === null) return null;
  const state = stateOf(text);
  // In other states there is no ring, or it does not matter.
  const hasRing = state === XenbusState.INITIALISED || state === XenbusState.CONNECTED;
  if (!hasRing) return { state, ring: null, fault: "" };
  try {
    return { state, ring: ringOf(read, path, guest, service), fault: "" };
  } catch (error) {
    if (!(error instanceof RingFault)) throw error;
    return { state, ring: null, fault: error.message };
  }
}

/**
 * The disk that the toolstack chose: `physical-device-path`, which is the path of a tapdisk's NBD
 * socket, or `physical-device`, a device of the kernel's blktap driver, whose minor is a tapdisk's.
 */
function diskOf(read: ReadNode, path: string): WantedDisk | null {
  const socket = read(`${path}/physical-device-path`);
  if (socket !== null) {
    const [, pid = null, minor = null] = /\/nbd(\d+)\.(\d+)$/.exec(socket) ?? [];
    const [pidNumber, minorNumber] = [numberOf(pid, MOST_PID), numberOf(minor, MOST_PID)];
    return pidNumber === null || minorNumber === null
      ? null
      : { pid: pidNumber, minor: minorNumber, major: null };
  }
  const [, major, minor] = /^([0-9a-fA-F]{1,8}):([0-9a-fA-F]{1,5})$/.exec(
    read(`${path}/physical-device`) ?? "",
  ) ?? [];
  return minor === undefined
    ? null
    : { pid: null, minor: parseInt(minor, 16), major: parseInt(major, 16) };
}

/**
 * Reads a device.
 *
 * @param path The folder of the device's own side.
 * @returns Null when it does not exist.
 */
export function observe(read: ReadNode, path: string, guest: GuestDevice): DeviceSeen | null {
  const frontendPath = read(`${path}/frontend`);
  if (frontendPath === null) return null;
  const stateText = read(`${path}/state`) ?? "";
  const isWritable = read(`${path}/mode`) === "w";
  const service = {
    pollDurationUs: numberOf(read(`${path}/polling-duration`), MOST_POLL_US) ?? 0,
    pollIdleThreshold: numberOf(read(`${path}/polling-idle-threshold`), 100) ?? 0,
    isReadOnly: !isWritable,
  };
  const isAbsolute = /^\/[^\0]*[^/\0]$/.test(frontendPath);
  const kind = read(`${path}/device-type`) ??
    (isAbsolute ? read(`${frontendPath}/device-type`) : null);
  return {
    frontendPath,
    stateText,
    state: stateOf(stateText),
    frontend: isAbsolute ? frontendOf(read, frontendPath, guest, service) : null,
    isOnline: read(`${path}/online`) !== "0",
    isReady: read(`${path}/hotplug-status`) === "connected",
    isWritable,
    isCdrom: kind === "cdrom",
    allowsDiscard: read(`${path}/discard-enable`) !== "0",
    disk: diskOf(read, path),
    own: new Map(OWN_NODES.map((name) => [name, read(`${path}/${name}`)])),
  };
}
