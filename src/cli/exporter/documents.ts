/** The manual page and the words of the completion of `blktap exporter`. `scripts/documents.ts` writes the files. */
import { EXIT_STATUS, manual, roff } from "../roff.ts";
import { DESCRIPTION, EXAMPLES, OPTIONS, SUMMARY, SYNOPSIS } from "./texts.ts";

/** The options, for the completion of `blktap`. */
export function exporterOptions(): string[] {
  return OPTIONS.flatMap(({ use }) => use.match(/--[a-z-]+/g) ?? []);
}

/** The manual page blktap-exporter(8). */
export function exporterPage(): string {
  return manual("blktap-exporter", 8, {
    summary: SUMMARY,
    body: [
      ".SH SYNOPSIS",
      roff(SYNOPSIS),
      ".SH DESCRIPTION",
      ...DESCRIPTION.flatMap((text, index) => [...(index === 0 ? [] : [".PP"]), roff(text)]),
      ".SH OPTIONS",
      ...OPTIONS.flatMap(({ use, text }) => [
        ".TP",
        `.B ${roff(use)}`,
        roff(`${text.charAt(0).toUpperCase()}${text.slice(1)}.`),
      ]),
      ".SH EXAMPLES",
      ".nf",
      roff(EXAMPLES.join("\n")),
      ".fi",
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      ".BR tap\\-ctl (8),",
      ".BR tapdisk (8)",
    ],
  });
}
