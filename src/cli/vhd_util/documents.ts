/**
 * Manual pages and bash completion for vhd-util, from the same descriptions as `--help`. This module
 * makes texts; `scripts/documents.ts` writes the files.
 *
 * @module
 */
import { bashCompletion } from "../bash_completion.ts";
import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import type { CommandOption, Subcommand } from "./command.ts";
import { optionsOf, optionWord, synopsesOf } from "./help.ts";

/** The manual page of a subcommand, `vhd-util-NAME(1)`. */
export function manualPage(command: Subcommand): string {
  return manual(`vhd-util-${command.name}`, 1, {
    summary: command.summary,
    body: [
      ".SH SYNOPSIS",
      ...synopsesOf(command).flatMap((
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
      `.BR ${roff("vhd-util")} (1)`,
    ],
  });
}

function optionEntry(option: CommandOption): string[] {
  const value = option.value === undefined ? "" : ` " " ${option.value}`;
  return [".TP", `.BI ${roff(optionWord(option))}${value}`, roff(option.text)];
}

/** The manual page of vhd-util itself. */
export function overviewPage(commands: readonly Subcommand[]): string {
  const entries = commands.flatMap(({ name, summary }) => [
    ".TP",
    `.BR ${roff(`vhd-util-${name}`)} (1)`,
    roff(`${summary}.`),
  ]);
  return manual("vhd-util", 1, {
    summary: "Make, examine and change VHD images",
    body: [
      ".SH SYNOPSIS",
      ".B vhd\\-util",
      ".I COMMAND",
      "[OPTION...]",
      ".SH DESCRIPTION",
      roff("Makes, examines and changes VHD images while no tapdisk writes them."),
      ".SH COMMANDS",
      ...entries,
      ".SH OPTIONS",
      ...stdinArgumentsEntry(`vhd-util query -v -n ${STDIN_ARGUMENTS}`),
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

/** The bash completion script for vhd-util. */
export function vhdUtilCompletion(commands: readonly Subcommand[]): string {
  return bashCompletion(
    "vhd-util",
    commands.map((command) => ({
      name: command.name,
      operands: command.operands === true,
      // --stdin-args is for scripts, not for people who type.
      options: optionsOf(command).filter((option) => optionWord(option) !== STDIN_ARGUMENTS)
        .map((option) => ({ word: optionWord(option), value: valueOf(option) })),
    })),
  );
}
