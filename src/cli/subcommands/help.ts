import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_SUMMARY } from "../stdin_arguments.ts";
import { type CommandOption, PARENT_ROOT_OPTION, type Subcommand } from "./command.ts";

/** The options of a subcommand that do something: its own and those of all subcommands. */
export function optionsOf(command: Subcommand): readonly CommandOption[] {
  return [
    ...command.options,
    ...(command.followsParents === true ? [PARENT_ROOT_OPTION] : []),
    { name: "h", text: "print the short usage" },
    { name: "help", text: "print this text" },
    { name: STDIN_ARGUMENTS.slice(2), text: STDIN_ARGUMENTS_SUMMARY },
  ];
}

/** An option as it is typed: `-n`, `--json`. */
export function optionWord({ name }: CommandOption): string {
  return `${name.length === 1 ? "-" : "--"}${name}`;
}

/** An option with the name of its value: `-n FILE`. */
function optionUse(option: CommandOption): string {
  const { value, optionalValue } = option;
  const word = optionWord(option);
  if (optionalValue !== undefined) return `${word}[=${optionalValue}]`;
  return value === undefined ? word : `${word} ${value}`;
}

/** Each form of a subcommand's command line. */
export function synopsesOf(program: string, { name, synopsis }: Subcommand): string[] {
  return synopsis.split("\n").map((form) => `${program} ${name} ${form}`);
}

/** What `--help` prints. */
export function helpOf(program: string, command: Subcommand): string {
  const usage = synopsesOf(program, command).join("\n       ");
  const options = optionsOf(command).flatMap(optionLines);
  return `Usage: ${usage}\n\n${command.summary}.\n\n` +
    `Options:\n${options.join("\n")}\n\nExample:\n${indent(command.example)}\n`;
}

const WIDTH = 80;
const TEXT_COLUMN = 16;

/** An option and its description. A long option name is on a line of its own. */
function optionLines(option: CommandOption): string[] {
  const use = `  ${optionUse(option)}`;
  const texts = wrap(option.text, WIDTH - TEXT_COLUMN);
  const column = " ".repeat(TEXT_COLUMN);
  if (use.length > TEXT_COLUMN - 2) return [use, ...texts.map((text) => column + text)];
  return texts.map((text, index) => (index === 0 ? use.padEnd(TEXT_COLUMN) : column) + text);
}

/** Breaks a text between words into lines that are at most so wide. */
function wrap(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines[lines.length - 1];
    const longer = last === "" ? word : `${last} ${word}`;
    if (last === "" || longer.length <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function indent(text: string): string {
  return text.trim().split("\n").map((line) => `  ${line}`.trimEnd()).join("\n");
}
