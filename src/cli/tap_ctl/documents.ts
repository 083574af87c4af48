/**
 * The manual pages of tap-ctl and tapdisk, and the bash completion of tap-ctl, made from what `--help`
 * prints. This file makes the texts; `scripts/documents.ts` writes them to files.
 *
 * @module
 */
import type { Command, Help, Option } from "commander";
import { allDrivers } from "../../driver/registry.ts";
import { bashCompletion } from "../bash_completion.ts";
import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";

/** What `--help` prints after the options. */
function notesOf(command: Command): string {
  let printed = "";
  command.configureOutput({ writeOut: (text) => printed += text });
  command.outputHelp();
  return printed.slice(command.helpInformation().length).trim();
}

/** Notes as paragraphs; lines that are indented stay lines. */
function paragraphs(text: string): string[] {
  return text === "" ? [] : text.split(/\n\s*\n/).flatMap((part) => [
    ".PP",
    ...(/^ /m.test(part) ? [".nf", roff(part), ".fi"] : [roff(part)]),
  ]);
}

function optionEntry(option: Option, help: Help): string[] {
  return [".TP", `.B ${roff(option.flags)}`, roff(`${help.optionDescription(option)}.`)];
}

function optionsOf(command: Command): string[] {
  const help = command.createHelp();
  return help.visibleOptions(command).flatMap((option) => optionEntry(option, help));
}

function sectionOf(command: Command): string[] {
  return [
    `.SS ${roff(command.createHelp().commandUsage(command))}`,
    roff(`${command.description()}.`),
    ...optionsOf(command),
    ...paragraphs(notesOf(command)),
  ];
}

/** The manual page tap-ctl(8). */
export function tapCtlPage(commands: readonly Command[]): string {
  const summary = "Start, stop and query the tapdisks of this machine";
  return manual("tap-ctl", 8, {
    summary,
    body: [
      ".SH SYNOPSIS",
      ".B tap\\-ctl",
      ".I COMMAND",
      "[OPTION...]",
      ".SH DESCRIPTION",
      "A tapdisk is a process that serves disks. Each of its disks is a device with a minor number",
      "and, when it is open, an image.",
      ".SH COMMANDS",
      ...commands.flatMap(sectionOf),
      ".SH OPTIONS",
      ".TP",
      ".B \\-\\-debug",
      "With any command: prints the control messages.",
      ...stdinArgumentsEntry(`tap-ctl create -a ${STDIN_ARGUMENTS}`),
      ".SH ENVIRONMENT",
      ".TP",
      ".B BLKTAP_CONTROL_DIR",
      "The folder of the control sockets, /run/blktap\\-control by default.",
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      ".BR tapdisk (8),",
      ".BR vhd\\-util (1)",
    ],
  });
}

/** The manual page tapdisk(8). */
export function tapdiskPage(command: Command): string {
  return manual("tapdisk", 8, {
    summary: command.description().replace(/\.$/, ""),
    body: [
      ".SH SYNOPSIS",
      roff(command.createHelp().commandUsage(command)),
      ".SH OPTIONS",
      ...optionsOf(command),
      ...stdinArgumentsEntry(`tapdisk -n ${STDIN_ARGUMENTS}`),
      ".SH DESCRIPTION",
      ...paragraphs(notesOf(command)),
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      ".BR tap\\-ctl (8)",
    ],
  });
}

/** The bash completion of tap-ctl. */
export function tapCtlCompletion(commands: readonly Command[]): string {
  const imageTypes = allDrivers().map(({ type }) => type);
  return bashCompletion(
    "tap-ctl",
    commands.map((command) => ({
      name: command.name().replace("tap-ctl ", ""),
      operands: false,
      options: command.createHelp().visibleOptions(command).flatMap(({ short, long, flags }) => {
        const value = !flags.includes("<")
          ? "none"
          : /<(file|path)>/.test(flags)
          ? "path"
          : flags.includes("<type:/path>")
          ? "image"
          : "other";
        return [short, long].filter((word) => word !== undefined).map((word) => ({ word, value }));
      }),
    })),
    imageTypes,
  );
}
