/** The manual page of `blktap doctor`. `scripts/documents.ts` writes the file. */
import { manual, roff } from "../roff.ts";
import { DESCRIPTION, EXAMPLE, OPTIONS, SUMMARY, SYNOPSIS } from "./texts.ts";

/** The manual page blktap-doctor(8). */
export function doctorPage(): string {
  return manual("blktap-doctor", 8, {
    summary: SUMMARY,
    body: [
      ".SH SYNOPSIS",
      roff(SYNOPSIS),
      ".SH DESCRIPTION",
      ...DESCRIPTION.flatMap((text, index) => [...(index === 0 ? [] : [".PP"]), roff(text)]),
      ".SH OPTIONS",
      ...OPTIONS.flatMap(({ name, text }) => [".TP", `.B ${roff(`--${name}`)}`, roff(`${text}.`)]),
      ".SH EXAMPLE",
      ".nf",
      roff(EXAMPLE),
      ".fi",
      ".SH SEE ALSO",
      ".BR tap\\-ctl (8),",
      ".BR tapdisk (8)",
    ],
  });
}

/** The options, for the completion. */
export function doctorOptions(): string[] {
  return OPTIONS.map(({ name }) => `--${name}`);
}
