import type { GivenOption } from "../getopt.ts";
import type { Output } from "../subcommands/output.ts";

/** A command line that was parsed without a fault. */
export interface ToolCall {
  readonly options: readonly GivenOption[];
  readonly operands: readonly string[];
  readonly output: Output;
}

/** One of the tools. */
export interface ImageTool {
  readonly name: string;
  /** One line, without a full stop. */
  readonly summary: string;
  readonly synopsis: string;
  /** What help and the manual page say beside the summary. */
  readonly text: string;
  /** Letters of options, as getopt has them. */
  readonly letters: string;
  /** How many operands there must be, and may be. */
  readonly operands: readonly [number, number];
  /** Does the work. Returns the exit status; null for wrong arguments. May throw. */
  run(call: ToolCall): number | null | Promise<number | null>;
}

/** The value of an option; null when it was not given. */
export function valueOf({ options }: ToolCall, letter: string): string | null {
  return options.findLast(({ name }) => name === letter)?.value ?? null;
}

/** A whole number; null for what is none. */
export function wholeNumber(text: string): number | null {
  const number = Number(text);
  return /^[0-9]+$/.test(text) && Number.isSafeInteger(number) ? number : null;
}
