import {
  STDIN_ARGUMENTS,
  STDIN_ARGUMENTS_NOTE,
  STDIN_ARGUMENTS_SUMMARY,
} from "./stdin_arguments.ts";

/** Escapes text for roff: dashes stay dashes, and no line becomes a request. */
export function roff(text: string): string {
  return text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replace(/^([.'])/gm, "\\&$1");
}

/** A manual page. */
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

/** The exit status section of every manual page. */
export const EXIT_STATUS = [
  ".SH EXIT STATUS",
  roff("0, or an error number (errno): 2 if a file is missing, 22 if an argument is invalid."),
];

/** The entry of `--stdin-args`, which every program has, with an example. */
export function stdinArgumentsEntry(example: string): string[] {
  return [
    ".TP",
    `.B ${roff(STDIN_ARGUMENTS)}`,
    roff(`${STDIN_ARGUMENTS_SUMMARY.replace(/^./, (first) => first.toUpperCase())}.`),
    roff(`${STDIN_ARGUMENTS_NOTE}:`),
    ".nf",
    roff(`printf '%s\\0' "$name" | ${example}`),
    ".fi",
  ];
}
