import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_SUMMARY } from "../stdin_arguments.ts";
import { type CommandOption, PARENT_ROOT_OPTION, type Subcommand } from "./command.ts";

/** All options of a subcommand that do something: its own and those that every one has. */
export function optionsOf(command: Subcommand): readonly CommandOption[] {
  return [
    ...command.options,
    ...(command.followsParents === true ? [PARENT_ROOT_OPTION] : []),
    { name: "h", text: "print the options on one line" },
    { name: "help", text: "print this text" },
    { name: STDIN_ARGUMENTS.slice(2), text: STDIN_ARGUMENTS_SUMMARY },
  ];
}

/** An option as it is typed: `-n`, `--json`. */
export function optionWord({ name }: CommandOption): string {
  return `${name.length === 1 ? "-" : "--"}${name}`;
}

/** An option with what its value stands for: `-n FILE`. */
function optionUse(option: CommandOption): string {
  return option.value === undefined ? optionWord(option) : `${optionWord(option)} ${option.value}`;
}

/** What `--help` prints. */
export function helpOf(command: Subcommand): string {
  const lines = optionsOf(command).map((option) =>
    `  ${optionUse(option).padEnd(12)} ${option.text}`
  );
  return `Usage: vhd-util ${command.name} ${command.synopsis}\n\n${command.summary}.\n\n` +
    `Options:\n${lines.join("\n")}\n\nExample:\n${indent(command.example)}\n`;
}

function indent(text: string): string {
  return text.trim().split("\n").map((line) => `  ${line}`.trimEnd()).join("\n");
}
