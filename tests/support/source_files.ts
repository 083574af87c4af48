/**
 * The project's source files as text, with their imports and exports.
 *
 * @module
 */

/** The root of the clone, with a slash at its end. */
export const ROOT = new URL("../../", import.meta.url).pathname;

/** One import or re-export of a file of this project. */
export interface Import {
  /** Path of the imported file from the root. */
  readonly path: string;
  /** The names as in the exporting file; `*` for a namespace or a dynamic import. */
  readonly names: readonly string[];
}

export interface SourceFile {
  /** Path from the root: `src/vbd/vbd.ts`. */
  readonly path: string;
  readonly text: string;
  readonly imports: readonly Import[];
  /** Names of exported values and types. */
  readonly exports: readonly Export[];
}

/** A declaration that other files may import. */
export interface Export {
  readonly name: string;
  /** Whether it is an interface or a type alias, which has no code. */
  readonly isType: boolean;
}

const STATEMENT = /^(?:import|export)\s+(?:type\s+)?([^"';]*?)\s*from\s+"(\.[^"]+)"/gm;
const DYNAMIC = /import\(\s*"(\.[^"]+)"\s*\)/g;
const DECLARATION =
  /^export (?:abstract )?(?:async )?(function\*?|class|const|let|enum|interface|type) (\w+)/gm;

/** All `.ts` files of the given folders and files, sorted by path. */
export function sourceFiles(...roots: string[]): SourceFile[] {
  return roots.flatMap(pathsBelow).sort().map((path) => readSource(path));
}

function pathsBelow(path: string): string[] {
  if (path.endsWith(".ts")) return [path];
  return [...Deno.readDirSync(ROOT + path)].flatMap((entry) => {
    const child = `${path}/${entry.name}`;
    if (entry.isDirectory) return pathsBelow(child);
    return entry.name.endsWith(".ts") ? [child] : [];
  });
}

function readSource(path: string): SourceFile {
  const text = Deno.readTextFileSync(ROOT + path);
  const fromStatements = [...text.matchAll(STATEMENT)].map(([, clause, target]) => ({
    path: resolved(path, target),
    names: importedNames(clause),
  }));
  const dynamic = [...text.matchAll(DYNAMIC)].map(([, target]) => ({
    path: resolved(path, target),
    names: ["*"],
  }));
  const exports = [...text.matchAll(DECLARATION)].map(([, kind, name]) => ({
    name,
    isType: kind === "interface" || kind === "type",
  }));
  return { path, text, imports: [...fromStatements, ...dynamic], exports };
}

/** `{ a, type B as C }` to `a` and `B`. */
function importedNames(clause: string): string[] {
  const braces = /\{([^}]*)\}/s.exec(clause);
  if (braces === null) return ["*"];
  return braces[1].split(",").map((name) => name.trim()).filter((name) => name !== "")
    .map((name) => name.replace(/^type\s+/, "").replace(/\s+as\s+.*$/s, ""));
}

function resolved(from: string, target: string): string {
  return new URL(target, `file:///${from}`).pathname.slice(1);
}
