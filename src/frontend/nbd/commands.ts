import { Errno } from "../../../ffi/errno.ts";
import type { Handshake } from "./handshake.ts";
import { RequestKind, SLOT_BYTES } from "../../vbd/slots.ts";
import {
  MAXIMUM_BLOCK_BYTES,
  MINIMUM_BLOCK_BYTES,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from "../../nbd/protocol.ts";

/**
 * The valid flags of each command. FUA is valid for all, even for those that do not write. DF needs
 * structured replies.
 */
const FLAGS_OF_COMMAND: readonly number[] = [
  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
];

const KIND_OF_COMMAND: readonly (RequestKind | undefined)[] = [
  RequestKind.Read,
  RequestKind.Write,
  undefined,
  RequestKind.Flush,
  RequestKind.Discard,
  undefined,
  RequestKind.Zero,
  RequestKind.Status,
];

/** The request kind of a command that was not refused. */
export function kindOf(command: number, flags: number): RequestKind {
  const solid = command === NBD_CMD_WRITE_ZEROES && (flags & NBD_CMD_FLAG_NO_HOLE) !== 0;
  return solid ? RequestKind.Fill : KIND_OF_COMMAND[command] as RequestKind;
}

/** The largest command that a slot can have; it is none. */
const UNKNOWN_COMMAND = 0xff;

/** A command and its flags, as a slot has them. */
export function packed(command: number, flags: number): number {
  // There is a byte for the command. Unknown ones above it must not turn into a known one.
  return Math.min(command, UNKNOWN_COMMAND) | (flags << 8);
}

/** Whether a command transfers data over the connection. */
export function carriesData(command: number): boolean {
  return command === NBD_CMD_READ || command === NBD_CMD_WRITE;
}

/**
 * Checks a request without knowing the device.
 *
 * @param negotiated Whether structured replies were, and which contexts.
 * @returns The errno with which the request fails; 0 when it is valid.
 */
export function refusalOf(
  command: number,
  flags: number,
  { structuredReplies, contexts }: Pick<Handshake, "structuredReplies" | "contexts">,
  offset: number,
  length: number,
): number {
  if (KIND_OF_COMMAND[command] === undefined) return Errno.EINVAL;
  if ((flags & ~FLAGS_OF_COMMAND[command]) !== 0) return Errno.EINVAL;
  const isUnfragmented = (flags & NBD_CMD_FLAG_DF) !== 0;
  if (isUnfragmented && !structuredReplies) return Errno.EINVAL;
  if (command === NBD_CMD_FLUSH) return offset !== 0 || length !== 0 ? Errno.EINVAL : 0;
  if (command === NBD_CMD_BLOCK_STATUS && (contexts.length === 0 || length === 0)) {
    return Errno.EINVAL;
  }
  // The low 32 bits decide. A remainder of a number above 2^32 would cost a division.
  if ((((offset >>> 0) | length) & (MINIMUM_BLOCK_BYTES - 1)) !== 0) return Errno.EINVAL;
  if (!carriesData(command) || length <= MAXIMUM_BLOCK_BYTES) return 0;
  // EOVERFLOW tells a client that set DF to send smaller requests.
  return isUnfragmented ? Errno.EOVERFLOW : Errno.EINVAL;
}

/**
 * Checks the range of a request that takes several slots; returns as `refusalOf` does. The device
 * checks each part alone: without this, a part could fail after another was done.
 */
export function refusalBeyond(
  command: number,
  offset: number,
  length: number,
  diskBytes: number,
): number {
  if (length <= SLOT_BYTES || offset + length <= diskBytes) return 0;
  return command === NBD_CMD_WRITE ? Errno.ENOSPC : Errno.EINVAL;
}
