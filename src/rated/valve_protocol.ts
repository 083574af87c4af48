/**
 * What valves and bridges say to each other (drivers/block-valve.h), in the byte order of the machine.
 * A valve sends 16 bytes: u64 how many more bytes it wants to pass, u64 how many of those that it was
 * granted have ended. The bridge sends 8: u64 how many bytes it grants.
 */

/** The folder of the bridges' sockets (TD_VALVE_SOCKDIR). */
export const VALVE_FOLDER = "/var/run/blktap/ratelimit";
/** The most bytes that a valve may wait for, and that are granted at once (TD_RLB_REQUEST_MAX). */
export const MOST_NEED_BYTES = 8 << 20;
/** Bytes of what a valve sends. */
export const VALVE_REQUEST_BYTES = 16;
/** Bytes of what a bridge sends. */
export const VALVE_CREDIT_BYTES = 8;

/** The socket of a bridge: a path, or a name in the folder of the bridges. */
export function bridgePath(name: string): string {
  return name.startsWith("/") ? name : `${VALVE_FOLDER}/${name}`;
}

/** The number in a field, which may be beyond 2^53 in a broken message; it is not exact then. */
export function numberAt(view: DataView, offsetBytes: number): number {
  return view.getUint32(offsetBytes, true) + view.getUint32(offsetBytes + 4, true) * 2 ** 32;
}
