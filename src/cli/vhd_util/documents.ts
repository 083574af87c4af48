/**
 * Manual pages and bash's completion for vhd-util, from what `--help` prints: the descriptions of
 * the subcommands. Makes texts only; `scripts/documents.ts` writes them.
 *
 * @module
 */
import { bashCompletion } from "../bash_completion.ts";
import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import type { CommandOption, Subcommand } from "./command.ts";
import { optionsOf, optionWord } from "./help.ts";

/** The manual page of a subcommand, `vhd-util-NAME(1)`. */
export function manualPage(command: Subcommand): string {
  return manual(`vhd-util-${command.name}`, 1, {
    summary: command.summary,
    body: [
      ".SH SYNOPSIS",
      `.B ${roff(`vhd-util ${command.name}`)}`,
      roff(command.synopsis),
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

/** Values of options that are no paths. */
const NO_PATHS = new Set([
  ...["MIB", "BLOCK", "SECTOR", "BYTE", "COUNT", "LAYERS", "NUMBER", "BYTES", "SIZE"],
  ...["VALUE", "FIELD", "HASH", "NONCE", "GROUP", "PATTERN"],
]);

function valueOf({ value }: CommandOption): "none" | "path" | "other" {
  return value === undefined ? "none" : NO_PATHS.has(value) ? "other" : "path";
}

/** The script that bash completes vhd-util's command line by. */
export function vhdUtilCompletion(commands: readonly Subcommand[]): string {
  return bashCompletion(
    "vhd-util",
    commands.map((command) => ({
      name: command.name,
      operands: command.operands === true,
      // The arguments on standard input are nothing for someone who types.
      options: optionsOf(command).filter((option) => optionWord(option) !== STDIN_ARGUMENTS)
        .map((option) => ({ word: optionWord(option), value: valueOf(option) })),
    })),
  );
}
