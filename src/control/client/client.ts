/**
 * What can be asked of a running tapdisk, each a connection of its own: it speaks the protocol and
 * prints nothing. It blocks, so it is for short-lived programs; tapdisk itself never uses it.
 *
 * @module
 */
import { LOG_PAGE_RECORD_BYTES, LOG_PAGE_SECTORS } from "../../driver/log.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { Connection } from "./connection.ts";
import {
  decodeDiskInfo,
  decodeNode,
  decodePid,
  decodeSnapshotReply,
  decodeStatisticsLength,
  decodeWriteLogHead,
  type DiskInfo,
  encodeParams,
  encodePause,
  encodePlain,
  encodeTrailer,
  encodeWriteLogRequest,
  MessageFlag,
  MessageType,
  type SnapshotReply,
} from "../protocol/message.ts";
import { type DeviceChoice, encodeChoices, type QueueChoice } from "../protocol/open_request.ts";

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

/** What an image is opened with, or a device resumed with. */
export interface ImageOptions {
  /** `MessageFlag` bits that stand for themselves: RDONLY, NO_O_DIRECT, ADD_LCACHE, STANDBY. */
  readonly flags?: number;
  /** The minor whose image is the parent. */
  readonly parentMinor?: number;
  /** `type:/path` of a second image. */
  readonly secondary?: string;
  readonly requestTimeoutSeconds?: number;
  /** Which block device the disk becomes; none by default. */
  readonly device?: DeviceChoice;
  readonly queue?: QueueChoice;
  /** The log that a log layer writes. */
  readonly logPath?: string;
  readonly encryptionKey?: Uint8Array;
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

function imageRequest(
  type: number,
  { minor }: DeviceAddress,
  { path, options }: { path: string; options: ImageOptions },
): Uint8Array<ArrayBuffer> {
  const { parentMinor, secondary, logPath, encryptionKey } = options;
  let flags = options.flags ?? 0;
  flags |= encodeChoices(options.device ?? "none", options.queue ?? "auto");
  if (parentMinor !== undefined) flags |= MessageFlag.REUSE_PRT;
  if (secondary !== undefined) flags |= MessageFlag.SECONDARY;
  if (logPath !== undefined) flags |= MessageFlag.ADD_LOG;
  if (encryptionKey !== undefined) flags |= MessageFlag.OPEN_ENCRYPTED;
  const message = encodeParams(type, minor, {
    flags,
    minor,
    path,
    parentMinor: parentMinor ?? -1,
    requestTimeoutSeconds: options.requestTimeoutSeconds ?? 0,
    secondary: secondary ?? "",
  });
  const trailer = encodeTrailer({
    logPath: logPath ?? null,
    encryptionKey: encryptionKey ?? null,
  });
  const request = new Uint8Array(message.length + trailer.length);
  request.set(message);
  request.set(trailer, message.length);
  return request;
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

/** Opens an image, `type:/path`, on a minor. Throws `SystemError`, `TapdiskError`. */
export function openImage(
  device: DeviceAddress,
  path: string,
  options: ImageOptions = {},
): DiskInfo {
  return withConnection(device.pid, Infinity, (connection) => {
    connection.send(imageRequest(MessageType.OPEN, device, { path, options }));
    const what = `Cannot open ${path} on minor ${device.minor} of tapdisk ${device.pid}`;
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
 * the device then runs on with the image that it had.
 *
 * @param path Of the new image; with `rename`, of the running one from now on: its name goes to the
 * new one.
 */
export function snapshotDevice(
  { pid, minor }: DeviceAddress,
  path: string,
  { rename, timeoutSeconds }: { rename: boolean; timeoutSeconds: number },
): SnapshotReply {
  return withConnection(pid, Infinity, (connection) => {
    connection.send(encodeParams(MessageType.SNAPSHOT, minor, {
      flags: rename ? MessageFlag.RENAME : 0,
      minor,
      path,
      parentMinor: -1,
      requestTimeoutSeconds: timeoutSeconds,
      secondary: "",
    }));
    const what = `Cannot make a snapshot of minor ${minor} of tapdisk ${pid}`;
    return decodeSnapshotReply(connection.expect(MessageType.SNAPSHOT_RSP, what));
  });
}

/** Opens a paused device's image again, or another one, and lets its requests go on. */
export function resumeDevice(
  device: DeviceAddress,
  path: string,
  options: ImageOptions = {},
): void {
  withConnection(device.pid, Infinity, (connection) => {
    connection.send(imageRequest(MessageType.RESUME, device, { path, options }));
    const what = `Cannot unpause minor ${device.minor} of tapdisk ${device.pid}`;
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
