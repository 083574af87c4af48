import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { ClientState } from "../../frontend/nbd/connection_host.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import { parseOpenRequest } from "../protocol/open_request.ts";

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
 * What the old tapdisk tells, in this order; after the first, it waits for an answer. `locks` carries descriptors of files that are locked,
 * `sockets` those of sockets that listen, `handed` connections for images named `nbd:NAME`, `client` that
 * of a client, `command` that of a control connection.
 */
export type OldFrame =
  /** The images that are to be opened, of which the new process tries those that are files. */
  | { readonly kind: "rehearse"; readonly images: readonly string[] }
  | { readonly kind: "locks" }
  | { readonly kind: "sockets"; readonly at: readonly string[] }
  | { readonly kind: "handed"; readonly names: readonly string[] }
  | DiskFrame
  | {
    readonly kind: "client";
    readonly minor: number;
    /** Which frontend of the disk. */
    readonly frontend: number;
    readonly state: ClientState;
    readonly rest: string;
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
  /** It serves. */
  | { readonly kind: "serving" }
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

/** The frame in parsed JSON. The formats are the same, so the fields of a frame of a kind are too. */
export function oldFrame(value: unknown): OldFrame {
  if (typeof value !== "object" || value === null) throw makesNoSense();
  const { kind }: { kind?: unknown } = value;
  const kinds: readonly unknown[] = [
    "rehearse",
    "locks",
    "sockets",
    "handed",
    "disk",
    "client",
    "command",
    "open",
    "serve",
  ];
  if (!kinds.includes(kind)) throw makesNoSense();
  const frame = value as OldFrame;
  if (frame.kind !== "disk" || frame.request === null) return frame;
  const request = parseOpenRequest(frame.request);
  if (request === null) throw makesNoSense();
  return { ...frame, request };
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
