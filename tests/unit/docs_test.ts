/** Files that the documents name exist, and so do the targets of links. */
import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url).pathname;

const DOCUMENTS = [
  "README.md",
  "SECURITY.md",
  ...["CONTRIBUTING.md"].filter(exists),
  ...[...Deno.readDirSync(`${ROOT}docs`)].filter(({ isFile }) => isFile)
    .map(({ name }) => `docs/${name}`),
];

function exists(path: string): boolean {
  try {
    Deno.statSync(ROOT + path);
    return true;
  } catch {
    return false;
  }
}

/** Paths in backticks that begin with a folder of this project, up to the first `*`. */
function namedPaths(markdown: string): string[] {
  const named = markdown.matchAll(/`((?:src|ffi|tests|scripts|docs|packaging)\/[\w./-]*)`/g);
  return [...named].map(([, path]) => path);
}

/** Targets of links within the project. */
function linkTargets(document: string, markdown: string): string[] {
  const folder = document.includes("/") ? document.replace(/[^/]*$/, "") : "";
  const links = markdown.matchAll(/\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)/g);
  return [...links].map(([, target]) => new URL(target, `file:///${folder}`).pathname.slice(1));
}

for (const document of DOCUMENTS) {
  Deno.test(`${document} names files that exist`, () => {
    const markdown = Deno.readTextFileSync(ROOT + document);
    const missing = [...namedPaths(markdown), ...linkTargets(document, markdown)]
      .filter((path) => !exists(path));
    assert.deepEqual(missing, []);
  });
}
