import { RequestKind, type RequestOwner } from "../../vbd/slots.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
} from "../../nbd/protocol.ts";
import { kindOf } from "./commands.ts";
import type { ConnectionHost } from "./connection_host.ts";
import { MOST_EXTENTS } from "./nbd_slots.ts";
import type { ReplyQueue } from "./reply_queue.ts";

const NONE = -1;
const SECTOR_BYTES = 512;

/**
 * Starts a request that needs no data of the client: its slots have been taken, and their fields say what
 * the client wants. Parts may end before this returns.
 */
export function beginRequest(
  { vbd, slots }: ConnectionHost,
  head: number,
  replies: ReplyQueue,
  owner: RequestOwner,
): void {
  const command = slots.command[head] & 0xff;
  const flags = slots.command[head] >>> 8;
  slots.command[head] = command;
  const kind = kindOf(command, flags);
  const total = slots.totalLength[head];
  const fua = (flags & NBD_CMD_FLAG_FUA) !== 0 && command !== NBD_CMD_READ;
  let sector = slots.offset[head] / SECTOR_BYTES;
  if (command === NBD_CMD_BLOCK_STATUS) {
    slots.mostExtents[head] = (flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : MOST_EXTENTS;
    const most = replies.mostAllocationExtents(head);
    return vbd.requests.startStatus(head, sector, total / SECTOR_BYTES, most, owner);
  }
  if (command !== NBD_CMD_READ && command !== NBD_CMD_WRITE) {
    return vbd.requests.start(head, kind, sector, total / SECTOR_BYTES, fua, owner);
  }
  for (let part = head; part !== NONE;) {
    // The last part may end within `start`, and the request with it.
    const next = slots.next[part];
    const sectors = slots.length[part] / SECTOR_BYTES;
    vbd.requests.start(part, kind, sector, sectors, fua, owner);
    sector += sectors;
    part = next;
  }
}

/**
 * Starts a part of a write, whose data has come.
 *
 * @param doneBytes Bytes of the write ahead of it.
 */
export function beginPart(
  { vbd, slots }: ConnectionHost,
  part: number,
  doneBytes: number,
  owner: RequestOwner,
): void {
  const head = slots.head[part];
  const sector = (slots.offset[head] + doneBytes) / SECTOR_BYTES;
  const fua = ((slots.command[head] >>> 8) & NBD_CMD_FLAG_FUA) !== 0;
  slots.partsLeft[head]++;
  const count = slots.length[part] / SECTOR_BYTES;
  vbd.requests.start(part, RequestKind.Write, sector, count, fua, owner);
}
