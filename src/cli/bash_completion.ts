/** An option as bash completes it. */
export interface CompletedOption {
  /** `-n` or `--json`. */
  readonly word: string;
  /** What follows it: nothing, a path, an image name, or a value that bash cannot complete. */
  readonly value: "none" | "path" | "image" | "other";
}

/** A subcommand as bash completes it. */
export interface CompletedCommand {
  readonly name: string;
  readonly options: readonly CompletedOption[];
  /** Whether the command takes paths that belong to no option. */
  readonly operands: boolean;
}

/** Bash splits words at colons. The word after a colon is completed as a path. */
const AFTER_COLON = `  if [ "$current" = : ] || [ "$previous" = : ]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "\${current#:}")
    return
  fi
`;

function imageBranch(types: readonly string[]): string {
  const words = types.map((type) => `${type}:`).join(" ");
  return `  elif [ "$kind" = image ]; then
    compopt -o nospace 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -W "${words}" -- "$current")
`;
}

function branch({ name, options, operands }: CompletedCommand): string {
  const words = (value: CompletedOption["value"]): string =>
    options.filter((option) => option.value === value).map(({ word }) => word).join("|");
  const [paths, images, others] = [words("path"), words("image"), words("other")];
  const values = [
    ...(paths === "" ? [] : [`        ${paths}) kind=file ;;`]),
    ...(images === "" ? [] : [`        ${images}) kind=image ;;`]),
    ...(others === "" ? [] : [`        ${others}) kind=none ;;`]),
  ];
  return [
    `    ${name})`,
    `      words="${options.map(({ word }) => word).join(" ")}"`,
    ...(operands ? ["      kind=file"] : []),
    ...(values.length === 0 ? [] : ['      case "$previous" in', ...values, "      esac"]),
    "      ;;",
  ].join("\n");
}

/**
 * The bash completion script of a program.
 *
 * @param imageTypes The types that image names begin with, without the colon.
 */
export function bashCompletion(
  program: string,
  commands: readonly CompletedCommand[],
  imageTypes: readonly string[] = [],
): string {
  const name = `_${program.replaceAll("-", "_")}`;
  return `# bash completion for ${program}

${name}() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}"
  local words="" kind="none"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="${commands.map((command) => command.name).join(" ")} --help"
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    return
  fi
${imageTypes.length === 0 ? "" : AFTER_COLON}  case "\${COMP_WORDS[1]}" in
${commands.map(branch).join("\n")}
  esac
  if [[ "$current" == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
${imageTypes.length === 0 ? "" : imageBranch(imageTypes)}  elif [ "$kind" = file ]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}

complete -F ${name} ${program}
`;
}
