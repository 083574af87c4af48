import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import type { ImageTool } from "./tool.ts";

/** The manual page of a tool. */
export function imageToolPage({ name, summary, synopsis, text }: ImageTool): string {
  return manual(name, 1, {
    summary,
    body: [
      ".SH SYNOPSIS",
      roff(`${name} ${synopsis}`),
      ".SH DESCRIPTION",
      roff(`${summary}. ${text.replaceAll("\n", " ")}`),
      ".SH OPTIONS",
      ...stdinArgumentsEntry(`${name} ${STDIN_ARGUMENTS}`),
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      ".BR td\\-util (1)",
    ],
  });
}
