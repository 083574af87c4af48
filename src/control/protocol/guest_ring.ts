import { BlkifProtocol, MOST_RING_PAGE_ORDER } from "../../../ffi/blkif_ring.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type GuestDevice, type GuestRing, nameOfGuest } from "../../frontend/xenblkif/guest.ts";
import { encodePathField, MessageType, startMessage, textAt, viewOf } from "./message.ts";

export type { GuestDevice, GuestRing };

// struct tapdisk_message_blkif (tapdisk-message.h): u32 domid @8, u32 devid @12, u32 gref[8] @16,
// u32 order @48, u32 proto @52, char pool[256] @56, u32 port @312, u32 poll_duration @316, u32
// poll_idle_threshold @320. The original's structure ends there. Its messages are zero behind it, and its
// tapdisk does not look there: u32 flags @324.
const DOMAIN_AT = 8;
const DEVICE_AT = 12;
const REFERENCES_AT = 16;
const ORDER_AT = 48;
const PROTOCOL_AT = 52;
const POOL_AT = 56;
const PORT_AT = 312;
const POLL_DURATION_AT = 316;
const POLL_IDLE_THRESHOLD_AT = 320;
const FLAGS_AT = 324;

/** The guest must not write. */
const FLAG_READ_ONLY = 1;

/** DOMID_FIRST_RESERVED of Xen's public xen.h: the domains of guests have lower numbers. */
const FIRST_RESERVED_DOMAIN = 0x7ff0;
const PROTOCOLS: readonly number[] = Object.values(BlkifProtocol);

/** A connect: the ring of a guest's device is served by the disk of a minor. */
export function encodeConnect(minor: number, ring: GuestRing): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.XENBLKIF_CONNECT, minor);
  const order = Math.log2(ring.references.length);
  if (!Number.isInteger(order) || order < 0 || order > MOST_RING_PAGE_ORDER) {
    throw new SystemError(Errno.EINVAL, `Cannot connect a ring of ${ring.references.length} pages`);
  }
  view.setUint32(DOMAIN_AT, ring.domain, true);
  view.setUint32(DEVICE_AT, ring.device, true);
  ring.references.forEach((reference, i) => view.setUint32(REFERENCES_AT + 4 * i, reference, true));
  view.setUint32(ORDER_AT, order, true);
  view.setUint32(PROTOCOL_AT, ring.protocol, true);
  // The original has one pool, which this names.
  message.set(encodePathField(""), POOL_AT);
  view.setUint32(PORT_AT, ring.port, true);
  view.setUint32(POLL_DURATION_AT, ring.pollDurationUs, true);
  view.setUint32(POLL_IDLE_THRESHOLD_AT, ring.pollIdleThreshold, true);
  view.setUint32(FLAGS_AT, ring.isReadOnly ? FLAG_READ_ONLY : 0, true);
  return message;
}

/** The ring of a connect. Throws `SystemError`: EINVAL, EPROTONOSUPPORT. */
export function decodeConnect(message: Uint8Array): GuestRing {
  const view = viewOf(message);
  const guest = decodeGuestDevice(message);
  const what = `Cannot connect ${nameOfGuest(guest)}`;
  const order = view.getUint32(ORDER_AT, true);
  if (order > MOST_RING_PAGE_ORDER) {
    throw new SystemError(
      Errno.EINVAL,
      `${what} (its ring has 2^${order} pages; at most 8 are served)`,
    );
  }
  const protocol = view.getUint32(PROTOCOL_AT, true);
  if (!PROTOCOLS.includes(protocol)) {
    throw new SystemError(Errno.EPROTONOSUPPORT, `${what} (protocol ${protocol} is not known)`);
  }
  // The name of a pool has no meaning, but it must have an end.
  textAt(message, POOL_AT);
  return {
    ...guest,
    references: Array.from(
      { length: 1 << order },
      (_, i) => view.getUint32(REFERENCES_AT + 4 * i, true),
    ),
    port: view.getUint32(PORT_AT, true),
    protocol: protocol as BlkifProtocol,
    pollDurationUs: view.getUint32(POLL_DURATION_AT, true),
    pollIdleThreshold: view.getUint32(POLL_IDLE_THRESHOLD_AT, true),
    isReadOnly: (view.getUint32(FLAGS_AT, true) & FLAG_READ_ONLY) !== 0,
  };
}

/** A disconnect: the ring is not served any more. It is found by its guest; the cookie is ignored. */
export function encodeDisconnect(
  minor: number,
  { domain, device }: GuestDevice,
): Uint8Array<ArrayBuffer> {
  const [message, view] = startMessage(MessageType.XENBLKIF_DISCONNECT, minor);
  view.setUint32(DOMAIN_AT, domain, true);
  view.setUint32(DEVICE_AT, device, true);
  return message;
}

/** The guest's device of a connect or a disconnect. Throws `SystemError`: EINVAL. */
export function decodeGuestDevice(message: Uint8Array): GuestDevice {
  const view = viewOf(message);
  const domain = view.getUint32(DOMAIN_AT, true);
  if (domain >= FIRST_RESERVED_DOMAIN) {
    throw new SystemError(Errno.EINVAL, `Cannot serve domain ${domain} (no guest has this number)`);
  }
  return { domain, device: view.getUint32(DEVICE_AT, true) };
}
