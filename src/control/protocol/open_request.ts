import { Errno, SystemError } from "../../../ffi/errno.ts";
import { DEVICE_KINDS } from "../../frontend/block_device.ts";
import { areRateLimits, isLimited, NO_LIMITS, type RateLimits } from "../../vbd/rate_limits.ts";
import { RETRY_POLICIES, type RetryPolicy } from "../../vbd/retry.ts";
import type { OpenOptions } from "../../vbd/vbd.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { parseServeRequest } from "./serve.ts";
import { ALL_MINORS, messageCookie, MessageType } from "./message.ts";
import {
  decodeParams,
  encodeParams,
  encodeTrailer,
  logPath,
  MessageFlag,
  type Params,
  requestLimits,
} from "./params.ts";

/** Kinds of block device that a disk can be served as, in the order of their numbers in a message. */
export const DEVICE_CHOICES = ["none", "auto", ...DEVICE_KINDS] as const;
/** One of `DEVICE_CHOICES`. */
export type DeviceChoice = (typeof DEVICE_CHOICES)[number];

/** The kernel's interfaces for disk I/O, in the order of their numbers in a message. */
export const QUEUE_CHOICES = ["auto", "libaio", "io_uring"] as const;
/** One of `QUEUE_CHOICES`. */
export type QueueChoice = (typeof QUEUE_CHOICES)[number];

/** What of an open request is the vbd's business. */
type VbdOptions = Required<Pick<OpenOptions, "readOnly" | "direct" | "localCache">>;

/**
 * How an image is opened. There is one such record, whether the request comes from a command line,
 * from a control message, from the list of disks or from the file of a minor. The key of an
 * encrypted image is not in it: the record is written to files and a key never is.
 */
export interface OpenRequest extends VbdOptions {
  /** `type:/path` */
  readonly image: string;
  /** After how long a request fails; 0 for the default. */
  readonly requestTimeoutSeconds: number;
  /** Which errors are tried again. */
  readonly retry: RetryPolicy;
  readonly device: DeviceChoice;
  readonly queue: QueueChoice;
  /** The file of a log of changed blocks; null for none. */
  readonly changedBlocks: string | null;
  /** `type:/path` of a secondary image, to which writes go as well; null for none. */
  readonly secondary: string | null;
  /** Whether the secondary image only takes over when the image itself is full. */
  readonly standby: boolean;
  /** What the device does in a second at most. */
  readonly limits: RateLimits;
  /** The minor whose disk is read below the image instead of its parent; null for none. */
  readonly existingParent: number | null;
  /** Where the disk is served over TCP, once it is open. */
  readonly serve: readonly ServeRequest[];
}

/** An open request without its image, where nothing else is asked for. */
export const OPEN_DEFAULTS: Omit<OpenRequest, "image"> = {
  readOnly: false,
  direct: true,
  localCache: false,
  requestTimeoutSeconds: 0,
  retry: "all",
  device: "none",
  queue: "auto",
  changedBlocks: null,
  secondary: null,
  standby: false,
  limits: NO_LIMITS,
  existingParent: null,
  serve: [],
};

/** What a message names instead of a secondary image, for none. */
export const NO_SECONDARY = "null";

/** The longest time-out that a message has room for. */
const MOST_SECONDS = 0xffff;
const DEVICE_UNIT = 0x1_0000;
const QUEUE_UNIT = 0x8_0000;
const RETRY_UNIT = 0x1000_0000;

function requestFlags(
  { readOnly, direct, localCache, device, queue, standby, retry }: OpenRequest,
): number {
  let flags = DEVICE_CHOICES.indexOf(device) * DEVICE_UNIT;
  if (standby) flags |= MessageFlag.STANDBY;
  flags |= QUEUE_CHOICES.indexOf(queue) * QUEUE_UNIT;
  flags |= RETRY_POLICIES.indexOf(retry) * RETRY_UNIT;
  if (readOnly) flags |= MessageFlag.RDONLY;
  if (!direct) flags |= MessageFlag.NO_O_DIRECT;
  if (localCache) flags |= MessageFlag.ADD_LCACHE;
  return flags;
}

function withTrailer(
  type: number,
  minor: number,
  {
    image,
    flags = 0,
    requestTimeoutSeconds = 0,
    keyBytes = null,
    log,
    secondary,
    limits = null,
    parent = null,
  }: {
    image: string;
    flags?: number;
    requestTimeoutSeconds?: number;
    keyBytes?: number | null;
    /** The file of a log of changed blocks. */
    log: string | null;
    /** The secondary image, or `NO_SECONDARY`; null where the message says nothing of one. */
    secondary: string | null;
    limits?: RateLimits | null;
    /** The minor whose disk is the parent. */
    parent?: number | null;
  },
): Uint8Array<ArrayBuffer> {
  let all = flags;
  if (parent !== null) all |= MessageFlag.REUSE_PRT;
  if (secondary !== null) all |= MessageFlag.SECONDARY;
  if (log !== null) all |= MessageFlag.ADD_LOG;
  if (limits !== null) all |= MessageFlag.LIMITS;
  if (keyBytes !== null) all |= MessageFlag.OPEN_ENCRYPTED;
  const message = encodeParams(type, minor, {
    flags: all,
    minor,
    path: image,
    parentMinor: parent ?? -1,
    requestTimeoutSeconds,
    secondary: secondary ?? "",
  });
  const trailer = encodeTrailer({ logPath: log, limits, keyBytes });
  const request = new Uint8Array(message.length + trailer.length);
  request.set(message);
  request.set(trailer, message.length);
  return request;
}

/**
 * An `open` with its trailer, up to the length of the key. The key is sent behind it. Throws
 * `SystemError` (ENAMETOOLONG).
 */
export function encodeOpen(
  minor: number,
  request: OpenRequest,
  { keyBytes }: { keyBytes?: number } = {},
): Uint8Array<ArrayBuffer> {
  const { image, requestTimeoutSeconds, changedBlocks: log, secondary } = request;
  const { existingParent: parent } = request;
  const flags = requestFlags(request);
  return withTrailer(MessageType.OPEN, minor, {
    image,
    flags,
    requestTimeoutSeconds,
    keyBytes,
    log,
    secondary,
    limits: isLimited(request.limits) ? request.limits : null,
    parent,
  });
}

/** How a paused device goes on. */
export interface ResumeRequest {
  /** `type:/path`, or null for the image that the device had. */
  readonly image: string | null;
  /**
   * The file of a log of changed blocks; null for none, whatever the device had; without it, the one
   * that the device had.
   */
  readonly changedBlocks?: string | null;
  /** Another secondary image; null for none; without it, the one that the device had. */
  readonly secondary?: string | null;
}

/** A `resume` with its trailer. Throws `SystemError` (ENAMETOOLONG). */
export function encodeResume(
  minor: number,
  { image, changedBlocks, secondary: named }: ResumeRequest,
): Uint8Array<ArrayBuffer> {
  const flags = changedBlocks === undefined ? MessageFlag.KEEP_LOG : 0;
  const log = changedBlocks ?? null;
  const secondary = named === undefined ? null : named ?? NO_SECONDARY;
  return withTrailer(MessageType.RESUME, minor, { image: image ?? "", flags, log, secondary });
}

/** Flags of `open` and `resume` that this tapdisk does not carry out, with their meaning. */
const UNSUPPORTED_FLAGS: readonly (readonly [number, string])[] = [
  [MessageFlag.ADD_CACHE, "a block cache"],
  [MessageFlag.VHD_INDEX, "a VHD index"],
  [MessageFlag.OPEN_ENCRYPTED, "a new key"],
];

function refuseUnsupported(flags: number, what: string): void {
  const wanted = UNSUPPORTED_FLAGS.find(([flag]) => (flags & flag) !== 0);
  if (wanted === undefined) return;
  throw new SystemError(Errno.EOPNOTSUPP, `${what} (this tapdisk has no support for ${wanted[1]})`);
}

/** The secondary image that a message names; null for none, undefined where it says nothing. */
function namedSecondary({ flags, secondary }: Params): string | null | undefined {
  if ((flags & MessageFlag.SECONDARY) === 0) return undefined;
  return secondary === NO_SECONDARY ? null : secondary;
}

/**
 * The request in an `open`. The key is not part of it. Throws `SystemError`: EINVAL, EOPNOTSUPP.
 */
export function decodeOpen(message: Uint8Array): OpenRequest {
  const params = decodeParams(message);
  const { flags, path, requestTimeoutSeconds } = params;
  const what = `Cannot open ${path} on minor ${messageCookie(message)}`;
  refuseUnsupported(flags & ~MessageFlag.OPEN_ENCRYPTED, what);
  const device = DEVICE_CHOICES[(flags & MessageFlag.DEVICE_MASK) / DEVICE_UNIT];
  const queue = QUEUE_CHOICES[(flags & MessageFlag.QUEUE_MASK) / QUEUE_UNIT];
  const retry = RETRY_POLICIES[(flags & MessageFlag.RETRY_MASK) / RETRY_UNIT];
  if (device === undefined || queue === undefined || retry === undefined) {
    throw new SystemError(Errno.EINVAL, `${what} (tap-ctl is of another version)`);
  }
  return {
    image: path,
    readOnly: (flags & MessageFlag.RDONLY) !== 0,
    direct: (flags & MessageFlag.NO_O_DIRECT) === 0,
    localCache: (flags & MessageFlag.ADD_LCACHE) !== 0,
    requestTimeoutSeconds,
    retry,
    device,
    queue,
    changedBlocks: logPath(message),
    secondary: namedSecondary(params) ?? null,
    standby: (flags & MessageFlag.STANDBY) !== 0,
    limits: requestLimits(message) ?? NO_LIMITS,
    existingParent: (flags & MessageFlag.REUSE_PRT) === 0 ? null : params.parentMinor,
    // A disk that is open is served by messages of their own.
    serve: [],
  };
}

/** The request in a `resume`. Throws `SystemError`: EINVAL, EOPNOTSUPP. */
export function decodeResume(message: Uint8Array): ResumeRequest {
  const params = decodeParams(message);
  const { flags, path } = params;
  refuseUnsupported(flags, `Cannot unpause minor ${messageCookie(message)}`);
  const secondary = namedSecondary(params);
  return {
    image: path === "" ? null : path,
    ...((flags & MessageFlag.KEEP_LOG) !== 0 ? {} : { changedBlocks: logPath(message) }),
    ...(secondary === undefined ? {} : { secondary }),
  };
}

function isMinor(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < ALL_MINORS;
}

/**
 * The request in parsed JSON, to which an open request is written as it is; null when it is none.
 * What earlier versions did not write has its default.
 */
export function parseOpenRequest(value: unknown): OpenRequest | null {
  if (typeof value !== "object" || value === null) return null;
  const record = value as { [Field in keyof OpenRequest]?: unknown };
  const { image, requestTimeoutSeconds, readOnly, direct, device, queue } = record;
  const {
    localCache = false,
    changedBlocks = null,
    secondary = null,
    standby = false,
    existingParent = null,
    serve = [],
    limits = NO_LIMITS,
    retry = "all",
  } = record;
  const retryPolicy = RETRY_POLICIES.find((policy) => policy === retry);
  const deviceChoice = DEVICE_CHOICES.find((choice) => choice === device);
  const queueChoice = QUEUE_CHOICES.find((choice) => choice === queue);
  if (typeof image !== "string" || typeof requestTimeoutSeconds !== "number") return null;
  const isTime = Number.isInteger(requestTimeoutSeconds) && requestTimeoutSeconds >= 0 &&
    requestTimeoutSeconds <= MOST_SECONDS;
  if (!isTime) return null;
  if (typeof readOnly !== "boolean" || typeof direct !== "boolean") return null;
  if (typeof localCache !== "boolean") return null;
  if (typeof changedBlocks !== "string" && changedBlocks !== null) return null;
  if (typeof secondary !== "string" && secondary !== null) return null;
  if (typeof standby !== "boolean") return null;
  if (!areRateLimits(limits)) return null;
  if (existingParent !== null && !isMinor(existingParent)) return null;
  if (deviceChoice === undefined || queueChoice === undefined) return null;
  if (retryPolicy === undefined || !Array.isArray(serve)) return null;
  const served = serve.map(parseServeRequest).filter((each) => each !== null);
  return {
    image,
    requestTimeoutSeconds,
    readOnly,
    direct,
    localCache,
    retry: retryPolicy,
    device: deviceChoice,
    queue: queueChoice,
    changedBlocks,
    secondary,
    standby,
    limits,
    existingParent,
    serve: served,
  };
}
