/**
 * What can be asked of a running tapdisk, each a connection of its own: it speaks the protocol and
 * prints nothing. It blocks, so it is for short-lived programs; tapdisk itself never uses it.
 *
 * @module
 */
import { LOG_PAGE_RECORD_BYTES, LOG_PAGE_SECTORS } from "../../driver/log.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { Connection } from "./connection.ts";
import { decodeNode, decodePid } from "../protocol/answers.ts";
import { decodeDiskInfo, type DiskInfo } from "../protocol/disk_info.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import {
  encodeOpen,
  encodeResume,
  type ForeignOptions,
  type OpenRequest,
} from "../protocol/open_request.ts";
import { encodePause } from "../protocol/pause.ts";
import {
  decodeSnapshotReply,
  encodeSnapshot,
  type SnapshotReply,
  type SnapshotRequest,
} from "../protocol/snapshot.ts";
import { decodeStatisticsLength } from "../protocol/statistics.ts";
import { decodeWriteLogHead, encodeWriteLogRequest } from "../protocol/write_log.ts";

/** How long questions may take that a tapdisk answers at once. */
export const QUESTION_TIMEOUT_MS = 10_000;

/** How long a tapdisk may take to say that a time limit is over. */
const GRACE_MS = 1_000;

/** Which device of which tapdisk. */
export interface DeviceAddress {
  readonly pid: number;
  readonly minor: number;
}

/** Time limit of an operation; without one it takes as long as it takes. */
export interface TimeLimit {
  readonly timeoutMs?: number;
}

function withConnection<Result>(
  pid: number,
  timeoutMs: number,
  work: (connection: Connection) => Result,
): Result {
  const connection = new Connection(pid, timeoutMs);
  try {
    return work(connection);
  } finally {
    connection.close();
  }
}

function order(
  { pid, minor }: DeviceAddress,
  { verb, request, response, timeoutMs = Infinity }: {
    verb: string;
    request: number;
    response: number;
  } & TimeLimit,
): void {
  withConnection(pid, timeoutMs, (connection) => {
    connection.send(encodePlain(request, minor));
    connection.expect(response, `Cannot ${verb} minor ${minor} of tapdisk ${pid}`);
  });
}

/** The process that answers at a control socket. Throws `SystemError`. */
export function askPid(pid: number): number {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.PID, 0));
    return decodePid(connection.expect(MessageType.PID_RSP, `Cannot ask tapdisk ${pid}`));
  });
}

/** Gives a tapdisk a minor. Throws `SystemError`, `TapdiskError`. */
export function attachDevice(device: DeviceAddress): void {
  const { ATTACH, ATTACH_RSP } = MessageType;
  order(device, { verb: "attach", request: ATTACH, response: ATTACH_RSP });
}

/** Takes a minor without an image from a tapdisk. Throws `SystemError`, `TapdiskError`. */
export function detachDevice(device: DeviceAddress, limit: TimeLimit = {}): void {
  const { DETACH, DETACH_RSP } = MessageType;
  order(device, { verb: "detach", request: DETACH, response: DETACH_RSP, ...limit });
}

/** What goes with an open request. */
export interface OpenExtras {
  /** The key of an encrypted image. */
  readonly key?: Uint8Array;
  readonly foreign?: ForeignOptions;
}

/** Opens an image on a minor. Throws `SystemError`, `TapdiskError`. */
export function openImage(
  { pid, minor }: DeviceAddress,
  request: OpenRequest,
  extras: OpenExtras = {},
): DiskInfo {
  return withConnection(pid, Infinity, (connection) => {
    connection.send(encodeOpen(minor, request, extras));
    const what = `Cannot open ${request.image} on minor ${minor} of tapdisk ${pid}`;
    return decodeDiskInfo(connection.expect(MessageType.OPEN_RSP, what));
  });
}

/** Closes a minor's image; with `force`, without regard to its clients. */
export function closeImage(
  device: DeviceAddress,
  { force = false, ...limit }: TimeLimit & { force?: boolean } = {},
): void {
  const request = force ? MessageType.FORCE_SHUTDOWN : MessageType.CLOSE;
  order(device, { verb: "close", request, response: MessageType.CLOSE_RSP, ...limit });
}

/**
 * Stops a device's requests and closes its image files. Throws `SystemError`, `TapdiskError`:
 * ETIMEDOUT when requests under way do not end in time; the device then runs on.
 */
export function pauseDevice(
  { pid, minor }: DeviceAddress,
  { timeoutMs = Infinity }: TimeLimit = {},
): void {
  withConnection(pid, timeoutMs + GRACE_MS, (connection) => {
    connection.send(encodePause(minor, timeoutMs));
    connection.expect(MessageType.PAUSE_RSP, `Cannot pause minor ${minor} of tapdisk ${pid}`);
  });
}

/**
 * Puts a new image on top of a device's image while it runs. Throws `SystemError`, `TapdiskError`;
 * the device then keeps the image that it had.
 */
export function snapshotDevice(
  { pid, minor }: DeviceAddress,
  request: SnapshotRequest,
): SnapshotReply {
  return withConnection(pid, Infinity, (connection) => {
    connection.send(encodeSnapshot(minor, request));
    const what = `Cannot make a snapshot of minor ${minor} of tapdisk ${pid}`;
    return decodeSnapshotReply(connection.expect(MessageType.SNAPSHOT_RSP, what));
  });
}

/**
 * Opens a paused device's image again, or another one, and releases its requests. Throws
 * `SystemError`, `TapdiskError`.
 *
 * @param image `type:/path`, or null for the image that it had.
 */
export function resumeDevice(
  { pid, minor }: DeviceAddress,
  image: string | null,
  foreign: ForeignOptions = {},
): void {
  withConnection(pid, Infinity, (connection) => {
    connection.send(encodeResume(minor, image, foreign));
    const what = `Cannot unpause minor ${minor} of tapdisk ${pid}`;
    connection.expect(MessageType.RESUME_RSP, what);
  });
}

/** A device's statistics, as the JSON text that the tapdisk made. */
export function deviceStatistics({ pid, minor }: DeviceAddress): string {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.STATS, minor));
    const what = `Cannot get the statistics of minor ${minor} of tapdisk ${pid}`;
    const head = connection.expect(MessageType.STATS_RSP, what);
    return new TextDecoder().decode(connection.receive(decodeStatisticsLength(head)));
  });
}

/**
 * The node of the block device that a minor's disk is; null without one. Throws `SystemError`,
 * `TapdiskError`.
 */
export function askNode({ pid, minor }: DeviceAddress): string | null {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.NODE, minor));
    const what = `Cannot get the block device of minor ${minor} of tapdisk ${pid}`;
    return decodeNode(connection.expect(MessageType.NODE_RSP, what));
  });
}

/** The disk that a minor has. Throws `SystemError`, `TapdiskError`. */
export function askDiskInfo({ pid, minor }: DeviceAddress): DiskInfo {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.DISK_INFO, minor));
    const what = `Cannot get the size of minor ${minor} of tapdisk ${pid}`;
    return decodeDiskInfo(connection.expect(MessageType.DISK_INFO_RSP, what));
  });
}

/** Which sectors of a device changed. */
export interface DeviceLog {
  /** Size of the device, sectors. */
  readonly sectors: number;
  /** Runs of changed sectors in order: the first, and how many. */
  readonly runs: readonly (readonly [sector: number, count: number])[];
}

/** The runs of bits of a log's pages. */
function runsOf(pages: Uint8Array): [number, number][] {
  const runs: [number, number][] = [];
  const view = new DataView(pages.buffer, pages.byteOffset);
  for (let at = 0; at < pages.length; at += LOG_PAGE_RECORD_BYTES) {
    const bits = pages.subarray(at + 4, at + LOG_PAGE_RECORD_BYTES);
    const first = view.getUint32(at, true) * LOG_PAGE_SECTORS;
    for (let bit = 0; bit < LOG_PAGE_SECTORS;) {
      const end = runEnd(bits, bit, LOG_PAGE_SECTORS);
      const last = runs.at(-1);
      if (testBit(bits, bit)) {
        if (last !== undefined && last[0] + last[1] === first + bit) last[1] += end - bit;
        else runs.push([first + bit, end - bit]);
      }
      bit = end;
    }
  }
  return runs;
}

/**
 * The sectors that changed since a device was opened as `log:…`, or since the log was cleared.
 * Throws `SystemError`, `TapdiskError`.
 */
export function deviceLog(
  { pid, minor }: DeviceAddress,
  { clear = false }: { clear?: boolean } = {},
): DeviceLog {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodeWriteLogRequest(minor, clear));
    const what = `Cannot get the log of minor ${minor} of tapdisk ${pid}`;
    const head = decodeWriteLogHead(connection.expect(MessageType.WRITE_LOG_RSP, what));
    return { sectors: head.sectors, runs: runsOf(connection.receive(head.lengthBytes)) };
  });
}
