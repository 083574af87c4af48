/** Programs that are started for each disk load nothing that they do not need. */
import assert from "node:assert/strict";

const ROOT = new URL("../../", import.meta.url);

/** Whether an import is of types alone, or at run time. */
const IMPORTS = /^(?:import|export) (?!type )[^;]*?from "([^"]+)";|^import "([^"]+)";/gm;

/** The packages and files that a file loads, at once and through others. */
function loadedBy(file: URL, seen = new Set<string>()): Set<string> {
  if (seen.has(file.pathname)) return seen;
  seen.add(file.pathname);
  for (const [, from, alone] of Deno.readTextFileSync(file).matchAll(IMPORTS)) {
    const name = from ?? alone;
    if (name.startsWith(".")) loadedBy(new URL(name, file), seen);
    else seen.add(name);
  }
  return seen;
}

Deno.test("a tapdisk in the background loads no commander", () => {
  const loaded = loadedBy(new URL("src/cli/tapdisk/serving.ts", ROOT));
  assert.ok(loaded.size > 100 && loaded.has("node:zlib"), `${loaded.size}`);
  assert.ok(!loaded.has("commander"));
  assert.ok(loadedBy(new URL("src/cli/tapdisk/main.ts", ROOT)).has("commander"));
});

Deno.test("the quick open loads nothing for keys, the quick list nothing for JSON", () => {
  const quick = (name: string) => loadedBy(new URL(`src/cli/quick/${name}.ts`, ROOT));
  const has = (loaded: Set<string>, end: string) => [...loaded].some((path) => path.endsWith(end));
  const open = quick("tap_ctl_open");
  assert.ok(has(open, "/tap_ctl/opening.ts") && !has(open, "/vhd/key.ts"));
  const list = quick("tap_ctl_list");
  assert.ok(has(list, "/tap_ctl/listing.ts") && !has(list, "/tap_ctl/list.ts"));
});
