/**
 * The sockets on which this process listens. A tapdisk that takes over from another one gets that one's
 * sockets: clients that wait in their queues are not refused, and the paths never lead nowhere.
 *
 * @module
 */
import { addressPort } from "../../ffi/addresses.ts";
import { Errno } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { linkPath } from "../../ffi/paths.ts";
import {
  acceptConnection,
  acceptTcp,
  boundAddress,
  tcpListen,
  unixListen,
} from "../../ffi/sockets.ts";
import { leaveSocket, removeSocket } from "./socket_file.ts";

/** A socket that listens: at a path, or at an address and port, such as `tcp:[::]:10809`. */
export interface ListeningSocket {
  readonly at: string;
  readonly fd: number;
}

/** A socket of another process that this one takes over. */
export interface AdoptedSocket extends ListeningSocket {
  /** Its path in the other process; the same as `at` for an address. */
  readonly was: string;
}

const listening = new Map<string, number>();
const adopted = new Map<string, AdoptedSocket>();

let isHeld = false;

/** Accepts no connections for a moment, or accepts them again. */
export function holdAccepting(held: boolean): void {
  isHeld = held;
}

/** As `acceptConnection`; there is none while accepting is held. */
export function acceptHere(fd: number): number {
  return isHeld ? -Errno.EAGAIN : acceptConnection(fd);
}

/** As `acceptTcp`; there is none while accepting is held. */
export function acceptTcpHere(fd: number, from: Uint8Array<ArrayBuffer>): number {
  return isHeld ? -Errno.EAGAIN : acceptTcp(fd, from);
}

/** All sockets on which this process listens. */
export function listeningSockets(): ListeningSocket[] {
  return Array.from(listening, ([at, fd]) => ({ at, fd }));
}

/** Another process listens here, and `listenAt` or `listenTcp` gets its socket. It owns the descriptor. */
export function adoptSocket(socket: AdoptedSocket): void {
  adopted.set(socket.at, socket);
}

/** Closes the sockets that were adopted and that nobody asked for. */
export function dropAdopted(): void {
  for (const { fd } of adopted.values()) closeFile(fd);
  adopted.clear();
}

/**
 * Listens on a UNIX socket, and replaces a socket that exists at the path. An adopted socket gets the
 * path as another name.
 *
 * @throws {SystemError}
 */
export function listenAt(path: string, backlog?: number): number {
  const socket = adopted.get(path);
  removeSocket(path);
  if (socket !== undefined) linkPath(socket.was, path);
  adopted.delete(path);
  const fd = socket?.fd ?? unixListen(path, backlog);
  listening.set(path, fd);
  return fd;
}

/** Stops listening, and removes the path. */
export function stopListening(path: string, fd: number): void {
  if (listening.get(path) === fd) listening.delete(path);
  closeFile(fd);
  leaveSocket(path);
}

/** As `tcpListen`. */
export function listenTcp(...wanted: Parameters<typeof tcpListen>): number {
  const [, title] = wanted;
  const known = adopted.get(`tcp:${title}`);
  adopted.delete(`tcp:${title}`);
  const fd = known?.fd ?? tcpListen(...wanted);
  listening.set(titleOf(title, fd), fd);
  return fd;
}

/** Stops listening on a socket that `listenTcp` returned. */
export function stopListeningTcp(fd: number): void {
  for (const [at, each] of listening) if (each === fd) listening.delete(at);
  closeFile(fd);
}

/** The address with the port that the kernel chose. */
function titleOf(title: string, fd: number): string {
  return `tcp:${title.slice(0, title.lastIndexOf(":"))}:${addressPort(boundAddress(fd))}`;
}
