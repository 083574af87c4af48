/**
 * Finds file names by pattern, as glob(3) with GLOB_BRACE and fnmatch(3) with FNM_EXTMATCH do:
 * `*`, `?`, `[a-z]`, `[!a-z]`, `{a,b}`, `?(a|b)`, `*(a|b)`, `+(a|b)`, `@(a|b)`, and a backslash
 * before a character that is meant literally.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { compareNames } from "../../ffi/names.ts";
import { namesInFolder, pathExists } from "../../ffi/paths.ts";

const GROUP_SUFFIX: Record<string, string> = { "?": "?", "*": "*", "+": "+", "@": "" };

/** Expands braces: `a{b,c}d` becomes `abd` and `acd`. */
export function expandBraces(pattern: string): string[] {
  let depth = 0;
  let open = -1;
  let commas: number[] = [];
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i];
    if (char === "\\") i++;
    else if (char === "{" && depth++ === 0) [open, commas] = [i, []];
    else if (char === "," && depth === 1) commas.push(i);
    else if (char === "}" && depth > 0 && --depth === 0) {
      const edges = [open, ...commas, i];
      const parts = edges.slice(1).map((edge, index) => pattern.slice(edges[index] + 1, edge));
      const [before, after] = [pattern.slice(0, open), pattern.slice(i + 1)];
      if (commas.length === 0) continue;
      return parts.flatMap((part) => expandBraces(before + part + after));
    }
  }
  return [pattern];
}

/** The regular expression for a pattern without braces. It matches a single name. */
export function patternToRegExp(pattern: string): RegExp {
  const closers: string[] = [];
  let source = "";
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i];
    if (char in GROUP_SUFFIX && pattern[i + 1] === "(" && pattern.indexOf(")", i) > 0) {
      source += "(?:";
      closers.push(`)${GROUP_SUFFIX[char]}`);
      i++;
    } else if (char === ")" && closers.length > 0) source += closers.pop();
    else if (char === "|" && closers.length > 0) source += "|";
    else if (char === "*") source += "[^/]*";
    else if (char === "?") source += "[^/]";
    else if (char === "[" && pattern.indexOf("]", i + 2) > 0) {
      const end = pattern.indexOf("]", i + 2);
      const set = pattern.slice(i + 1, end).replace(/^!/, "^").replaceAll("\\", "\\\\");
      source += `[${set}]`;
      i = end;
    } else if (char === "\\" && i + 1 < pattern.length) source += escapeRegExp(pattern[++i]);
    else source += escapeRegExp(char);
  }
  return new RegExp(`^${source}${closers.reverse().join("")}$`, "s");
}

function escapeRegExp(char: string): string {
  return char.replace(/[.*+?^${}()|[\]\\]/, "\\$&");
}

function hasMagic(part: string): boolean {
  return /[*?[\\]|[+@]\(/.test(part);
}

/**
 * The paths that match a pattern. The paths of each alternative are sorted by the bytes of their
 * names. Only a dot matches a leading dot.
 *
 * @param unreadable Called for each folder that cannot be listed.
 * @param from The folder that relative patterns start in. Its name is not a pattern.
 */
export function expandGlob(
  pattern: string,
  unreadable: (folder: string, error: unknown) => void,
  from = "",
): string[] {
  return expandBraces(pattern).flatMap((each) => {
    const parts = each.split("/").filter((part) => part !== "");
    const start = each.startsWith("/")
      ? "/"
      : from === "" || from.endsWith("/")
      ? from
      : `${from}/`;
    return expandParts(start, parts, unreadable);
  });
}

function expandParts(
  folder: string,
  [part, ...rest]: readonly string[],
  unreadable: (folder: string, error: unknown) => void,
): string[] {
  if (part === undefined) {
    return pathExists(folder, { link: true }) ? [folder.replace(/(.)\/$/, "$1")] : [];
  }
  if (!hasMagic(part)) {
    return expandParts(`${folder}${part}${rest.length > 0 ? "/" : ""}`, rest, unreadable);
  }
  const expression = patternToRegExp(part);
  let names: string[];
  try {
    names = namesInFolder(folder === "" ? "." : folder);
  } catch (error) {
    const isNone = error instanceof SystemError &&
      (error.errno === Errno.ENOENT || error.errno === Errno.ENOTDIR);
    if (!isNone) unreadable(folder, error);
    return [];
  }
  const matching = names
    .filter((name) => (!name.startsWith(".") || part.startsWith(".")) && expression.test(name))
    .sort(compareNames);
  // Listed names exist.
  if (rest.length === 0) return matching.map((name) => folder + name);
  return matching.flatMap((name) => expandParts(`${folder}${name}/`, rest, unreadable));
}
