import {
  STDIN_ARGUMENTS,
  STDIN_ARGUMENTS_NOTE,
  STDIN_ARGUMENTS_SUMMARY,
} from "./stdin_arguments.ts";

/** Text as roff takes it: no dash becomes a hyphen, no line an order. */
export function roff(text: string): string {
  return text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replace(/^([.'])/gm, "\\&$1");
}

/** A manual page of that section of the manual. */
export function manual(
  name: string,
  section: number,
  { summary, body }: { summary: string; body: readonly string[] },
): string {
  return [
    `.TH ${roff(name.toUpperCase())} ${section}`,
    ".SH NAME",
    `${roff(name)} \\- ${roff(summary.charAt(0).toLowerCase() + summary.slice(1))}`,
    ...body,
    "",
  ].join("\n");
}

/** What every program's exit status means. */
export const EXIT_STATUS = [
  ".SH EXIT STATUS",
  roff("0, or the number of the error (errno): 2 for a missing file, 22 for what makes no sense."),
];

/** The entry of the option that every program has for names that are not UTF-8, with an example. */
export function stdinArgumentsEntry(example: string): string[] {
  return [
    ".TP",
    `.B ${roff(STDIN_ARGUMENTS)}`,
    roff(`${STDIN_ARGUMENTS_SUMMARY.replace(/^i/, "I")}.`),
    roff(`${STDIN_ARGUMENTS_NOTE}:`),
    ".nf",
    roff(`printf '%s\\0' "$name" | ${example}`),
    ".fi",
  ];
}
