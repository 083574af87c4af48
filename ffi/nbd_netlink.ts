/**
 * Commands to the kernel's nbd driver over generic netlink, with the names of linux/nbd-netlink.h.
 * The driver has this interface since 4.12. What later kernels added is marked below.
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

/** The kernel disconnects the device when its last user closes it. */
export const NBD_CFLAG_DISCONNECT_ON_CLOSE = 2;

/** Parameters of a new device. */
export interface NbdConnectOptions {
  /** N of /dev/nbdN; without it the kernel takes a free device. */
  readonly index?: number;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  /** NBD_FLAG_* of the transmission phase. */
  readonly serverFlags: number;
  /** Timeout of a request, seconds; 0 for none. */
  readonly timeoutSeconds: number;
  /** How long requests wait for a new connection after the last has died, seconds. */
  readonly deadConnectionSeconds: number;
  /** The sockets of the kernel: one end of each connection. */
  readonly sockets: readonly number[];
  /** Name of the server. Later changes must give the same name (since 5.14). */
  readonly backend: string;
}

/** A change of a device. What is left out stays as it is. */
export interface NbdChange {
  readonly index: number;
  readonly backend: string;
  /** New size (since 5.3). */
  readonly sizeBytes?: number;
  readonly deadConnectionSeconds?: number;
  /** NBD_CFLAG_* bits; all others are cleared. */
  readonly clientFlags?: number;
  /** Sockets that replace dead connections. The kernel drops a surplus socket without an error. */
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

/** The command that creates a device. */
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

/** The command that disconnects a device. Its users get errors. */
export function disconnectRequest(index: number): GenericRequest {
  return request(NBD_CMD_DISCONNECT, new AttributeWriter().u32(NBD_ATTR_INDEX, index));
}

/** The result of `nbdConnect`. */
export interface NbdConnected {
  /** 0 or a positive errno. */
  readonly errno: number;
  /** Whether the driver has this interface. */
  readonly known: boolean;
  /** N of /dev/nbdN; -1 after an error. */
  readonly index: number;
}

/** Commands of this process that other threads are executing. */
let underWay = 0;

async function aside(wanted: GenericRequest): ReturnType<typeof requestAside> {
  underWay++;
  try {
    return await requestAside(wanted);
  } finally {
    underWay--;
  }
}

/**
 * Creates a device by another thread: the kernel executes one command of all processes at a time.
 */
export async function nbdConnect(options: NbdConnectOptions): Promise<NbdConnected> {
  const { errno, known, attributes } = await aside(connectRequest(options));
  return { errno, known, index: attributes.get(NBD_ATTR_INDEX)?.getUint32(0, true) ?? -1 };
}

/** Changes a device by another thread; returns 0 or a positive errno. */
export async function nbdReconfigure(change: NbdChange): Promise<number> {
  return (await aside(reconfigureRequest(change))).errno;
}

/**
 * Disconnects a device by another thread. The kernel sends NBD_CMD_DISC to the server.
 *
 * @returns 0 or a positive errno.
 */
export async function nbdDisconnect(index: number): Promise<number> {
  return (await aside(disconnectRequest(index))).errno;
}

/**
 * Disconnects a device that is no longer served. The commands are finished when this returns, so
 * the process may exit. There is one exception: while another thread executes a command, which may
 * wait for this thread, the commands run after that one.
 *
 * @param close Closes the connections; called before this returns.
 */
export function nbdDrop(index: number, backend: string, close: () => void): void {
  // Kernels before 5.19 do not disconnect a device while requests wait for a new connection.
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
