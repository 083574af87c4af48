import { closeFile } from "../../../ffi/files.ts";
import { handedOver } from "../../driver/nbd/handed_over.ts";
import { listeningSockets } from "../../frontend/listening.ts";
import type { Device } from "../daemon/device.ts";
import type { UnansweredCommand } from "../daemon/server.ts";
import type { DiskKey } from "../../vhd/key.ts";
import type { HandoverChannel } from "./channel.ts";
import { MOST_DESCRIPTORS } from "./channel.ts";
import { type DiskFrame, encodeBytes, type OldFrame } from "./frames.ts";

/** What is handed over besides the listening sockets and handed-over connections of the process. */
export interface Inventory {
  /** All devices. Their clients are quiet, and their disks are paused. */
  readonly devices: readonly Device[];
  /** Those of them that their users have paused. */
  readonly pausedBefore: readonly Device[];
  /** Descriptors of files that are locked. */
  readonly locks: readonly number[];
  readonly commands: readonly UnansweredCommand[];
}

/** Calls `each` with so many at a time as a frame carries. */
function inFrames<T>(all: readonly T[], each: (some: readonly T[]) => void): void {
  for (let i = 0; i < all.length; i += MOST_DESCRIPTORS) each(all.slice(i, i + MOST_DESCRIPTORS));
}

/** What another process needs to open a disk. */
function diskFrame({ minor, parts }: Device): DiskFrame {
  const { vbd, access, request } = parts;
  const counts = Object.fromEntries(
    Object.entries(vbd.requests.counts).filter(([, value]) => typeof value === "number"),
  );
  if (request === null) return { kind: "disk", minor, request, sectors: 0, counts };
  // Without a block device, the new process must not make one.
  const now = { ...request, image: vbd.name, device: access.kind, limits: vbd.requests.limits };
  return { kind: "disk", minor, request: now, sectors: vbd.sectors, counts };
}

/** Whether the user of a disk has paused it. */
export function isPaused({ parts: { vbd } }: Device): boolean {
  return vbd.phase === "paused" && !vbd.reopening.isRunning;
}

/**
 * What is needed for devices, and not all versions know: kinds of frames and of block devices.
 *
 * @param paused Those that their users have paused.
 */
export function neededKinds(
  devices: readonly Device[],
  paused: readonly Device[] = devices.filter(isPaused),
): string[] {
  const handovers = devices.flatMap(({ parts }) => parts.access.handovers);
  return [
    ...(paused.length > 0 ? ["paused"] : []),
    ...(devices.some(({ parts }) => parts.key !== undefined) ? ["key"] : []),
    ...new Set(handovers.map(({ needs }) => needs).filter((kind) => kind !== null)),
    ...(devices.some(({ parts }) => parts.access.rings.count > 0) ? ["ring"] : []),
  ];
}

/**
 * What the new process was told that it needs to know. Until users wait, disks get devices, clients and rings;
 * an earlier version would make another block device in place of one that it does not know to take over.
 */
export class ToldNeeds {
  readonly #told = new Set<string>();

  /** Those of the kinds that were not told before; they are told now. */
  news(kinds: readonly string[]): string[] {
    const news = kinds.filter((kind) => !this.#told.has(kind));
    for (const kind of news) this.#told.add(kind);
    return news;
  }
}

/** Hands a key over. The descriptor is the channel's and the other process's from then on. */
function tellKey(minor: number, key: DiskKey, tell: Teller): void {
  const fd = key.forAnother();
  try {
    tell({ kind: "key", minor }, [fd]);
  } finally {
    closeFile(fd);
  }
}

type Teller = (frame: OldFrame, descriptors?: readonly number[]) => void;

/** Tells the new process of all that it takes over. Throws `SystemError`. */
export function tellAll(
  channel: HandoverChannel,
  { devices, pausedBefore, locks, commands }: Inventory,
  untilMs: number,
): void {
  const tell: Teller = (frame, descriptors = []) => channel.send(frame, descriptors, untilMs);
  inFrames(locks, (some) => tell({ kind: "locks" }, some));
  inFrames(
    listeningSockets(),
    (some) => tell({ kind: "sockets", at: some.map(({ at }) => at) }, some.map(({ fd }) => fd)),
  );
  const handed = handedOver.all();
  tell({ kind: "handed", names: handed.map(([name]) => name) }, handed.map(([, fd]) => fd));
  for (const device of devices) {
    const { minor, parts: { key } } = device;
    if (pausedBefore.includes(device)) tell({ kind: "paused", minor });
    if (key !== undefined) tellKey(minor, key, tell);
    tell(diskFrame(device));
  }
  for (const { minor, parts } of devices) {
    parts.access.handovers.forEach((clients, frontend) => {
      for (const { fd, state, rest, isTls } of clients.handOver()) {
        const kind = isTls ? "tls" : "client";
        tell({ kind, minor, frontend, state, rest: encodeBytes(rest) }, [fd]);
      }
    });
  }
  for (const { minor, parts } of devices) {
    for (const { fd, ...ring } of parts.access.rings.handOver()) {
      tell({ kind: "ring", minor, ...ring }, [fd]);
    }
  }
  for (const { connection: { fd }, begun } of commands) {
    tell({ kind: "command", begun: encodeBytes(begun) }, [fd]);
  }
  tell({ kind: "open" });
}
