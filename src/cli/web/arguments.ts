import { Errno, SystemError } from "../../../ffi/errno.ts";
import { isHostName, namesAt } from "../../web/access.ts";
import { parseOptions } from "../getopt.ts";

/** Where the page is. */
export type WebAddress =
  | { readonly kind: "socket"; readonly path: string }
  | {
    readonly kind: "port";
    readonly hostname: string;
    readonly port: number;
    /** Whether only this machine reaches it. */
    readonly isLoopback: boolean;
  };

/** What is to run. */
export interface WebChoices {
  readonly address: WebAddress;
  readonly tokenFile: string | null;
  /** Names, beside `localhost` and addresses, under which browsers ask for the page. */
  readonly names: readonly string[];
  /** Folders in which images are looked for. */
  readonly folders: readonly string[];
  readonly allowsChanges: boolean;
  /** Whether this is a process that does one piece of work. */
  readonly isWorker: boolean;
}

/** The argument of a process that does one piece of work for the page. */
export const WORKER_ARGUMENT = "worker";
/** Where the page is unless the caller says otherwise. */
export const DEFAULT_LISTEN = "localhost:9753";
/** The longest path of a UNIX socket (sun_path of unix(7)). */
const MOST_SOCKET_PATH_BYTES = 107;

function wrong(why: string): SystemError {
  return new SystemError(Errno.EINVAL, why, { message: why });
}

function portAddress(text: string): WebAddress {
  const [, bracketed, plain, digits] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  if (host === undefined || port > 65535) {
    throw wrong(`invalid --listen: '${text}' is no HOST:PORT, such as ${DEFAULT_LISTEN}`);
  }
  const hostname = host === "localhost" ? "127.0.0.1" : host;
  const isLoopback = hostname === "::1" || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(hostname);
  return { kind: "port", hostname, port, isLoopback };
}

function absolute(option: string, path: string): string {
  if (path === "") throw wrong(`invalid --${option}: the path is empty`);
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}

function socketAddress(text: string): WebAddress {
  const path = absolute("socket", text);
  if (new TextEncoder().encode(path).length > MOST_SOCKET_PATH_BYTES) {
    throw wrong(`invalid --socket: '${path}' is longer than ${MOST_SOCKET_PATH_BYTES} bytes`);
  }
  return { kind: "socket", path };
}

function nameOf(text: string): string {
  if (isHostName(text)) return text.toLowerCase();
  throw wrong(
    `invalid --name: '${text}' is no name of a host, such as dom0.example without a port`,
  );
}

/**
 * Parses a command line; null when it asks for help.
 *
 * @throws {SystemError} EINVAL.
 */
export function parseWeb(args: readonly string[]): WebChoices | null {
  const { options, operands, fault } = parseOptions({
    short: "h",
    long: [
      "help",
      "listen:",
      "socket:",
      "token-file:",
      "name:",
      "images:",
      "allow-changes",
      WORKER_ARGUMENT,
    ],
  }, args);
  if (fault !== null) throw wrong(fault);
  if (operands.length > 0) throw wrong(`unexpected argument '${operands[0]}'`);
  const valuesOf = (name: string): string[] =>
    options.filter((option) => option.name === name).map(({ value }) => value);
  if (valuesOf("h").length + valuesOf("help").length > 0) return null;
  const [listen, socket] = [valuesOf("listen").at(-1), valuesOf("socket").at(-1)];
  if (listen !== undefined && socket !== undefined) {
    throw wrong("--listen and --socket exclude each other");
  }
  const tokenFile = valuesOf("token-file").at(-1);
  const address = socket === undefined
    ? portAddress(listen ?? DEFAULT_LISTEN)
    : socketAddress(socket);
  const names = valuesOf("name").map(nameOf);
  return {
    address,
    tokenFile: tokenFile === undefined ? null : absolute("token-file", tokenFile),
    names: address.kind === "port" ? namesAt(address.hostname, names) : names,
    folders: valuesOf("images").map((folder) =>
      absolute("images", folder).replace(/(.)\/+$/, "$1")
    ),
    allowsChanges: valuesOf("allow-changes").length > 0,
    isWorker: valuesOf(WORKER_ARGUMENT).length > 0,
  };
}
