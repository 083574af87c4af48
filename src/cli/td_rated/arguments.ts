import { Errno, SystemError } from "../../../ffi/errno.ts";
import { DAEMON_ARGUMENT } from "../background.ts";
import { type GivenOption, parseOptions } from "../getopt.ts";
import { parseAmount } from "../sizes.ts";

/** A token bucket; with a cap of 0, a leaky one. */
export interface BucketChoice {
  readonly type: "token" | "leaky";
  readonly rate: number;
  readonly capBytes: number;
}

/** A bucket that limits only while the machine has too much to write. */
export interface MemoryChoice {
  readonly type: "meminfo";
  readonly highPercent: number;
  readonly lowPercent: number;
  readonly periodMs: number;
  readonly bucket: BucketChoice;
}

/** What is to run. */
export interface RatedChoices {
  /** A path, or a name in the folder of the bridges. */
  readonly name: string;
  readonly limiter: BucketChoice | MemoryChoice;
  /** Above 0: in the foreground, with the log on standard error. */
  readonly debug: number;
  /** Whether this is the process in the background. */
  readonly isDaemon: boolean;
}

function wrong(why: string): SystemError {
  return new SystemError(Errno.EINVAL, why, { message: why });
}

/** Options in GNU's manner: long ones with `=` or a space, and the letters of the original. */
function parse(
  args: readonly string[],
  { letters, long }: { letters: string; long: readonly string[] },
): { options: readonly GivenOption[]; operands: readonly string[] } {
  const parsed = parseOptions({ short: letters, long }, args);
  if (parsed.fault !== null) throw wrong(parsed.fault);
  return parsed;
}

/** The last value of an option, by its letter or its name. */
function valueOf(options: readonly GivenOption[], letter: string, name: string): string | null {
  const given = options.findLast((option) => option.name === letter || option.name === name);
  return given?.value ?? null;
}

function amountOf(options: readonly GivenOption[], letter: string, name: string): number | null {
  const text = valueOf(options, letter, name);
  if (text === null) return null;
  const amount = parseAmount(text);
  if (amount !== null) return amount;
  throw wrong(`invalid --${name}: '${text}' is no whole number, such as 500, 60M or 128Mi`);
}

function bucket(type: "token" | "leaky", args: readonly string[]): BucketChoice {
  const isToken = type === "token";
  const { options, operands } = parse(args, {
    letters: isToken ? "r:c:" : "r:",
    long: isToken ? ["rate:", "cap:"] : ["rate:"],
  });
  if (operands.length > 0) throw wrong(`unexpected argument '${operands[0]}'`);
  const rate = amountOf(options, "r", "rate");
  if (rate === null || rate === 0) throw wrong("--rate required");
  return { type, rate, capBytes: amountOf(options, "c", "cap") ?? 0 };
}

function percentOf(options: readonly GivenOption[], letter: string, name: string): number {
  const percent = amountOf(options, letter, name);
  if (percent === null || percent === 0) throw wrong("--high/--low required");
  if (percent <= 100) return percent;
  throw wrong(`invalid --${name}: ${percent} is no percentage`);
}

/** Splits at the first `--`, which parts the options of a limiter from those before it. */
function split(args: readonly string[]): [before: readonly string[], behind: readonly string[]] {
  const at = args.indexOf("--");
  return at < 0 ? [args, []] : [args.slice(0, at), args.slice(at + 1)];
}

function memory(args: readonly string[]): MemoryChoice {
  const [own, rest] = split(args);
  const { options, operands } = parse(own, {
    letters: "p:t:H:L:",
    long: ["period:", "type:", "high:", "low:"],
  });
  if (operands.length > 0) throw wrong(`unexpected argument '${operands[0]}'`);
  const highPercent = percentOf(options, "H", "high");
  const lowPercent = percentOf(options, "L", "low");
  if (lowPercent >= highPercent) throw wrong("invalid --high/--low ratio");
  const periodMs = amountOf(options, "p", "period") ?? 100;
  if (periodMs < 1 || periodMs > 60_000) throw wrong("--period must be from 1 to 60000");
  const limiter = limiterOf(valueOf(options, "t", "type"), rest);
  if (limiter.type === "meminfo") throw wrong("the (sub) --type must be token or leaky");
  return { type: "meminfo", highPercent, lowPercent, periodMs, bucket: limiter };
}

function limiterOf(type: string | null, args: readonly string[]): BucketChoice | MemoryChoice {
  switch (type) {
    case null:
      throw wrong("--type required");
    case "token":
    case "leaky":
      return bucket(type, args);
    case "meminfo":
      return memory(args);
    default: {
      const message = `No such driver: ${type} (there are token, leaky and meminfo)`;
      throw new SystemError(Errno.ESRCH, message, { message });
    }
  }
}

/**
 * Parses a command line; null when it asks for help.
 *
 * @throws {SystemError} EINVAL for a wrong one, ESRCH for a type that there is not.
 */
export function parseRated(args: readonly string[]): RatedChoices | null {
  const [own, rest] = split(args);
  const { options, operands } = parse(own, {
    letters: "ht:D:",
    long: ["help", "type:", "debug:", DAEMON_ARGUMENT],
  });
  if (options.some(({ name }) => name === "h" || name === "help")) return null;
  const debug = amountOf(options, "D", "debug") ?? 0;
  if (operands.length === 0) throw wrong("a name or a path for the socket is missing");
  if (operands.length > 1) throw wrong(`unexpected argument '${operands[1]}'`);
  return {
    name: operands[0],
    limiter: limiterOf(valueOf(options, "t", "type"), rest),
    debug,
    isDaemon: options.some(({ name }) => name === DAEMON_ARGUMENT),
  };
}
