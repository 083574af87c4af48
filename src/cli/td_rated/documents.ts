/** The manual page and the bash completion of td-rated. `scripts/documents.ts` writes the files. */
import { EXIT_STATUS, manual, roff, stdinArgumentsEntry } from "../roff.ts";
import { STDIN_ARGUMENTS } from "../stdin_arguments.ts";
import {
  DESCRIPTION,
  EXAMPLES,
  LIMITERS,
  OPTIONS,
  type RatedOption,
  SUMMARY,
  SYNOPSES,
} from "./texts.ts";

function entry({ use, text }: RatedOption): string[] {
  return [".TP", `.B ${roff(use)}`, roff(`${text.charAt(0).toUpperCase()}${text.slice(1)}.`)];
}

/** The manual page td-rated(1). */
export function ratedPage(): string {
  return manual("td-rated", 1, {
    summary: SUMMARY,
    body: [
      ".SH SYNOPSIS",
      ...SYNOPSES.flatMap((form, index) => [...(index === 0 ? [] : [".br"]), roff(form)]),
      ".SH DESCRIPTION",
      ...DESCRIPTION.flatMap((text, index) => [...(index === 0 ? [] : [".PP"]), roff(text)]),
      ".SH OPTIONS",
      ...OPTIONS.flatMap(entry),
      ...stdinArgumentsEntry(`td-rated -t leaky ${STDIN_ARGUMENTS} -- --rate=60M`),
      ".SH LIMITERS",
      ...LIMITERS.flatMap((
        { title, options },
      ) => [`.SS ${roff(title)}`, ...options.flatMap(entry)]),
      ".SH EXAMPLES",
      ".nf",
      roff(EXAMPLES.join("\n")),
      ".fi",
      ...EXIT_STATUS,
      ".SH SEE ALSO",
      ".BR tap\\-ctl (8)",
    ],
  });
}

/** The bash completion of td-rated. */
export function ratedCompletion(): string {
  const options = [...OPTIONS, ...LIMITERS.flatMap((limiter) => limiter.options)];
  const words = new Set(options.flatMap(({ use }) => use.match(/--[a-z]+/g) ?? []));
  return `# bash completion for td-rated

_td_rated() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  COMPREPLY=()
  case "$previous" in
    -t|--type) mapfile -t COMPREPLY < <(compgen -W "token leaky meminfo" -- "$current"); return ;;
  esac
  if [[ "$current" == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "${[...words].join(" ")}" -- "$current")
  else
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}

complete -F _td_rated td-rated
`;
}
