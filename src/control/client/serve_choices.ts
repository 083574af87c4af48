import { listeningAddresses } from "../../../ffi/addresses.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import type { ServerTls, TlsMode } from "../../tls/tls.ts";

/** The port of NBD servers (IANA). */
const NBD_PORT = 10809;
/** The most clients of an export, in all and from one address, unless others are given. */
export const MAX_CLIENTS = 128;
export const MAX_CLIENTS_PER_ADDRESS = 64;

/** Where to listen: a host, or null for all addresses, and a port. */
export interface ListenChoice {
  readonly host: string | null;
  readonly port: number;
}

/**
 * `HOST:PORT`, of which each may be missing; an IPv6 address is in brackets. Null for a text that is
 * none.
 */
export function parseListen(text: string): ListenChoice | null {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]*))(?::(\d+))?$/.exec(text);
  const port = match?.[3] === undefined ? NBD_PORT : Number(match[3]);
  if (match === null || port > 0xffff) return null;
  const host = match[1] ?? match[2];
  return { host: host === "" || host === "*" ? null : host, port };
}

/** How a disk is to be served over TCP, as an administrator says it. */
export interface ServeChoices {
  readonly listen?: ListenChoice;
  readonly exportName?: string;
  readonly tls?: TlsMode;
  readonly tlsCertificates?: string;
  readonly tlsPsk?: string;
  readonly tlsVerifyPeer?: boolean;
  readonly maxClients?: number;
  readonly maxClientsPerAddress?: number;
}

function serverTls(
  { tls, tlsCertificates, tlsPsk, tlsVerifyPeer = false }: ServeChoices,
): ServerTls {
  const isNamed = tlsCertificates !== undefined || tlsPsk !== undefined || tlsVerifyPeer;
  const mode = tls ?? (isNamed ? "require" : "off");
  if (mode === "off" && isNamed) {
    throw new SystemError(Errno.EINVAL, "Cannot use certificates or keys with --tls off");
  }
  if (tlsPsk !== undefined && (tlsCertificates !== undefined || tlsVerifyPeer)) {
    const what = "Cannot use --tls-psk with --tls-certificates or --tls-verify-peer";
    throw new SystemError(Errno.EINVAL, `${what} (keys and certificates exclude each other)`);
  }
  return {
    mode,
    certificates: tlsCertificates ?? null,
    psk: tlsPsk ?? null,
    verifyPeer: tlsVerifyPeer,
  };
}

/**
 * What was said as a request; null without `--listen`. The resolver is asked for the host. Throws
 * `SystemError`: EINVAL for options that exclude each other, EHOSTUNREACH for an unknown host.
 */
export function serveRequest({ listen, ...choices }: ServeChoices): ServeRequest | null {
  if (listen === undefined) {
    const given = Object.entries(choices).find(([name, value]) =>
      value !== undefined && SERVE_NAMES.has(name)
    );
    if (given === undefined) return null;
    throw new SystemError(
      Errno.EINVAL,
      "Cannot serve the disk over TCP: settings are given, and no address to listen on (listen)",
    );
  }
  const { exportName = "", maxClients = MAX_CLIENTS } = choices;
  const { maxClientsPerAddress = Math.min(MAX_CLIENTS_PER_ADDRESS, maxClients) } = choices;
  return {
    addresses: listen.host === null ? [] : [...new Set(listeningAddresses(listen.host))],
    port: listen.port,
    name: exportName,
    tls: serverTls(choices),
    maxClients,
    maxClientsPerAddress,
  };
}

const SERVE_NAMES: ReadonlySet<string> = new Set([
  ...["exportName", "tls", "tlsCertificates", "tlsPsk", "tlsVerifyPeer"],
  ...["maxClients", "maxClientsPerAddress"],
]);
