/**
 * Parses command lines as getopt(3) of glibc does: short options may share a dash (`-vsfp`), a value is
 * in the same word or the next (`-nfile`, `-n file`), operands may stand between options. Long options
 * are possible too (`--json`, `--output FILE`, `--output=FILE`).
 *
 * @module
 */

/** The options of a command. */
export interface OptionSpec {
  /** getopt's notation: letters, with a colon after those that take a value: `n:vsp`. */
  readonly short: string;
  /**
   * Names of long options, without dashes, with a colon after those that take a value, and two after
   * those that may have one, which then is in the same word.
   */
  readonly long?: readonly string[];
}

/** An option that was given. */
export interface GivenOption {
  /** The letter, or the long name. */
  readonly name: string;
  /** Empty for options without a value. */
  readonly value: string;
}

/** A parsed command line. */
export interface ParsedOptions {
  /** In the order given. */
  readonly options: readonly GivenOption[];
  readonly operands: readonly string[];
  /** The fault of the first bad option, in getopt's words, or null. Parsing stops there. */
  readonly fault: string | null;
}

/**
 * Parses a command line.
 *
 * ```ts
 * import { parseOptions } from "./getopt.ts";
 *
 * parseOptions({ short: "n:vs" }, ["-vs", "-n", "a.vhd"]); // options v, s, n with "a.vhd"
 * ```
 */
export function parseOptions(spec: OptionSpec, args: readonly string[]): ParsedOptions {
  const options: GivenOption[] = [];
  const operands: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === "--") {
      return { options, operands: [...operands, ...args.slice(i + 1)], fault: null };
    }
    if (arg.startsWith("--")) {
      const { option, fault, usedNext } = parseLong(spec.long ?? [], arg, args[i + 1]);
      if (option === null) return { options, operands, fault };
      options.push(option);
      if (usedNext) i++;
    } else if (arg.startsWith("-") && arg.length > 1) {
      const { found, fault, usedNext } = parseLetters(spec.short, arg.slice(1), args[i + 1]);
      options.push(...found);
      if (fault !== null) return { options, operands, fault };
      if (usedNext) i++;
    } else {
      operands.push(arg);
    }
  }
  return { options, operands, fault: null };
}

interface Long {
  readonly option: GivenOption | null;
  readonly fault: string | null;
  readonly usedNext: boolean;
}

function parseLong(long: readonly string[], arg: string, next: string | undefined): Long {
  const equals = arg.indexOf("=");
  const name = arg.slice(2, equals < 0 ? undefined : equals);
  const fail = (fault: string): Long => ({ option: null, fault, usedNext: false });
  if (long.includes(name)) {
    if (equals >= 0) return fail(`option '--${name}' doesn't allow an argument`);
    return { option: { name, value: "" }, fault: null, usedNext: false };
  }
  if (long.includes(`${name}::`)) {
    const value = equals < 0 ? "" : arg.slice(equals + 1);
    return { option: { name, value }, fault: null, usedNext: false };
  }
  if (!long.includes(`${name}:`)) return fail(`unrecognized option '${arg}'`);
  const value = equals < 0 ? next : arg.slice(equals + 1);
  if (value === undefined) return fail(`option '--${name}' requires an argument`);
  return { option: { name, value }, fault: null, usedNext: equals < 0 };
}

interface Letters {
  readonly found: GivenOption[];
  readonly fault: string | null;
  readonly usedNext: boolean;
}

function parseLetters(short: string, letters: string, next: string | undefined): Letters {
  const found: GivenOption[] = [];
  for (let i = 0; i < letters.length; i++) {
    const letter = letters[i];
    const at = letter === ":" ? -1 : short.indexOf(letter);
    if (at < 0) return { found, fault: `invalid option -- '${letter}'`, usedNext: false };
    if (short[at + 1] !== ":") {
      found.push({ name: letter, value: "" });
      continue;
    }
    const rest = letters.slice(i + 1);
    if (rest !== "") {
      return { found: [...found, { name: letter, value: rest }], fault: null, usedNext: false };
    }
    if (next === undefined) {
      return { found, fault: `option requires an argument -- '${letter}'`, usedNext: false };
    }
    return { found: [...found, { name: letter, value: next }], fault: null, usedNext: true };
  }
  return { found, fault: null, usedNext: false };
}
