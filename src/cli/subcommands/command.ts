import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { keyFileWarning } from "../key_file.ts";
import { PARENT_ROOT_TEXT } from "../shared_texts.ts";
import type { GivenOption } from "../getopt.ts";
import type { Output } from "./output.ts";

/** An option: `--help` lists it, and the command line is parsed by it. */
export interface CommandOption {
  /** The letter, or a long name. */
  readonly name: string;
  /** What the value stands for, where the option takes one: `FILE`. */
  readonly value?: string;
  /** The same for a value that can be left out. */
  readonly optionalValue?: string;
  readonly text: string;
}

/** The option of all subcommands that look for parents. */
export const PARENT_ROOT_OPTION: CommandOption = {
  name: "parent-root",
  value: "FOLDER",
  text: PARENT_ROOT_TEXT,
};

/** A subcommand of a program. */
export interface Subcommand {
  readonly name: string;
  /** One line, without a full stop. */
  readonly summary: string;
  /** What follows the name in the synopsis: `-n FILE [-vsp]`. Each line is a form of its own. */
  readonly synopsis: string;
  /** What the original prints for a wrong command line. Callers may search it. */
  readonly usage: string;
  readonly options: readonly CommandOption[];
  /** Options of the original that are accepted and change nothing. Help does not list them. */
  readonly ignoredOptions?: readonly CommandOption[];
  /** A worked example: shell lines and what they print. */
  readonly example: string;
  /** Whether words that belong to no option are allowed. */
  readonly operands?: boolean;
  /** Whether it looks for parents: then it takes {@linkcode PARENT_ROOT_OPTION}. */
  readonly followsParents?: boolean;
  /** Does the work. Returns the exit status: 0 or an error number. May throw. */
  run(call: CommandCall): number | Promise<number>;
}

/** A command line that was parsed without a fault. */
export class CommandCall {
  constructor(
    readonly given: readonly GivenOption[],
    readonly operands: readonly string[],
    readonly output: Output,
  ) {}

  /** Whether an option was given. */
  has(name: string): boolean {
    return this.given.some((option) => option.name === name);
  }

  /** The last value that an option was given, or null. */
  value(name: string): string | null {
    return this.given.findLast((option) => option.name === name)?.value ?? null;
  }

  /** Warns about key files, named by these options, that users other than their owner can access. */
  warnOfKeyFiles(...names: readonly string[]): void {
    for (const path of names.flatMap((name) => this.values(name))) {
      const warning = keyFileWarning(path);
      if (warning !== null) this.output.printError(warning);
    }
  }

  /** All values of an option that may be repeated. */
  values(name: string): string[] {
    return this.given.filter((option) => option.name === name).map(({ value }) => value);
  }

  /**
   * The value of an option as a whole number, or null when it was not given.
   *
   * @throws {UsageError} when the value is not a whole number.
   */
  number(name: string): number | null {
    const text = this.value(name);
    if (text === null) return null;
    const number = Number(text);
    if (!/^\+?[0-9]+$/.test(text) || !Number.isSafeInteger(number)) {
      throw new UsageError(
        `Cannot read '${text}', the value of -${name}: it is not a whole number below 2^53`,
      );
    }
    return number;
  }

  /**
   * The value of an option that must be given.
   *
   * @throws {UsageError} when it was not.
   */
  required(name: string): string {
    const text = this.value(name);
    if (text === null) throw new UsageError(null);
    return text;
  }
}

/** An invalid command line: the usage is printed and EINVAL returned. */
export class UsageError extends Error {
  /** @param detail A line for standard error, or null where the usage is enough. */
  constructor(readonly detail: string | null) {
    super(detail ?? "Invalid command line");
  }
}

/** The error number of a `SystemError`. Any other error is a fault of the program and is rethrown. */
export function expectedErrno(error: unknown): number {
  if (!(error instanceof SystemError)) throw error;
  return error.errno > 0 ? error.errno : Errno.EIO;
}

/**
 * Reports a failure as the original does: its words and the negative error number on standard output.
 * The full message goes to standard error.
 *
 * @returns The exit status.
 */
export function failedTo({ output }: CommandCall, words: string, error: unknown): number {
  const errno = expectedErrno(error);
  output.printLine(`${words}${-errno}`);
  output.printError(messageOf(error));
  return errno;
}
