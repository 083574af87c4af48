/**
 * Rules of the project that the compiler does not check: permitted imports, the files that make
 * system calls, the files that print, and no unused exports.
 */
import assert from "node:assert/strict";
import { type SourceFile, sourceFiles } from "../support/source_files.ts";

/**
 * The layers, the lowest first. A file may import from its own layer and from lower layers. Folders
 * on one line are in the same layer.
 */
const FLOORS: readonly (readonly string[])[] = [
  ["ffi"],
  ["src/files", "src/log", "src/nbd", "src/tls"],
  ["src/metrics", "src/pictures", "src/trace"],
  ["src/vhd/format", "src/qcow2/format"],
  ["src/vhd/image", "src/qcow2/image"],
  ["src/vhd", "src/vhd/check", "src/vhd/resize", "src/qcow2", "src/cbt"],
  ["src/qcow", "src/vhdx"],
  ["src/scheduler"],
  ["src/rated", "src/xenstore"],
  ["src/queue"],
  ["src/driver"],
  ["src/bulk"],
  ["src/vbd"],
  ["src/images"],
  ["src/frontend"],
  ["src/control"],
  ["src/observe"],
  ["src/tapback", "src/doctor"],
  ["src/web"],
  ["src/cli"],
  ["src/main.ts", "mod.ts"],
];

/** Simulated parts may import everything that they replace; only tests may import them. */
const SIMULATED = "src/testing";

/**
 * For each folder, the file whose head states the purpose of the folder and what it must not do.
 */
const MAIN_FILES: Readonly<Record<string, string>> = {
  "src/files": "storage.ts",
  "src/log": "log.ts",
  "src/nbd": "protocol.ts",
  "src/tls": "tls.ts",
  "src/metrics": "metrics.ts",
  "src/pictures": "markup.ts",
  "src/trace": "records.ts",
  "src/vhd/format": "units.ts",
  "src/vhd/image": "image.ts",
  "src/vhd/check": "check.ts",
  "src/vhd/resize": "resize.ts",
  "src/vhd": "create.ts",
  "src/qcow2/format": "units.ts",
  "src/qcow2/image": "image.ts",
  "src/qcow2": "create.ts",
  "src/qcow": "format.ts",
  "src/vhdx": "format.ts",
  "src/cbt": "cbt_log.ts",
  "src/scheduler": "scheduler.ts",
  "src/rated": "bridge.ts",
  "src/xenstore": "store.ts",
  "src/tapback": "backend.ts",
  "src/doctor": "finding.ts",
  "src/queue": "disk_queue.ts",
  "src/driver": "driver.ts",
  "src/driver/vhd": "vhd_driver.ts",
  "src/driver/nbd": "nbd_driver.ts",
  "src/driver/qcow": "qcow_driver.ts",
  "src/driver/vhdx": "vhdx_driver.ts",
  "src/driver/qcow2": "qcow2_driver.ts",
  "src/driver/rbd": "rbd_driver.ts",
  "src/bulk": "bulk_context.ts",
  "src/vbd": "vbd.ts",
  "src/images": "engine.ts",
  "src/frontend": "block_device.ts",
  "src/frontend/nbd": "server.ts",
  "src/frontend/blktap2": "blktap2_device.ts",
  "src/frontend/ublk": "ublk_device.ts",
  "src/frontend/xenblkif": "xen_ring.ts",
  "src/frontend/nbd_device": "nbd_device.ts",
  "src/control": "paths.ts",
  "src/control/protocol": "message.ts",
  "src/control/daemon": "devices.ts",
  "src/control/client": "client.ts",
  "src/control/handover": "channel.ts",
  "src/control/minors": "minors.ts",
  "src/observe": "sample.ts",
  "src/web": "server.ts",
  "src/web/client": "main.ts",
  "src/cli": "dispatch.ts",
  "src/cli/tap_ctl": "main.ts",
  "src/cli/tapdisk": "main.ts",
  "src/cli/vhd_util": "main.ts",
  "src/cli/cbt_util": "main.ts",
  "src/cli/td_util": "main.ts",
  "src/cli/image_tools": "main.ts",
  "src/cli/td_rated": "main.ts",
  "src/cli/tapback": "main.ts",
  "src/cli/web": "main.ts",
  "src/cli/exporter": "main.ts",
  "src/cli/top": "text.ts",
  "src/cli/doctor": "main.ts",
  "src/cli/subcommands": "program.ts",
  "src/cli/quick": "quick.ts",
  "src/testing": "simulated_disk.ts",
};

const FILES = sourceFiles("ffi", "src", "mod.ts");

/** The layer number of a file: that of the longest matching folder. */
function floorOf(path: string): number {
  let best = -1;
  let bestLength = -1;
  for (const [floor, folders] of FLOORS.entries()) {
    for (const folder of folders) {
      const inside = path === folder || path.startsWith(`${folder}/`);
      if (inside && folder.length > bestLength) [best, bestLength] = [floor, folder.length];
    }
  }
  return best;
}

function isSimulated(path: string): boolean {
  return path.startsWith(`${SIMULATED}/`);
}

Deno.test("imports go down the floors or stay on one", () => {
  const upward: string[] = [];
  for (const { path, imports } of FILES) {
    if (isSimulated(path)) continue;
    assert.ok(floorOf(path) >= 0, `${path} is on no floor`);
    for (const { path: target } of imports) {
      if (isSimulated(target) || floorOf(target) > floorOf(path)) {
        upward.push(`${path} imports ${target}`);
      }
    }
  }
  assert.deepEqual(upward, []);
});

/** Cycles of imports, including type imports; each is a list of files. */
function cycles(files: readonly SourceFile[]): string[] {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const state = new Map<string, "open" | "done">();
  const found: string[] = [];
  const visit = (path: string, trail: readonly string[]): void => {
    if (state.get(path) === "done") return;
    if (state.get(path) === "open") {
      found.push([...trail.slice(trail.indexOf(path)), path].join(" -> "));
      return;
    }
    state.set(path, "open");
    for (const { path: target } of byPath.get(path)?.imports ?? []) visit(target, [...trail, path]);
    state.set(path, "done");
  };
  for (const { path } of files) visit(path, []);
  return found;
}

Deno.test("no imports go round in a circle", () => {
  assert.deepEqual(cycles(FILES), []);
});

Deno.test("a circle of imports would be found", () => {
  const file = (path: string, target: string): SourceFile => ({
    path,
    text: "",
    exports: [],
    imports: [{ path: target, names: ["*"] }],
  });
  assert.deepEqual(cycles([file("a.ts", "b.ts"), file("b.ts", "a.ts")]), ["a.ts -> b.ts -> a.ts"]);
});

/** Lines of code, without comments, that match, as `path:line`. */
function linesWith(pattern: RegExp, allowed: (path: string) => boolean): string[] {
  return FILES.filter(({ path }) => !allowed(path)).flatMap(({ path, text }) =>
    text.split("\n").flatMap((line, index) =>
      pattern.test(line) && !/^\s*(?:\*|\/\/|\/\*)/.test(line) ? [`${path}:${index + 1}`] : []
    )
  );
}

Deno.test("only ffi/ opens libraries", () => {
  assert.deepEqual(linesWith(/Deno\.dlopen|UnsafeCallback/, (path) => path.startsWith("ffi/")), []);
});

Deno.test("only src/cli prints", () => {
  const prints = /\bconsole\.|Deno\.std(?:out|err)\b/;
  assert.deepEqual(linesWith(prints, (path) => path.startsWith("src/cli/")), []);
});

Deno.test("nothing is typed away", () => {
  assert.deepEqual(linesWith(/[:<] ?any\b|\bas any\b|@ts-(?:ignore|nocheck)/, () => false), []);
});

Deno.test("every folder's main file says what the folder is for and what it must not do", () => {
  const folders = new Set(
    FILES.map(({ path }) => path.slice(0, Math.max(path.lastIndexOf("/"), 0)))
      .filter((folder) => folder.startsWith("src/")),
  );
  const silent: string[] = [];
  for (const folder of folders) {
    const main = FILES.find(({ path }) => path === `${folder}/${MAIN_FILES[folder]}`);
    assert.ok(main !== undefined, `the test does not know the main file of ${folder}`);
    const head = /^\/\*\*[\s\S]*?@module\s*\*\//.exec(main.text)?.[0] ?? "";
    const words = head.replace(/\s*\n \*\s*/g, " ");
    if (!words.includes(`\`${folder}\``) || !/\bmust not\b/.test(words)) silent.push(main.path);
  }
  assert.deepEqual(silent, []);
});

Deno.test("no value is exported that no other file uses", () => {
  const tests = sourceFiles("tests", "scripts");
  const used = new Set<string>();
  for (const { imports } of [...FILES, ...tests]) {
    for (const { path, names } of imports) for (const name of names) used.add(`${path} ${name}`);
  }
  const dynamic = (path: string): boolean => used.has(`${path} *`);
  const unused = FILES.flatMap(({ path, exports }) =>
    exports.filter(({ name, isType }) => !isType && !used.has(`${path} ${name}`) && !dynamic(path))
      .map(({ name }) => `${path}: ${name}`)
  );
  assert.deepEqual(unused, []);
});

Deno.test("files are short enough to read in one sitting", () => {
  const long = FILES.filter(({ text }) => text.split("\n").length > 501).map(({ path }) => path);
  assert.deepEqual(long, []);
});
