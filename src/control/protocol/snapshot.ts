import {
  encodePathField,
  messageCookie,
  MessageType,
  startMessage,
  textAt,
  viewOf,
} from "./message.ts";
import { decodeParams, encodeParams, MessageFlag } from "./params.ts";

/** A snapshot of a running device. */
export interface SnapshotRequest {
  /** Path of the new image; with `rename`, the new path of the running image. */
  readonly path: string;
  /** Renames the running image to `path`; the new image gets the old path. */
  readonly rename: boolean;
  /** How long the drain of the requests in flight may take, whole seconds; 0 for no limit. */
  readonly timeoutSeconds: number;
  /** The type of the new image; undefined for the one that suits the running image. */
  readonly childType?: string;
}

/** A `snapshot`. Throws `SystemError` (ENAMETOOLONG). */
export function encodeSnapshot(
  minor: number,
  { path, rename, timeoutSeconds, childType }: SnapshotRequest,
): Uint8Array<ArrayBuffer> {
  return encodeParams(MessageType.SNAPSHOT, minor, {
    flags: rename ? MessageFlag.RENAME : 0,
    minor,
    path,
    parentMinor: -1,
    requestTimeoutSeconds: timeoutSeconds,
    secondary: childType ?? "",
  });
}

/** The fields of a `snapshot`, and its minor. Throws `SystemError` (EINVAL). */
export function decodeSnapshot(message: Uint8Array): SnapshotRequest & { readonly minor: number } {
  const { flags, path, requestTimeoutSeconds, secondary } = decodeParams(message);
  return {
    minor: messageCookie(message),
    path,
    rename: (flags & MessageFlag.RENAME) !== 0,
    timeoutSeconds: requestTimeoutSeconds,
    childType: secondary === "" ? undefined : secondary,
  };
}

/** The result of a `snapshot`. */
export interface SnapshotReply {
  /** How long requests were held back, milliseconds. */
  readonly stallMs: number;
  /** Path of the image that keeps the disk of that moment. */
  readonly parent: string;
  /** `type:/path` of the image that is open now. */
  readonly image: string;
}

/** The answer to `snapshot`. */
export function encodeSnapshotReply(
  cookie: number,
  { stallMs, parent, image }: SnapshotReply,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.SNAPSHOT_RSP, cookie);
  view.setUint32(8, Math.min(stallMs * 1000, 0xffff_ffff), true);
  message.set(encodePathField(parent), 12);
  message.set(encodePathField(image), 268);
  return message;
}

/** The fields in the answer to `snapshot`. Throws `SystemError` (EINVAL). */
export function decodeSnapshotReply(message: Uint8Array): SnapshotReply {
  const stallMs = viewOf(message).getUint32(8, true) / 1000;
  return { stallMs, parent: textAt(message, 12), image: textAt(message, 268) };
}
