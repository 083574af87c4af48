/** The manual page and the words of the completion of `blktap web`. `scripts/documents.ts` writes the files. */
import { EXIT_STATUS, manual, roff } from "../roff.ts";
import { DESCRIPTION, EXAMPLES, OPTIONS, SUMMARY, SYNOPSIS, type WebOption } from "./texts.ts";

function entry({ use, text }: WebOption): string[] {
  return [".TP", `.B ${roff(use)}`, roff(`${text.charAt(0).toUpperCase()}${text.slice(1)}.`)];
}

/** The manual page blktap-web(8). */
export function webPage(): string {
  return manual("blktap-web", 8, {
    summary: SUMMARY,
    body: [
      ".SH SYNOPSIS",
      roff(SYNOPSIS),
      ".SH DESCRIPTION",
      ...DESCRIPTION.flatMap((text, index) => [...(index === 0 ? [] : [".PP"]), roff(text)]),
      ".SH OPTIONS",
      ...OPTIONS.flatMap(entry),
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

/** The options, for the completion of `blktap`. */
export function webOptions(): string[] {
  return OPTIONS.flatMap(({ use }) => use.match(/--[a-z-]+/g) ?? []);
}
