/** The manual page and the bash completion of tapback. `scripts/documents.ts` writes the files. */
import { EXIT_STATUS, manual, roff } from "../roff.ts";
import { DESCRIPTION, EXAMPLES, OPTIONS, SUMMARY, SYNOPSIS, type TapbackOption } from "./texts.ts";

function entry({ use, text }: TapbackOption): string[] {
  return [".TP", `.B ${roff(use)}`, roff(`${text.charAt(0).toUpperCase()}${text.slice(1)}.`)];
}

/** The manual page tapback(8). */
export function tapbackPage(): string {
  return manual("tapback", 8, {
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

/** The bash completion of tapback. */
export function tapbackCompletion(): string {
  const words = OPTIONS.flatMap(({ use }) => use.match(/--[a-z]+/g) ?? []);
  return `# bash completion for tapback

_tapback() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  COMPREPLY=()
  case "$previous" in
    -n|--name|-x|--domain) return ;;
    -p|--pidfile)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      return ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "${words.join(" ")}" -- "$current")
}

complete -F _tapback tapback
`;
}
