import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { ClientTls } from "../../tls/tls.ts";

/** A server's host and port. */
export interface TcpServer {
  readonly host: string;
  readonly port: number;
}

/** Where an export is. */
export interface ExportName {
  /**
   * The server: a socket's path, a host and a port, or a descriptor that was handed over. `others`
   * have the same export, and are asked when the server does not answer.
   */
  readonly server:
    | { readonly kind: "unix"; readonly path: string }
    | ({ readonly kind: "tcp"; readonly others?: readonly TcpServer[] } & TcpServer)
    | { readonly kind: "descriptor"; readonly name: string };
  /** The export's own name; empty for the server's default. */
  readonly exportName: string;
  /** How TLS is used; missing without. */
  readonly tls?: ClientTls;
}

/** The port of NBD servers, unless they say otherwise (IANA). */
const NBD_PORT = 10809;

/** A name that is meant to be an address: with a wrong one it is refused, not looked up. */
const LIKE_AN_ADDRESS = /^$|^unix:|^\/\/|:\d+$/;

/**
 * The parts of an export's name:
 *
 * - `unix:/path/of.sock` or `unix:/path/of.sock:NAME`
 * - `HOST:PORT` or `HOST:PORT:NAME`, an IPv6 address in brackets
 * - `//HOST[:PORT][,HOST[:PORT]…]/NAME` and `///NAME?socket=/path/of.sock`: what follows the scheme in
 *   a URI
 * - `/path/of.sock`, if that is a socket
 * - otherwise the name of a descriptor that was handed over
 *
 * @param isSocket Whether there is a socket at a path.
 * @param isTls Whether the scheme is one of TLS. Then the name is a URI, and may have libnbd's
 * parameters: tls-certificates, tls-psk-file, tls-username, tls-hostname, tls-verify-peer.
 * @throws {SystemError} EINVAL for a wrong address.
 */
export function parseExportName(
  text: string,
  isSocket: (path: string) => boolean = isSocketFile,
  isTls = false,
): ExportName {
  const parsed = text.startsWith("//") ? parseUri(text, isTls) : isTls ? null : parseParts(text);
  if (parsed !== null) return parsed;
  if (!isTls && text.startsWith("/") && isSocket(text)) {
    return { server: { kind: "unix", path: text }, exportName: "" };
  }
  if (!isTls && !LIKE_AN_ADDRESS.test(text)) {
    return { server: { kind: "descriptor", name: text }, exportName: "" };
  }
  const uris = "//HOST[:PORT]/NAME or ///NAME?socket=/SOCKET";
  const names = isTls
    ? `${uris}, with tls-certificates=, tls-psk-file=, tls-username=, tls-hostname= or ` +
      "tls-verify-peer= behind ? and &, whole paths"
    : `unix:/SOCKET[:NAME], HOST:PORT[:NAME], ${uris}`;
  throw new SystemError(
    Errno.EINVAL,
    `Cannot open the export ${JSON.stringify(text)} (it is named ${names})`,
  );
}

function isSocketFile(path: string): boolean {
  try {
    return Deno.statSync(path).isSocket === true;
  } catch {
    return false;
  }
}

function parseParts(text: string): ExportName | null {
  const unix = /^unix:(\/[^:]+)(?::(.*))?$/s.exec(text);
  if (unix !== null) {
    return { server: { kind: "unix", path: unix[1] }, exportName: unix[2] ?? "" };
  }
  const tcp = /^(\[[^\]]+\]|[^:[\]]+):(\d+)(?::(.*))?$/s.exec(text);
  const server = tcp === null ? null : tcpServer(tcp[1], Number(tcp[2]));
  return server === null
    ? null
    : { server: { kind: "tcp", ...server }, exportName: tcp?.[3] ?? "" };
}

/** The parameters behind the question mark of a URI; null for one that there is not. */
function parseQuery(query: string | undefined, isTls: boolean): Map<string, string> | null {
  const parameters = new Map<string, string>();
  if (query === undefined) return parameters;
  // Without TLS there is one parameter, and a path may have any character.
  for (const part of isTls ? query.split("&") : [query]) {
    const [, name, value] = /^([a-z-]+)=(.*)$/s.exec(part) ?? [];
    const isKnown = name === "socket" || (isTls && TLS_PARAMETERS.has(name));
    if (!isKnown || parameters.has(name)) return null;
    parameters.set(name, decodeURIComponent(value));
  }
  return parameters;
}

const TLS_PARAMETERS: ReadonlySet<string> = new Set([
  ...["tls-certificates", "tls-psk-file", "tls-username", "tls-hostname", "tls-verify-peer"],
]);

function parseUri(text: string, isTls: boolean): ExportName | null {
  const match = /^\/\/(?:([^@/?]*)@)?([^/?@]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(text);
  if (match === null) return null;
  const [, user, hosts, name = "", query] = match;
  try {
    const parameters = parseQuery(query, isTls);
    if (parameters === null || (user !== undefined && !isTls)) return null;
    const tls = isTls ? parseTls(parameters, decodeURIComponent(user ?? "")) : undefined;
    const server = parseServer(hosts, parameters.get("socket"));
    if (server === null || tls === null) return null;
    const exportName = decodeURIComponent(name);
    return { server, exportName, ...(tls === undefined ? {} : { tls }) };
  } catch {
    return null;
  }
}

function parseServer(hosts: string, socket: string | undefined): ExportName["server"] | null {
  if (socket !== undefined) {
    return hosts === "" && socket.startsWith("/") && socket.length > 1
      ? { kind: "unix", path: socket }
      : null;
  }
  const servers: TcpServer[] = [];
  for (const each of hosts.split(",")) {
    const [, host, port] = /^(\[[^\]]+\]|[^:[\]]*)(?::(\d+))?$/.exec(each) ?? [];
    const server = host === undefined ? null : tcpServer(host, port ? Number(port) : NBD_PORT);
    if (server === null) return null;
    servers.push(server);
  }
  const [first, ...others] = servers;
  return { kind: "tcp", ...first, ...(others.length === 0 ? {} : { others }) };
}

function tcpServer(host: string, port: number): TcpServer | null {
  if (host === "" || port < 1 || port > 65535) return null;
  return { host: host.replace(/^\[(.*)\]$/, "$1"), port };
}

/** A whole path, an empty text for none; undefined for another text. */
function pathIn(text: string): string | null | undefined {
  if (text === "") return null;
  return text.startsWith("/") ? text : undefined;
}

/** What is said of TLS in parameters, or else in the environment; null for what makes no sense. */
function parseTls(parameters: ReadonlyMap<string, string>, user: string): ClientTls | null {
  const said = (name: string, variable: string): string =>
    parameters.get(name) ?? Deno.env.get(variable) ?? "";
  const isKeyed = parameters.has("tls-psk-file") || !parameters.has("tls-certificates");
  const psk = isKeyed ? pathIn(said("tls-psk-file", "BLKTAP_TLS_PSK_FILE")) : null;
  const certificates = psk === null
    ? pathIn(said("tls-certificates", "BLKTAP_TLS_CERTIFICATES"))
    : null;
  const verify = parameters.get("tls-verify-peer") ?? "true";
  if (psk === undefined || certificates === undefined) return null;
  if (!["true", "1", "false", "0"].includes(verify)) return null;
  if (parameters.has("tls-certificates") && parameters.has("tls-psk-file")) return null;
  return {
    certificates,
    psk,
    username: user || said("tls-username", "BLKTAP_TLS_USERNAME"),
    hostname: parameters.get("tls-hostname") || null,
    verifyPeer: verify === "true" || verify === "1",
  };
}
