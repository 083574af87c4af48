import { COMMAND_NAMES, OWN_NAMES } from "./dispatch.ts";

/** The bash completion of `blktap`: its commands, and the options of those that have no link of their own. */
export function blktapCompletion(options: Readonly<Record<string, readonly string[]>>): string {
  const cases = Object.entries(options)
    .map(([name, words]) => `    ${name}) words="${words.join(" ")}" ;;`);
  return `# bash completion for blktap

_blktap() {
  local current="\${COMP_WORDS[COMP_CWORD]}" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(compgen -W "${
    [...COMMAND_NAMES, ...OWN_NAMES].join(" ")
  } --help --version" -- "$current")
    return
  fi
  case "\${COMP_WORDS[1]}" in
${cases.join("\n")}
  esac
  if [[ "$current" == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  else
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}

complete -F _blktap blktap
`;
}
