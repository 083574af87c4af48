import { Errno, SystemError } from "../../../ffi/errno.ts";
import { isHostName, namesAt } from "../../web/access.ts";
import { parseOptions } from "../getopt.ts";

/** Where metrics are served. */
export type ExporterPlace =
  | {
    readonly transport: "tcp";
    readonly hostname: string;
    readonly port: number;
    /** Names, beside `localhost`, addresses and that of this machine, under which it may be asked. */
    readonly names: readonly string[];
  }
  | { readonly transport: "unix"; readonly path: string };

function wrong(why: string): SystemError {
  return new SystemError(Errno.EINVAL, why, { message: why });
}

function nameOf(text: string): string {
  if (isHostName(text)) return text.toLowerCase();
  throw wrong(
    `invalid --name: '${text}' is no name of a host, such as dom0.example without a port`,
  );
}

function addressOf(text: string, names: readonly string[]): ExporterPlace {
  const [, bracketed, bare, digits] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  const hostname = bracketed ?? bare;
  const port = Number(digits);
  if (hostname !== undefined && port <= 0xffff) return { transport: "tcp", hostname, port, names };
  throw wrong(`invalid --listen: '${text}' is no HOST:PORT, such as 127.0.0.1:9742 or [::1]:9742`);
}

/**
 * Parses a command line; null when it asks for help.
 *
 * @throws {SystemError} EINVAL.
 */
export function parseExporter(args: readonly string[]): ExporterPlace | null {
  const { options, operands, fault } = parseOptions({
    short: "h",
    long: ["help", "listen:", "socket:", "name:"],
  }, args);
  if (fault !== null) throw wrong(fault);
  if (operands.length > 0) throw wrong(`unexpected argument '${operands[0]}'`);
  const valueOf = (name: string): string | undefined =>
    options.findLast((option) => option.name === name)?.value;
  if (valueOf("h") !== undefined || valueOf("help") !== undefined) return null;
  const [listen, path] = [valueOf("listen"), valueOf("socket")];
  if ((listen === undefined) === (path === undefined)) {
    throw wrong("one of --listen HOST:PORT and --socket PATH is needed");
  }
  if (path === "") throw wrong("invalid --socket: there is no path");
  const names = options.filter(({ name }) => name === "name").map(({ value }) => nameOf(value));
  if (path === undefined) return addressOf(listen ?? "", names);
  if (names.length > 0) throw wrong("--name goes with --listen: at a socket, all names are served");
  return { transport: "unix", path };
}

const LOOPBACK = /^(?:(?:::ffff:)?127(?:\.\d{1,3}){3}|::1)$/i;

/**
 * The names under which the exporter may be asked, beside `localhost` and addresses; null for all. Only programs of this
 * machine reach a loopback address: a browser among them may be led there by a site's own name. Where other machines
 * can ask as well, names are looked at when there are some.
 *
 * @param address The address that the place turned out to be: a name, such as that of the machine, may be a loopback one.
 */
export function namesServed(
  place: ExporterPlace,
  { address, machine }: { address: string; machine: string },
): readonly string[] | null {
  if (place.transport === "unix") return null;
  if (!LOOPBACK.test(address) && place.names.length === 0) return null;
  return [...namesAt(place.hostname, place.names), machine.toLowerCase()];
}
