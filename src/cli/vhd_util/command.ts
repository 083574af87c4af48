import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { keyFileWarning } from "../key_file.ts";
import type { GivenOption } from "../getopt.ts";
import type { Output } from "./output.ts";

/** An option as `--help` tells of it; the command line is read by the same table. */
export interface CommandOption {
  /** The letter, or a long name. */
  readonly name: string;
  /** What the value stands for, where the option takes one: `FILE`. */
  readonly value?: string;
  readonly text: string;
}

/** An option of all subcommands that look for parents. */
export const PARENT_ROOT_OPTION: CommandOption = {
  name: "parent-root",
  value: "FOLDER",
  text: "parents may be in this folder, too, or anywhere with 'any'; may be repeated",
};

/** A subcommand of vhd-util. */
export interface Subcommand {
  readonly name: string;
  /** One line, without a full stop. */
  readonly summary: string;
  /** What goes behind the name in the synopsis: `-n FILE [-vsp]`. */
  readonly synopsis: string;
  /** What the original prints for a wrong command line, which callers may look for. */
  readonly usage: string;
  readonly options: readonly CommandOption[];
  /** What callers of the original may give and what changes nothing here: help leaves it out. */
  readonly ignoredOptions?: readonly CommandOption[];
  /** A worked example: shell lines and what they print. */
  readonly example: string;
  /** Whether words that are no options are allowed. */
  readonly operands?: boolean;
  /** Whether it looks for parents: then it takes {@linkcode PARENT_ROOT_OPTION}. */
  readonly followsParents?: boolean;
  /** Does the work. Returns the exit status: 0 or an error number. May throw. */
  run(call: CommandCall): number | Promise<number>;
}

/** A command line that was read and found to be well formed. */
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

  /** The value of an option, the last one where it was given more than once; or null. */
  value(name: string): string | null {
    return this.given.findLast((option) => option.name === name)?.value ?? null;
  }

  /** Warns about files of keys, named by these options, that others than their owner may use. */
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
   * @throws {UsageError} when it is no number.
   */
  number(name: string): number | null {
    const text = this.value(name);
    if (text === null) return null;
    const number = Number(text);
    if (!/^\+?[0-9]+$/.test(text) || !Number.isSafeInteger(number)) {
      throw new UsageError(`Cannot read '${text}', the value of -${name}, as a whole number`);
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

/** A command line that makes no sense: the usage is printed and EINVAL returned. */
export class UsageError extends Error {
  /** @param detail A line for standard error, or null where the usage says it all. */
  constructor(readonly detail: string | null) {
    super(detail ?? "The command line makes no sense");
  }
}

/** The number of an error that a command can end with; another is a fault of ours, and thrown again. */
export function expectedErrno(error: unknown): number {
  if (!(error instanceof SystemError)) throw error;
  return error.errno > 0 ? error.errno : Errno.EIO;
}

/**
 * Reports in the original's manner what could not be done: its words and the negative error number
 * on standard output, the whole story on standard error.
 *
 * @returns The exit status.
 */
export function failedTo({ output }: CommandCall, words: string, error: unknown): number {
  const errno = expectedErrno(error);
  output.printLine(`${words}${-errno}`);
  output.printError(messageOf(error));
  return errno;
}
