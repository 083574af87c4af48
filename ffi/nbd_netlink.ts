/**
 * Commands to the kernel's nbd driver over generic netlink, with the names of linux/nbd-netlink.h.
 * The driver takes them since 4.12; what later kernels added is told where it is used.
 *
 * @module
 */
import { AttributeWriter, type GenericRequest, requestAside, requestNow } from "./netlink.ts";

const NBD_GENL_FAMILY_NAME = "nbd";
const NBD_GENL_VERSION = 1;

const NBD_CMD_CONNECT = 1;
const NBD_CMD_DISCONNECT = 2;
const NBD_CMD_RECONFIGURE = 3;

const NBD_ATTR_INDEX = 1;
const NBD_ATTR_SIZE_BYTES = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES = 3;
const NBD_ATTR_TIMEOUT = 4;
const NBD_ATTR_SERVER_FLAGS = 5;
const NBD_ATTR_CLIENT_FLAGS = 6;
const NBD_ATTR_SOCKETS = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT = 8;
const NBD_ATTR_BACKEND_IDENTIFIER = 10;
const NBD_SOCK_ITEM = 1;
const NBD_SOCK_FD = 1;

/** The device is disconnected when the last one who has it open closes it. */
export const NBD_CFLAG_DISCONNECT_ON_CLOSE = 2;

/** What a device is made of. */
export interface NbdConnectOptions {
  /** Of /dev/nbdN; the kernel takes a free one when it is left out. */
  readonly index?: number;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly serverFlags: number;
  /** After how long a request is given up, seconds; 0 for never. */
  readonly timeoutSeconds: number;
  /** How long requests wait for another connection when the last has died, seconds. */
  readonly deadConnectionSeconds: number;
  /** The kernel's ends of connections. */
  readonly sockets: readonly number[];
  /** A name for what is behind the device; who changes it later has to know it (since 5.14). */
  readonly backend: string;
}

/** What can be changed of a device. */
export interface NbdChange {
  readonly index: number;
  readonly backend: string;
  /** Since 5.3. */
  readonly sizeBytes?: number;
  readonly deadConnectionSeconds?: number;
  /** NBD_CFLAG_*; all others are cleared. */
  readonly clientFlags?: number;
  /** Take the places of connections that have died; a socket too many is dropped silently. */
  readonly sockets?: readonly number[];
}

function socketItems(sockets: readonly number[]): AttributeWriter {
  const items = new AttributeWriter();
  for (const socket of sockets) {
    items.nested(NBD_SOCK_ITEM, new AttributeWriter().u32(NBD_SOCK_FD, socket));
  }
  return items;
}

function request(command: number, attributes: AttributeWriter): GenericRequest {
  return { family: NBD_GENL_FAMILY_NAME, version: NBD_GENL_VERSION, command, attributes };
}

/** The command that makes a device. */
export function connectRequest(options: NbdConnectOptions): GenericRequest {
  const attributes = new AttributeWriter();
  if (options.index !== undefined) attributes.u32(NBD_ATTR_INDEX, options.index);
  attributes.u64(NBD_ATTR_SIZE_BYTES, options.sizeBytes)
    .u64(NBD_ATTR_BLOCK_SIZE_BYTES, options.blockSizeBytes)
    .u64(NBD_ATTR_TIMEOUT, options.timeoutSeconds)
    .u64(NBD_ATTR_DEAD_CONN_TIMEOUT, options.deadConnectionSeconds)
    .u64(NBD_ATTR_SERVER_FLAGS, options.serverFlags)
    .u64(NBD_ATTR_CLIENT_FLAGS, 0)
    .nested(NBD_ATTR_SOCKETS, socketItems(options.sockets))
    .text(NBD_ATTR_BACKEND_IDENTIFIER, options.backend);
  return request(NBD_CMD_CONNECT, attributes);
}

/** The command that changes a device. */
export function reconfigureRequest(change: NbdChange): GenericRequest {
  const { index, backend, sizeBytes, deadConnectionSeconds, clientFlags, sockets } = change;
  const attributes = new AttributeWriter().u32(NBD_ATTR_INDEX, index);
  if (sizeBytes !== undefined) attributes.u64(NBD_ATTR_SIZE_BYTES, sizeBytes);
  if (deadConnectionSeconds !== undefined) {
    attributes.u64(NBD_ATTR_DEAD_CONN_TIMEOUT, deadConnectionSeconds);
  }
  if (clientFlags !== undefined) attributes.u64(NBD_ATTR_CLIENT_FLAGS, clientFlags);
  if (sockets !== undefined) attributes.nested(NBD_ATTR_SOCKETS, socketItems(sockets));
  attributes.text(NBD_ATTR_BACKEND_IDENTIFIER, backend);
  return request(NBD_CMD_RECONFIGURE, attributes);
}

/** The command that takes a device's connections away; whoever uses it gets errors. */
export function disconnectRequest(index: number): GenericRequest {
  return request(NBD_CMD_DISCONNECT, new AttributeWriter().u32(NBD_ATTR_INDEX, index));
}

/** How the making of a device ended. */
export interface NbdConnected {
  readonly errno: number;
  /** Whether the driver has this interface at all. */
  readonly known: boolean;
  /** N of /dev/nbdN. */
  readonly index: number;
}

/** Commands of this process that other threads are carrying out. */
let underWay = 0;

async function aside(wanted: GenericRequest): ReturnType<typeof requestAside> {
  underWay++;
  try {
    return await requestAside(wanted);
  } finally {
    underWay--;
  }
}

/** Makes a device, by another thread: the kernel carries out one command of all at a time. */
export async function nbdConnect(options: NbdConnectOptions): Promise<NbdConnected> {
  const { errno, known, attributes } = await aside(connectRequest(options));
  return { errno, known, index: attributes.get(NBD_ATTR_INDEX)?.getUint32(0, true) ?? -1 };
}

/** Changes a device, by another thread; returns 0 or a positive error number. */
export async function nbdReconfigure(change: NbdChange): Promise<number> {
  return (await aside(reconfigureRequest(change))).errno;
}

/** Disconnects a device, by another thread: the kernel says good-bye to whoever serves it. */
export async function nbdDisconnect(index: number): Promise<number> {
  return (await aside(disconnectRequest(index))).errno;
}

/**
 * Disconnects a device whose requests are not answered any more; `close` closes its connections,
 * before this returns. All is done then, too, so that this process may end; only while another
 * command is under way, which may wait for this thread, the commands follow that.
 */
export function nbdDrop(index: number, backend: string, close: () => void): void {
  // Kernels before 5.19 disconnect no device while requests wait for another connection.
  const impatient = reconfigureRequest({ index, backend, deadConnectionSeconds: 0 });
  if (underWay > 0) {
    close();
    void aside(impatient).then(() => nbdDisconnect(index));
    return;
  }
  requestNow(impatient);
  close();
  requestNow(disconnectRequest(index));
}
