import { Errno } from "../../../ffi/errno.ts";
import { RequestKind } from "../../vbd/slots.ts";
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
 * By command: the flags that it may have. FUA is valid for all, also for those that write nothing.
 * DF is one of structured replies only.
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

/** How a device carries out a command that was not refused. */
export function kindOf(command: number, flags: number): RequestKind {
  const solid = command === NBD_CMD_WRITE_ZEROES && (flags & NBD_CMD_FLAG_NO_HOLE) !== 0;
  return solid ? RequestKind.Fill : KIND_OF_COMMAND[command] as RequestKind;
}

/** Whether a command reads or writes data that the connection carries. */
export function carriesData(command: number): boolean {
  return command === NBD_CMD_READ || command === NBD_CMD_WRITE;
}

/**
 * The error number for a request that no device could carry out; 0 for others.
 *
 * @param structuredReplies Whether they were negotiated.
 */
export function refusalOf(
  command: number,
  flags: number,
  structuredReplies: boolean,
  offset: number,
  length: number,
): number {
  if (KIND_OF_COMMAND[command] === undefined) return Errno.EINVAL;
  if ((flags & ~FLAGS_OF_COMMAND[command]) !== 0) return Errno.EINVAL;
  const isUnfragmented = (flags & NBD_CMD_FLAG_DF) !== 0;
  if (isUnfragmented && !structuredReplies) return Errno.EINVAL;
  if (command === NBD_CMD_FLUSH) return offset !== 0 || length !== 0 ? Errno.EINVAL : 0;
  if (command === NBD_CMD_BLOCK_STATUS && length === 0) return Errno.EINVAL;
  // The low 32 bits say it; a remainder of a large number would cost a division.
  if ((((offset >>> 0) | length) & (MINIMUM_BLOCK_BYTES - 1)) !== 0) return Errno.EINVAL;
  if (!carriesData(command) || length <= MAXIMUM_BLOCK_BYTES) return 0;
  // EOVERFLOW says to a client that asked for one piece that it may ask for smaller ones.
  return isUnfragmented ? Errno.EOVERFLOW : Errno.EINVAL;
}
