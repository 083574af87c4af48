import { type Command, InvalidArgumentError, Option } from "commander";
import { listeningAddresses } from "../../../ffi/addresses.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { LONGEST_EXPORT_NAME_BYTES, MOST_EXPORT_CLIENTS } from "../../control/protocol/serve.ts";
import type { ServeRequest } from "../../frontend/nbd/ports.ts";
import { type ServerTls, TLS_CERTIFICATES_FOLDER, TLS_MODES, type TlsMode } from "../../tls/tls.ts";
import { absolutePath } from "./paths.ts";

/** The port of NBD servers (IANA). */
const NBD_PORT = 10809;
/** The most clients of an export, in all and from one address, unless others are given. */
const MAX_CLIENTS = 128;
const MAX_CLIENTS_PER_ADDRESS = 64;

/** Where to listen: a host, or null for all addresses, and a port. */
export interface ListenChoice {
  readonly host: string | null;
  readonly port: number;
}

/** Parses `HOST:PORT`, of which each may be missing; an IPv6 address is in brackets. */
export function parseListen(text: string): ListenChoice {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]*))(?::(\d+))?$/.exec(text);
  const port = match?.[3] === undefined ? NBD_PORT : Number(match[3]);
  if (match === null || port > 0xffff) {
    throw new InvalidArgumentError(
      "It must be HOST:PORT, such as 192.0.2.1:10809, [2001:db8::1]:10809, or :10809 for all.",
    );
  }
  const host = match[1] ?? match[2];
  return { host: host === "" || host === "*" ? null : host, port };
}

function parseClients(text: string): number {
  const count = Number(text);
  if (/^\d+$/.test(text) && count >= 1 && count <= MOST_EXPORT_CLIENTS) return count;
  throw new InvalidArgumentError(`It must be a whole number from 1 to ${MOST_EXPORT_CLIENTS}.`);
}

function parseName(text: string): string {
  if (new TextEncoder().encode(text).length <= LONGEST_EXPORT_NAME_BYTES) return text;
  throw new InvalidArgumentError(`It must have at most ${LONGEST_EXPORT_NAME_BYTES} bytes.`);
}

/** The values of the options that say how a disk is served over TCP. */
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

/** `--listen`. */
export function listenOption(text = "serve the disk by NBD on this address, port 10809"): Option {
  return new Option("--listen <host:port>", text).argParser(parseListen);
}

/** The options that say how a disk is served over TCP. */
export function serveOptions(command: Command): Command {
  return command
    .addOption(listenOption())
    .option("--export-name <name>", "the export's name; empty by default", parseName)
    .addOption(
      new Option("--tls <mode>", "require by default where certificates or keys are named")
        .choices(TLS_MODES),
    )
    .option(
      "--tls-certificates <folder>",
      `server-cert.pem, server-key.pem and ca-cert.pem; by default in ${TLS_CERTIFICATES_FOLDER}`,
    )
    .option("--tls-psk <file>", "keys instead of certificates: lines NAME:HEX, as of psktool")
    .option("--tls-verify-peer", "clients must have a certificate that is of ca-cert.pem")
    .option("--max-clients <count>", `the most clients, ${MAX_CLIENTS} by default`, parseClients)
    .option(
      "--max-clients-per-address <count>",
      `the most clients from one address, ${MAX_CLIENTS_PER_ADDRESS} by default`,
      parseClients,
    );
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
    certificates: tlsCertificates === undefined ? null : absolutePath(tlsCertificates),
    psk: tlsPsk === undefined ? null : absolutePath(tlsPsk),
    verifyPeer: tlsVerifyPeer,
  };
}

/**
 * What the options ask for; null without `--listen`. The resolver is asked for the host. Throws
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
      "Cannot set how the disk is served over TCP without --listen",
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
