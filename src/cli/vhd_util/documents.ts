/**
 * Manual pages and bash's completion for vhd-util, from what `--help` prints: the descriptions of
 * the subcommands. Makes texts only; `scripts/documents.ts` writes them.
 *
 * @module
 */
import type { CommandOption, Subcommand } from "./command.ts";
import { optionsOf, optionWord } from "./help.ts";

/** Text as roff takes it: no dash becomes a hyphen, no line an order. */
function roff(text: string): string {
  return text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replace(/^([.'])/gm, "\\&$1");
}

function page(name: string, summary: string, body: readonly string[]): string {
  return [
    `.TH ${roff(name.toUpperCase())} 1`,
    ".SH NAME",
    `${roff(name)} \\- ${roff(summary.charAt(0).toLowerCase() + summary.slice(1))}`,
    ...body,
    "",
  ].join("\n");
}

const EXIT_STATUS = [
  ".SH EXIT STATUS",
  roff("0, or the number of the error (errno): 2 for a missing file, 22 for what makes no sense."),
];

/** The manual page of a subcommand, `vhd-util-NAME(1)`. */
export function manualPage(command: Subcommand): string {
  return page(`vhd-util-${command.name}`, command.summary, [
    ".SH SYNOPSIS",
    `.B ${roff(`vhd-util ${command.name}`)}`,
    roff(command.synopsis),
    ".SH OPTIONS",
    ...optionsOf(command).flatMap(optionEntry),
    ".SH EXAMPLE",
    ".nf",
    roff(command.example.trim()),
    ".fi",
    ...EXIT_STATUS,
    ".SH SEE ALSO",
    `.BR ${roff("vhd-util")} (1)`,
  ]);
}

function optionEntry(option: CommandOption): string[] {
  const value = option.value === undefined ? "" : ` " " ${option.value}`;
  return [".TP", `.BI ${roff(optionWord(option))}${value}`, roff(option.text)];
}

/** The manual page of vhd-util itself. */
export function overviewPage(commands: readonly Subcommand[]): string {
  const entries = commands.flatMap(({ name, summary }) => [
    ".TP",
    `.BR ${roff(`vhd-util-${name}`)} (1)`,
    roff(`${summary}.`),
  ]);
  return page("vhd-util", "Make, examine and change VHD images", [
    ".SH SYNOPSIS",
    ".B vhd\\-util",
    ".I COMMAND",
    "[OPTION...]",
    ".SH DESCRIPTION",
    roff("Makes, examines and changes VHD images while no tapdisk writes them."),
    ".SH COMMANDS",
    ...entries,
    ".SH OPTIONS",
    ".TP",
    ".B \\-\\-debug",
    "Accepted anywhere, for callers of the original.",
    ...EXIT_STATUS,
  ]);
}

/** Values of options that are no paths. */
const NO_PATHS = new Set([
  ...["MIB", "BLOCK", "SECTOR", "BYTE", "COUNT", "LAYERS", "NUMBER", "BYTES", "SIZE"],
  ...["VALUE", "FIELD", "HASH", "NONCE", "GROUP", "PATTERN"],
]);

function isPath({ value }: CommandOption): boolean {
  return value !== undefined && !NO_PATHS.has(value);
}

/** The script that bash completes vhd-util's command line by. */
export function bashCompletion(commands: readonly Subcommand[]): string {
  const cases = commands.map((command) => {
    const options = optionsOf(command);
    const words = options.map(optionWord).join(" ");
    const paths = options.filter(isPath).map(optionWord).join("|");
    const others = options.filter((option) => option.value !== undefined && !isPath(option))
      .map(optionWord).join("|");
    const values = [
      ...(paths === "" ? [] : [`        ${paths}) kind=file ;;`]),
      ...(others === "" ? [] : [`        ${others}) kind=none ;;`]),
    ];
    return [
      `    ${command.name})`,
      `      words="${words}"`,
      ...(command.operands === true ? ["      kind=file"] : []),
      ...(values.length === 0 ? [] : ['      case "$previous" in', ...values, "      esac"]),
      "      ;;",
    ].join("\n");
  });
  return `# bash completion for vhd-util

_vhd_util() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  local words="" kind="none"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${commands.map(({ name }) => name).join(" ")} --help"
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    return
  fi
  case "\${COMP_WORDS[1]}" in
${cases.join("\n")}
  esac
  if [[ "$current" == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  elif [ "$kind" = file ]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}

complete -F _vhd_util vhd-util
`;
}
