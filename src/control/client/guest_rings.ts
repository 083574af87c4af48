import { nameOfGuest } from "../../frontend/xenblkif/guest.ts";
import {
  encodeConnect,
  encodeDisconnect,
  type GuestDevice,
  type GuestRing,
} from "../protocol/guest_ring.ts";
import { decodeDiskInfo, type DiskInfo } from "../protocol/disk_info.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import type { DeviceAddress } from "./client.ts";
import { withConnection } from "./connection.ts";
import { QUESTION_TIMEOUT_MS } from "./questions.ts";

/**
 * Serves the ring of a guest's block device by the disk of a minor. Throws `SystemError`,
 * `TapdiskError`: EALREADY when the ring is connected, ENODEV without such a minor, EINVAL when it has
 * no image, EPROTONOSUPPORT, and what Xen says, such as ENXIO without Xen.
 */
export function connectRing({ pid, minor }: DeviceAddress, ring: GuestRing): void {
  withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodeConnect(minor, ring));
    const what = `Cannot connect ${nameOfGuest(ring)} to tapdisk ${pid}`;
    connection.expect(MessageType.XENBLKIF_CONNECT_RSP, what);
  });
}

/**
 * Ends a ring: no more requests are taken from it. Throws `SystemError`, `TapdiskError`: ENODEV when it
 * is not connected.
 */
export function disconnectRing(
  { pid, minor }: DeviceAddress,
  guest: GuestDevice,
): void {
  withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodeDisconnect(minor, guest));
    const what = `Cannot disconnect ${nameOfGuest(guest)} from tapdisk ${pid}`;
    connection.expect(MessageType.XENBLKIF_DISCONNECT_RSP, what);
  });
}

/** The disk of a minor. Throws `SystemError`, `TapdiskError`: ENODEV without such a minor. */
export function askDiskInfo({ pid, minor }: DeviceAddress): DiskInfo {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.DISK_INFO, minor));
    const what = `Cannot get the size of minor ${minor} of tapdisk ${pid}`;
    return decodeDiskInfo(connection.expect(MessageType.DISK_INFO_RSP, what));
  });
}
