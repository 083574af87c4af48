import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url);
const DOCUMENT = "docs/on-disk-order.md";
const FOLDERS = [
  "src/vhd",
  "src/qcow2",
  "src/qcow",
  "src/images",
  "src/driver",
  "src/bulk",
  "src/vbd",
  "src/files",
  "src/cbt",
  "src/queue",
];

function textOf(path: string): string {
  return Deno.readTextFileSync(new URL(path, ROOT));
}

function sourceBelow(folder: string): string {
  return [...Deno.readDirSync(new URL(folder, ROOT))].map(({ name, isDirectory }) =>
    isDirectory ? sourceBelow(`${folder}/${name}`) : textOf(`${folder}/${name}`)
  ).join("\n");
}

/** The texts in backticks, each once. */
function quoted(): string[] {
  return [...new Set([...textOf(DOCUMENT).matchAll(/`([^`\n]+)`/g)].map(([, text]) => text))];
}

Deno.test(`files that ${DOCUMENT} names are there`, () => {
  const paths = quoted().filter((text) => /^(src|tests|docs)\//.test(text));
  assert.ok(paths.length > 30, String(paths.length));
  const missing = paths.filter((path) => {
    try {
      Deno.statSync(new URL(path, ROOT));
      return false;
    } catch {
      return true;
    }
  });
  assert.deepEqual(missing, []);
});

Deno.test(`functions and methods that ${DOCUMENT} names are in the code`, () => {
  const source = FOLDERS.map(sourceBelow).join("\n");
  const names = quoted().filter((text) => /^[A-Za-z]\w*(\.#?\w+)?$|^#\w+$/.test(text));
  assert.ok(names.length > 40, String(names.length));
  const commands = new Set(["check", "repair"]);
  const unknown = names.filter((name) =>
    !commands.has(name) &&
    !name.split(".").every((part) => new RegExp(`(^|[^\\w#])${part}\\b`, "m").test(source))
  );
  assert.deepEqual(unknown, []);
});

Deno.test(`tests that ${DOCUMENT} quotes have these words in their names`, () => {
  const text = textOf(DOCUMENT).replaceAll("\n", " ");
  const quotes = [...text.matchAll(/`(tests\/[^`]+)` \(("[^)]+")\)/g)];
  assert.ok(quotes.length >= 5, String(quotes.length));
  for (const [, path, words] of quotes) {
    for (const [, part] of words.matchAll(/"([^"]+)"/g)) {
      assert.ok(textOf(path).includes(part), `${path}: ${part}`);
    }
  }
});
