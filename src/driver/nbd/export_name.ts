import { Errno, SystemError } from "../../../ffi/errno.ts";

/** Where an export is. */
export interface ExportName {
  /** The server: a socket's path, a host and a port, or a descriptor that was handed over. */
  readonly server:
    | { readonly kind: "unix"; readonly path: string }
    | { readonly kind: "tcp"; readonly host: string; readonly port: number }
    | { readonly kind: "descriptor"; readonly name: string };
  /** The export's own name; empty for the server's default. */
  readonly exportName: string;
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
 * - `//HOST[:PORT]/NAME` and `///NAME?socket=/path/of.sock`: what follows the scheme in a URI
 * - `/path/of.sock`, if that is a socket
 * - otherwise the name of a descriptor that was handed over
 *
 * @param isSocket Whether there is a socket at a path.
 * @throws {SystemError} EINVAL for a wrong address.
 */
export function parseExportName(
  text: string,
  isSocket: (path: string) => boolean = isSocketFile,
): ExportName {
  const parsed = text.startsWith("//") ? parseUri(text) : parseParts(text);
  if (parsed !== null) return parsed;
  if (text.startsWith("/") && isSocket(text)) {
    return { server: { kind: "unix", path: text }, exportName: "" };
  }
  if (!LIKE_AN_ADDRESS.test(text)) {
    return { server: { kind: "descriptor", name: text }, exportName: "" };
  }
  throw new SystemError(
    Errno.EINVAL,
    `Cannot open the export ${JSON.stringify(text)} (it is named unix:/SOCKET[:NAME], ` +
      `HOST:PORT[:NAME], //HOST[:PORT]/NAME or ///NAME?socket=/SOCKET)`,
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
  return tcp === null ? null : tcpExport(tcp[1], Number(tcp[2]), tcp[3] ?? "");
}

function parseUri(text: string): ExportName | null {
  const match = /^\/\/(\[[^\]]+\]|[^:/?[\]]*)(?::(\d+))?(?:\/([^?]*))?(?:\?socket=(\/.+))?$/
    .exec(text);
  if (match === null) return null;
  const [, host, port, name = "", socket] = match;
  try {
    const exportName = decodeURIComponent(name);
    if (socket !== undefined) {
      if (host !== "") return null;
      return { server: { kind: "unix", path: decodeURIComponent(socket) }, exportName };
    }
    return tcpExport(host, port === undefined ? NBD_PORT : Number(port), exportName);
  } catch {
    return null;
  }
}

function tcpExport(host: string, port: number, exportName: string): ExportName | null {
  if (host === "" || port < 1 || port > 65535) return null;
  return { server: { kind: "tcp", host: host.replace(/^\[(.*)\]$/, "$1"), port }, exportName };
}
