import { Errno, SystemError } from "../../../ffi/errno.ts";
import { DAEMON_ARGUMENT } from "../background.ts";
import { parseOptions } from "../getopt.ts";

/** What is to run. */
export interface TapbackChoices {
  /** The type of its devices in xenstore. */
  readonly type: string;
  /** Only the devices of this domain; null for all. */
  readonly domain: number | null;
  /** The file that has the number of the process while it runs; null for none. */
  readonly pidFile: string | null;
  /** Whether barriers are offered. */
  readonly barrier: boolean;
  /** In the foreground, with the log on standard error. */
  readonly isDebug: boolean;
  /** Whether each change of a device is logged, too. */
  readonly isVerbose: boolean;
  /** Whether this is the process in the background. */
  readonly isDaemon: boolean;
}

/** The type of devices for which a toolstack chooses tapback. */
export const DEFAULT_TYPE = "vbd3";
/** DOMID_FIRST_RESERVED of Xen's public xen.h: the domains of guests have lower numbers. */
const FIRST_RESERVED_DOMAIN = 0x7ff0;

function wrong(why: string): SystemError {
  return new SystemError(Errno.EINVAL, why, { message: why });
}

function domainOf(text: string): number {
  const number = /^(?:0[xX][0-9a-fA-F]+|\d+)$/.test(text) ? Number(text) : NaN;
  if (number > 0 && number < FIRST_RESERVED_DOMAIN) return number;
  throw wrong(`invalid --domain: '${text}' is no number of a guest's domain`);
}

function typeOf(text: string): string {
  if (/^[A-Za-z0-9_-]{1,64}$/.test(text)) return text;
  throw wrong(`invalid --name: '${text}' is no type of a device, such as ${DEFAULT_TYPE}`);
}

/**
 * Parses a command line; null when it asks for help.
 *
 * @throws {SystemError} EINVAL.
 */
export function parseTapback(args: readonly string[]): TapbackChoices | null {
  const { options, operands, fault } = parseOptions({
    short: "hdvn:p:x:b",
    long: [
      "help",
      "debug",
      "verbose",
      "name:",
      "pidfile:",
      "domain:",
      "nobarrier",
      DAEMON_ARGUMENT,
    ],
  }, args);
  if (fault !== null) throw wrong(fault);
  if (operands.length > 0) throw wrong(`unexpected argument '${operands[0]}'`);
  const valueOf = (letter: string, name: string): string | null =>
    options.findLast((option) => option.name === letter || option.name === name)?.value ?? null;
  if (valueOf("h", "help") !== null) return null;
  const domain = valueOf("x", "domain");
  return {
    type: typeOf(valueOf("n", "name") ?? DEFAULT_TYPE),
    domain: domain === null ? null : domainOf(domain),
    pidFile: valueOf("p", "pidfile"),
    barrier: valueOf("b", "nobarrier") === null,
    isDebug: valueOf("d", "debug") !== null,
    isVerbose: valueOf("v", "verbose") !== null,
    isDaemon: valueOf(DAEMON_ARGUMENT, DAEMON_ARGUMENT) !== null,
  };
}
