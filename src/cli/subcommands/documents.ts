/**
 * Manual pages and bash completion for programs with subcommands, from the same descriptions as `--help`. This module
 * makes texts; `scripts/documents.ts` writes the files.
 *
 * @module
 */
import { bashCompletion } from "../bash_completion.ts";
import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import type { CommandOption, Subcommand } from "./command.ts";
import { optionsOf, optionWord, synopsesOf } from "./help.ts";
import type { Program } from "./program.ts";

/** The manual page of a subcommand, `PROGRAM-NAME(1)`. */
export function manualPage({ name }: Program, command: Subcommand): string {
  return manual(`${name}-${command.name}`, 1, {
    summary: command.summary,
    body: [
      ".SH SYNOPSIS",
      ...synopsesOf(name, command).flatMap((
        form,
        index,
      ) => [...(index === 0 ? [] : [".br"]), roff(form)]),
      ".SH OPTIONS",
      ...optionsOf(command).flatMap(optionEntry),
      ".SH EXAMPLE",
      ".nf",
      roff(command.example.trim()),
      ".fi",
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      `.BR ${roff(name)} (1)`,
    ],
  });
}

function optionEntry(option: CommandOption): string[] {
  const { value, optionalValue } = option;
  const optional = optionalValue === undefined ? "" : ` [= ${optionalValue} ]`;
  const follows = value === undefined ? optional : ` " " ${value}`;
  return [".TP", `.BI ${roff(optionWord(option))}${follows}`, roff(option.text)];
}

/** The manual page of the program itself. */
export function overviewPage(program: Program, commands: readonly Subcommand[]): string {
  const entries = commands.flatMap(({ name, summary }) => [
    ".TP",
    `.BR ${roff(`${program.name}-${name}`)} (1)`,
    roff(`${summary}.`),
  ]);
  return manual(program.name, 1, {
    summary: program.summary,
    body: [
      ".SH SYNOPSIS",
      `.B ${roff(program.name)}`,
      ".I COMMAND",
      "[OPTION...]",
      ".SH DESCRIPTION",
      roff(program.description),
      ".SH COMMANDS",
      ...entries,
      ".SH OPTIONS",
      ...stdinArgumentsEntry(program.stdinExample),
      ...EXIT_STATUS,
    ],
  });
}

/** Values of options that are not paths. */
const NO_PATHS = new Set([
  ...["MIB", "BLOCK", "SECTOR", "BYTE", "COUNT", "LAYERS", "NUMBER", "BYTES", "SIZE"],
  ...["VALUE", "FIELD", "HASH", "NONCE", "GROUP", "PATTERN"],
]);

function valueOf({ value }: CommandOption): "none" | "path" | "other" {
  return value === undefined ? "none" : NO_PATHS.has(value) ? "other" : "path";
}

/** The bash completion script of a program. */
export function programCompletion({ name }: Program, commands: readonly Subcommand[]): string {
  return bashCompletion(
    name,
    commands.map((command) => ({
      name: command.name,
      operands: command.operands === true,
      // --stdin-args is for scripts, not for people who type.
      options: optionsOf(command).filter((option) => optionWord(option) !== STDIN_ARGUMENTS)
        .map((option) => ({ word: optionWord(option), value: valueOf(option) })),
    })),
  );
}
