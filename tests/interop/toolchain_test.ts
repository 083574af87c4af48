/**
 * `scripts/toolchain` with modified programs in every place that it takes a program from. It
 * neither runs nor uses them. A fake npm that copies files replaces the real one.
 */
import assert from "node:assert/strict";
import { needs, run } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const VERSION = Deno.version.deno;
/** The program that runs this test: the pinned one if `scripts/toolchain` installed it. */
const DENO = Deno.execPath();
const DENORT = `${ROOT}.toolchain/denort-${VERSION}`;
const tools = needs("bash", "sha256sum", "flock");

interface Bench {
  /** A folder with the scripts, instead of the project's folder. */
  readonly root: string;
  /** The first folder of PATH. */
  readonly bin: string;
  /** The files that npm installs: `deno` and `steady`, by the names of their programs. */
  readonly npm: string;
  toolchain(args: string[], env?: Record<string, string>): ReturnType<typeof run>;
}

function program(path: string, text: string): void {
  Deno.writeTextFileSync(path, text);
  Deno.chmodSync(path, 0o755);
}

/** A program that imitates the pinned deno and creates a file when it is run. */
function impostor(path: string, trace: string): void {
  program(path, `#!/bin/sh\ntouch ${trace}\necho "deno ${VERSION} (stable, release, x86_64)"\n`);
}

const NPM = `#!/bin/sh
[ "$1" = ci ] || exit 0
modules=$PWD/node_modules
mkdir -p "$modules/@deno/linux-x64-glibc" "$modules/@stdy/cli-linux-x64/bin"
[ ! -e FILES/deno ] || cp -L FILES/deno "$modules/@deno/linux-x64-glibc/deno"
[ ! -e FILES/steady ] || cp -L FILES/steady "$modules/@stdy/cli-linux-x64/bin/steady"
`;

async function withBench(body: (bench: Bench) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-toolchain-" });
  const [root, bin, npm] = ["root", "bin", "npm"].map((name) => `${folder}/${name}`);
  try {
    for (const path of [`${root}/scripts/npm`, bin, npm]) Deno.mkdirSync(path, { recursive: true });
    for (const name of ["toolchain", "npm/package.json", "npm/package-lock.json"]) {
      Deno.copyFileSync(`${ROOT}scripts/${name}`, `${root}/scripts/${name}`);
    }
    program(`${bin}/npm`, NPM.replaceAll("FILES", npm));
    const path = `${bin}:/usr/sbin:/usr/bin:/sbin:/bin`;
    await body({
      root,
      bin,
      npm,
      toolchain: (args, env = {}) =>
        run(`${root}/scripts/toolchain`, args, { env: { PATH: path, DENORT_BIN: "", ...env } }),
    });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function test(name: string, body: (bench: Bench) => Promise<void>): void {
  Deno.test({
    name: `toolchain: ${name}${tools.suffix}`,
    ignore: tools.ignore,
    fn: () => withBench(body),
  });
}

test("a deno on PATH that only says that it is the pinned one is not run", async (bench) => {
  const trace = `${bench.root}/trace`;
  impostor(`${bench.bin}/deno`, trace);
  Deno.symlinkSync(DENO, `${bench.npm}/deno`);
  const { code, stdout, stderr } = await bench.toolchain([]);
  assert.equal(code, 0, stderr);
  assert.match(stderr, /Not using .*bin\/deno: it is not the pinned Deno/);
  assert.equal(exists(trace), false);
  assert.match((await run(stdout.trim(), ["--version"])).stdout, /^deno /);
  assert.equal(exists(trace), false);
});

test("the pinned deno on PATH is taken, wherever it is", async (bench) => {
  Deno.symlinkSync(DENO, `${bench.bin}/deno`);
  const { code, stdout, stderr } = await bench.toolchain([]);
  assert.equal(code, 0, stderr);
  assert.equal(stderr, "");
  assert.ok(Deno.readTextFileSync(stdout.trim()).includes(Deno.realPathSync(DENO)));
});

test("a doctored deno from npm is refused", async (bench) => {
  const trace = `${bench.root}/trace`;
  impostor(`${bench.npm}/deno`, trace);
  const { code, stdout, stderr } = await bench.toolchain([]);
  assert.equal(code, 1);
  assert.equal(stdout, "");
  assert.match(stderr, /Cannot use .*linux-x64-glibc\/deno: its SHA-256 is not [0-9a-f]{64}/);
  assert.equal(exists(trace), false);
});

test("an installed deno that was changed is replaced before it is run", async (bench) => {
  const trace = `${bench.root}/trace`;
  Deno.symlinkSync(DENO, `${bench.npm}/deno`);
  assert.equal((await bench.toolchain([])).code, 0);
  assert.equal((await bench.toolchain([])).stderr, "");
  const installed = `${bench.root}/.toolchain/npm/node_modules/@deno/linux-x64-glibc/deno`;
  Deno.removeSync(installed);
  impostor(installed, trace);
  const { code, stderr } = await bench.toolchain([]);
  assert.equal(code, 0, stderr);
  assert.match(stderr, /Installing Deno/);
  assert.equal(exists(trace), false);
});

test("a doctored runtime from npm is refused", async (bench) => {
  program(`${bench.npm}/steady`, "#!/bin/sh\n");
  const { code, stdout, stderr } = await bench.toolchain(["denort"]);
  assert.equal(code, 1);
  assert.equal(stdout, "");
  assert.match(stderr, /Cannot use .*denort\.new .*: its SHA-256 is not [0-9a-f]{64}/);
  assert.equal(exists(`${bench.root}/.toolchain/denort-${VERSION}`), false);
});

test("a doctored runtime of an earlier time is not used", async (bench) => {
  const cached = `${bench.root}/.toolchain/denort-${VERSION}`;
  Deno.mkdirSync(`${bench.root}/.toolchain`);
  program(cached, "#!/bin/sh\n");
  const without = await bench.toolchain(["denort"]);
  assert.equal(without.code, 1);
  assert.equal(without.stdout, "");
  assert.match(without.stderr, /Replacing .*denort-.*: its SHA-256 is not/);
  if (!exists(DENORT)) return;
  // With an appended payload, as in npm's package.
  Deno.copyFileSync(DENORT, `${bench.npm}/steady`);
  Deno.writeTextFileSync(`${bench.npm}/steady`, "payload", { append: true });
  const { code, stdout, stderr } = await bench.toolchain(["denort"]);
  assert.equal(code, 0, stderr);
  assert.equal(stdout.trim(), cached);
  assert.equal(Deno.statSync(cached).size, Deno.statSync(DENORT).size);
  assert.deepEqual(await bench.toolchain(["denort"]), { code, stdout, stderr: "" });
});

test("a runtime that DENORT_BIN names is held to the same", async (bench) => {
  const named = `${bench.root}/denort`;
  program(named, "#!/bin/sh\n");
  const { code, stdout, stderr } = await bench.toolchain(["denort"], { DENORT_BIN: named });
  assert.equal(code, 1);
  assert.equal(stdout, "");
  assert.match(stderr, /Cannot use DENORT_BIN=.*: its SHA-256 is not/);
  if (!exists(DENORT)) return;
  const good = await bench.toolchain(["denort"], { DENORT_BIN: DENORT });
  assert.equal(good.stdout.trim(), Deno.realPathSync(DENORT));
});

Deno.test("toolchain: deno compile is only ever given the runtime that was verified", () => {
  const build = Deno.readTextFileSync(`${ROOT}scripts/build`);
  const verified = build.indexOf("DENORT_BIN=$(scripts/toolchain denort)");
  assert.ok(verified > 0 && verified < build.indexOf('"${compile[@]}"\n'));
  assert.match(build, /^export DENORT_BIN$/m);
});
