/**
 * Command lines as getopt(3) of glibc reads them: short options that may share a dash
 * (`-vsfp`), values in the same word or the next (`-nfile`, `-n file`), operands anywhere between.
 * Long options without values may be added.
 *
 * @module
 */

/** Which options there are. */
export interface OptionSpec {
  /** getopt's own notation: letters, with a colon behind those that take a value: `n:vsp`. */
  readonly short: string;
  /** Names of long options, without dashes; none takes a value. */
  readonly long?: readonly string[];
}

/** One option as it was given. */
export interface GivenOption {
  /** The letter, or the long name. */
  readonly name: string;
  /** Empty for options that take none. */
  readonly value: string;
}

/** What a command line says. */
export interface ParsedOptions {
  /** In the order given. */
  readonly options: readonly GivenOption[];
  readonly operands: readonly string[];
  /** What is wrong with the first bad option, in getopt's words, or null; what follows is not read. */
  readonly fault: string | null;
}

/**
 * Reads a command line.
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
      const name = arg.slice(2);
      if (!spec.long?.includes(name)) {
        return { options, operands, fault: `unrecognized option '${arg}'` };
      }
      options.push({ name, value: "" });
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
