import { BlkifProtocol, MOST_RING_PAGE_ORDER } from "../../../ffi/blkif_ring.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import type { ClientState } from "../../frontend/nbd/connection_host.ts";
import { HANDSHAKE_STAGES } from "../../frontend/nbd/handshake.ts";
import type { GuestRing } from "../../frontend/xenblkif/guest.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import { parseOpenRequest } from "../protocol/open_request.ts";
import type { Frame } from "./channel.ts";
import {
  areNumbers,
  isAbsentOr,
  isBase64,
  isCount,
  isFlag,
  isInt32,
  isListOf,
  isNullOr,
  isObjectOf,
  isOneOf,
  isText,
} from "./frame_checks.ts";

/**
 * The format of the frames. A tapdisk hands over to one of the same format only: what it would leave out
 * could not be missed.
 */
export const HANDOVER_FORMAT = 1;

/** A disk, or a minor without one. */
export interface DiskFrame {
  readonly kind: "disk";
  readonly minor: number;
  /** How its image is opened; null without one. */
  readonly request: OpenRequest | null;
  /** The size that its users know. */
  readonly sectors: number;
  /** Counters of `tap-ctl stats`. */
  readonly counts: Readonly<Record<string, number>>;
}

/**
 * What the old tapdisk tells, in this order; after `rehearse`, it waits for an answer. `locks` carries descriptors of files that are locked,
 * `sockets` those of sockets that listen, `handed` connections for images named `nbd:NAME`, `client` that
 * of a client, `command` that of a control connection.
 */
export type OldFrame =
  /** Kinds of frames that are to come, which not all versions know: without them nothing can be handed over. */
  | { readonly kind: "needs"; readonly kinds: readonly string[] }
  /** The images that are to be opened, of which the new process tries those that are files. */
  | { readonly kind: "rehearse"; readonly images: readonly string[] }
  | { readonly kind: "locks" }
  | { readonly kind: "sockets"; readonly at: readonly string[] }
  | { readonly kind: "handed"; readonly names: readonly string[] }
  | DiskFrame
  /** The disk of a minor is paused: its images are closed, and others may change them. */
  | { readonly kind: "paused"; readonly minor: number }
  /** Comes with a descriptor from which the key of a minor's disk is received. */
  | { readonly kind: "key"; readonly minor: number }
  /** A client; "tls" of one with TLS, which the kernel encrypts and decrypts. */
  | {
    readonly kind: "client" | "tls";
    readonly minor: number;
    /** Which frontend of the disk. */
    readonly frontend: number;
    readonly state: ClientState;
    readonly rest: string;
  }
  /** The ring of a guest, with the descriptor of its event channel, see `HandedRing`. */
  | {
    readonly kind: "ring";
    readonly minor: number;
    readonly guest: GuestRing;
    readonly port: number;
    readonly taken: number;
    readonly isBroken: boolean;
  }
  | { readonly kind: "command"; readonly begun: string }
  /** All has been told: the new tapdisk opens the disks. */
  | { readonly kind: "open" }
  /** The old tapdisk serves no more: the new one answers, and then serves. */
  | { readonly kind: "serve" };

/** What the new tapdisk tells. */
export type NewFrame =
  /** The images can be opened. */
  | { readonly kind: "ready" }
  /** All disks are open. */
  | { readonly kind: "opened" }
  /** It serves. With `waits`, it begins when the channel is closed; earlier versions began at once. */
  | { readonly kind: "serving"; readonly waits?: boolean }
  | { readonly kind: "failed"; readonly errno: number; readonly message: string };

/** Bytes as text. */
export function encodeBytes(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** The bytes of a text. */
export function decodeBytes(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function makesNoSense(): SystemError {
  return new SystemError(Errno.EPROTO, "Cannot take over: a frame makes no sense");
}

const isClient = isObjectOf({
  style: isOneOf("newstyle", "oldstyle", "none"),
  handedOver: isFlag,
  handshake: isObjectOf({
    stage: isOneOf(...HANDSHAKE_STAGES),
    structuredReplies: isFlag,
    contexts: isListOf(isText),
    noZeroes: isFlag,
    options: isCount,
    skip: isCount,
  }),
  place: isAbsentOr(
    isObjectOf({ at: isAbsentOr(isText), port: isCount, name: isText, from: isText }),
  ),
});

const isClientFrame = isObjectOf({
  ...{ minor: isCount, frontend: isCount, rest: isBase64 },
  state: isClient,
});

const RING_PAGES = Array.from({ length: MOST_RING_PAGE_ORDER + 1 }, (_, order) => 1 << order);

const isGuestRing = isObjectOf({
  ...{ domain: isCount, device: isCount, port: isCount },
  references: (value) =>
    isListOf(isCount)(value) && RING_PAGES.includes((value as unknown[]).length),
  protocol: isOneOf(...Object.values(BlkifProtocol)),
  ...{ pollDurationUs: isCount, pollIdleThreshold: isCount, isReadOnly: isFlag },
});

/** What makes sense in a frame of each kind. */
const CHECKS: Readonly<Record<OldFrame["kind"], (value: unknown) => boolean>> = {
  needs: isObjectOf({ kinds: isListOf(isText) }),
  rehearse: isObjectOf({ images: isListOf(isText) }),
  locks: () => true,
  sockets: isObjectOf({ at: isListOf(isText) }),
  handed: isObjectOf({ names: isListOf(isText) }),
  disk: isObjectOf({
    ...{ minor: isCount, sectors: isCount, counts: areNumbers },
    request: isNullOr((request) => parseOpenRequest(request) !== null),
  }),
  paused: isObjectOf({ minor: isCount }),
  key: isObjectOf({ minor: isCount }),
  client: isClientFrame,
  tls: isClientFrame,
  ring: isObjectOf({
    ...{ minor: isCount, guest: isGuestRing, port: isCount },
    ...{ taken: isInt32, isBroken: isFlag },
  }),
  command: isObjectOf({ begun: isBase64 }),
  open: () => true,
  serve: () => true,
};

/** Block devices of which this process hears that they are needed, and that have no frames of their own. */
const DEVICES: readonly string[] = ["ublk"];

/** How many descriptors come with a frame; null for any number. */
function descriptorsOf(frame: OldFrame): number | null {
  switch (frame.kind) {
    case "locks":
      return null;
    case "sockets":
      return frame.at.length;
    case "handed":
      return frame.names.length;
    case "key":
    case "client":
    case "tls":
    case "ring":
    case "command":
      return 1;
    default:
      return 0;
  }
}

/** Throws `SystemError` when a kind of frame is not known here: EPROTONOSUPPORT. */
export function requireKinds(kinds: readonly string[]): void {
  const known = [...Object.keys(CHECKS), ...DEVICES];
  const unknown = kinds.filter((kind) => !known.includes(kind));
  if (unknown.length === 0) return;
  const why = `it does not know: ${unknown.join(", ")}`;
  throw new SystemError(Errno.EPROTONOSUPPORT, `Cannot take over in this version (${why})`);
}

/** A frame of the old tapdisk, and its descriptors. */
export interface Arrived {
  readonly frame: OldFrame;
  readonly descriptors: readonly number[];
}

/** Checks a frame that has arrived. Throws `SystemError`: EPROTO; its descriptors are closed then. */
export function arrivedFrame({ value, descriptors }: Frame): Arrived {
  try {
    const frame = oldFrame(value);
    const wanted = descriptorsOf(frame);
    if (wanted === null || wanted === descriptors.length) return { frame, descriptors };
    throw makesNoSense();
  } catch (error) {
    for (const fd of descriptors) closeFile(fd);
    throw error;
  }
}

/** The frame in parsed JSON. Throws `SystemError`: EPROTO. */
export function oldFrame(value: unknown): OldFrame {
  if (typeof value !== "object" || value === null) throw makesNoSense();
  const { kind }: { kind?: unknown } = value;
  const check = Object.entries(CHECKS).find(([known]) => known === kind)?.[1];
  if (check?.(value) !== true) throw makesNoSense();
  const frame = value as OldFrame;
  if (frame.kind !== "disk" || frame.request === null) return frame;
  const request = parseOpenRequest(frame.request);
  if (request === null) throw makesNoSense();
  return { ...frame, request };
}

/** Whether a tapdisk that says that it serves has not begun. */
export function isWaiting(value: unknown): boolean {
  return typeof value === "object" && value !== null && "waits" in value && value.waits === true;
}

/** The same for a frame of the new tapdisk. Throws `SystemError` for what it says went wrong. */
export function newFrame(value: unknown, wanted: NewFrame["kind"]): void {
  if (typeof value !== "object" || value === null) throw makesNoSense();
  const { kind, errno, message }: { kind?: unknown; errno?: unknown; message?: unknown } = value;
  if (kind === wanted) return;
  if (kind !== "failed" || typeof errno !== "number" || typeof message !== "string") {
    throw makesNoSense();
  }
  throw new SystemError(errno, message, { message });
}
