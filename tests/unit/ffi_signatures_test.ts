/** Each symbol from a C library has its C signature in a comment. */
import assert from "node:assert/strict";

const FOLDER = new URL("../../ffi/", import.meta.url);

/** The lines of a file that declare a symbol, each with the comment above it. */
function symbolsOf(text: string): { name: string; comment: string; parameters: number }[] {
  const symbols = text.matchAll(
    /((?:^ *\/\/.*\n)*)^ {2}(\w+): \{\s*(?:name: "\w+",\s*)?parameters: \[([^\]]*)\]/gm,
  );
  return [...symbols].map(([, comment, name, parameters]) => ({
    name,
    comment: comment.replace(/^ *\/\/ ?/gm, " "),
    parameters: parameters.split(",").filter((type) => type.trim() !== "").length,
  }));
}

/** The number of parameters of the first signature in a comment; -1 without a signature. */
function parametersIn(comment: string): number {
  const list = /\w[\w ]* \**\w+\(([^)]*)\)/.exec(comment)?.[1];
  if (list === undefined) return -1;
  return list.trim() === "void" ? 0 : list.split(",").length;
}

for (const { name: file } of Deno.readDirSync(FOLDER)) {
  const symbols = symbolsOf(Deno.readTextFileSync(new URL(file, FOLDER)));
  if (symbols.length === 0) continue;
  Deno.test(`ffi/${file} has a C signature beside each symbol`, () => {
    for (const { name, comment, parameters } of symbols) {
      const stated = parametersIn(comment);
      assert.notEqual(stated, -1, `${name}: ${comment}`);
      // Variadic functions may be called with any number of arguments.
      const fits = comment.includes("...") ? stated <= parameters + 1 : stated === parameters;
      assert.ok(fits, `${name} takes ${parameters} parameters, its comment says ${stated}`);
    }
  });
}

Deno.test("all symbols of ffi/ are found", () => {
  let found = 0;
  let opened = 0;
  for (const { name } of Deno.readDirSync(FOLDER)) {
    const text = Deno.readTextFileSync(new URL(name, FOLDER));
    found += symbolsOf(text).length;
    opened += text.match(/\bparameters: \[/g)?.length ?? 0;
  }
  assert.ok(found > 60, `${found}`);
  assert.equal(found, opened);
});
