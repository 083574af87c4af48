/**
 * `src/control/client`: the client side of the control socket: what can be asked of a running
 * tapdisk, and on that the steps that tap-ctl carries out with several messages. The calls block, so
 * they are for short-lived programs: tapdisk must not use them, and nothing here must print.
 *
 * This file has the commands that change one device, each on a connection of its own.
 *
 * @module
 */
import type { Secret } from "../../../ffi/secret.ts";
import { decodeDiskInfo, type DiskInfo } from "../protocol/disk_info.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import {
  encodeOpen,
  encodeResume,
  type OpenRequest,
  type ResumeRequest,
} from "../protocol/open_request.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { encodePause } from "../protocol/pause.ts";
import {
  decodeServeReply,
  encodeServe,
  encodeUnserve,
  type UnserveRequest,
} from "../protocol/serve.ts";
import {
  decodeSnapshotReply,
  encodeSnapshot,
  type SnapshotReply,
  type SnapshotRequest,
} from "../protocol/snapshot.ts";
import { withConnection } from "./connection.ts";

/** How long a tapdisk may take to listen, or to stop. A pause before it may take longer. */
const SERVE_TIMEOUT_MS = 60_000;
/** How long a tapdisk may take to answer that a time limit has passed. */
const GRACE_MS = 1_000;

/** A device: its tapdisk and its minor. */
export interface DeviceAddress {
  readonly pid: number;
  readonly minor: number;
}

/** Time limit of an operation; none by default. */
export interface TimeLimit {
  readonly timeoutMs?: number;
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
  readonly key?: Secret;
}

/** Opens an image on a minor. Throws `SystemError`, `TapdiskError`. */
export function openImage(
  { pid, minor }: DeviceAddress,
  request: OpenRequest,
  { key }: OpenExtras = {},
): DiskInfo {
  return withConnection(pid, Infinity, (connection) => {
    connection.send(encodeOpen(minor, request, { keyBytes: key?.bytes.length }));
    if (key !== undefined) connection.sendKey(key);
    const what = `Cannot open ${request.image} on minor ${minor} of tapdisk ${pid}`;
    return decodeDiskInfo(connection.expect(MessageType.OPEN_RSP, what));
  });
}

/** Serves a disk over TCP; returns where. Throws `SystemError`, `TapdiskError`. */
export function serveDevice({ pid, minor }: DeviceAddress, request: ServeRequest): string {
  return withConnection(pid, SERVE_TIMEOUT_MS, (connection) => {
    connection.send(encodeServe(minor, request));
    const what = `Cannot serve minor ${minor} of tapdisk ${pid}`;
    return decodeServeReply(connection.expect(MessageType.SERVE_RSP, what));
  });
}

/**
 * Opens an image on a minor, and serves it over TCP where the request says so; both or neither.
 * Throws `SystemError`, `TapdiskError`.
 */
export function openAndServe(
  device: DeviceAddress,
  request: OpenRequest,
  extras: OpenExtras = {},
): void {
  openImage(device, request, extras);
  try {
    for (const serve of request.serve) serveDevice(device, serve);
  } catch (error) {
    closeImage(device);
    throw error;
  }
}

/** Ends exports of a disk over TCP. Throws `SystemError`, `TapdiskError`. */
export function unserveDevice({ pid, minor }: DeviceAddress, request: UnserveRequest): void {
  withConnection(pid, SERVE_TIMEOUT_MS, (connection) => {
    connection.send(encodeUnserve(minor, request));
    const what = `Cannot stop serving minor ${minor} of tapdisk ${pid}`;
    connection.expect(MessageType.UNSERVE_RSP, what);
  });
}

/** Closes a minor's image; with `force`, its clients are dropped. */
export function closeImage(
  device: DeviceAddress,
  { force = false, ...limit }: TimeLimit & { force?: boolean } = {},
): void {
  const request = force ? MessageType.FORCE_SHUTDOWN : MessageType.CLOSE;
  order(device, { verb: "close", request, response: MessageType.CLOSE_RSP, ...limit });
}

/**
 * Stops a device's requests and closes its image files. Throws `SystemError`, `TapdiskError`:
 * ETIMEDOUT when requests in flight do not end in time; the device then runs on.
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
 */
export function resumeDevice(
  { pid, minor }: DeviceAddress,
  request: ResumeRequest,
): void {
  withConnection(pid, Infinity, (connection) => {
    connection.send(encodeResume(minor, request));
    const what = `Cannot unpause minor ${minor} of tapdisk ${pid}`;
    connection.expect(MessageType.RESUME_RSP, what);
  });
}
