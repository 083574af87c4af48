/**
 * The binary with file names that are not UTF-8 or have control characters.
 *
 * @module
 */
import assert from "node:assert/strict";
import { encodeName } from "../../ffi/names.ts";
import { linkPath } from "../../ffi/paths.ts";
import { splitArguments, withStdinArguments } from "../../src/cli/stdin_arguments.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type ControlBench, until, withControlBench } from "../support/control.ts";
import { binaryPath, needs, run, type RunResult } from "../support/tools.ts";

const NAME = "b\udce4\n\x1b[31md.vhd";
const SHOWN = String.raw`b\xe4\n\x1b[31md.vhd`;

const { ignore, suffix } = needs("dist/blktap");

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test({ name: `names: ${name}${suffix}`, ignore, fn: () => withControlBench(body) });
}

/** Bytes for standard input: texts that end with NUL. */
function input(...texts: string[]): Uint8Array<ArrayBuffer> {
  return new Uint8Array(texts.flatMap((text) => [...encodeName(text), 0]));
}

/** Runs a command of the binary; `@` is replaced by the arguments from standard input. */
async function call(
  bench: ControlBench,
  line: string,
  stdin: Uint8Array<ArrayBuffer>,
): Promise<RunResult> {
  const [name, ...args] = line.replace("@", "--stdin-args").split(" ");
  const command = name === "tap-ctl" || name === "vhd-util" ? name : "tapdisk";
  return await run(binaryPath(command), args, { env: bench.env, stdin, timeoutMs: 60_000 });
}

async function ok(bench: ControlBench, line: string, ...names: string[]): Promise<string> {
  const { code, stdout, stderr } = await call(bench, line, input(...names));
  assert.equal(code, 0, `${line}: ${stdout}${stderr}`);
  return stdout;
}

/** Creates an image with such a name, and a child of it. */
function makeImages(folder: string): { image: string; child: string } {
  const image = `${folder}/${NAME}`;
  createDynamic(image, { sizeBytes: 4 << 20 });
  snapshot(`${folder}/child.vhd`, { parent: image });
  linkPath(`${folder}/child.vhd`, `${folder}/c\udcff.vhd`);
  return { image, child: `${folder}/c\udcff.vhd` };
}

test("standard input has arguments that the command line cannot carry", async (bench) => {
  const { image, child } = makeImages(bench.folder);
  assert.equal(await ok(bench, "vhd-util query -v -n @", image), "4\n");
  assert.equal(await ok(bench, "vhd-util query @ -v", "-n", child), "4\n");
  assert.equal(await ok(bench, "vhd-util query -p -n @", child), `${bench.folder}/${SHOWN}\n`);
  const scanned = await ok(bench, "vhd-util scan -f @", image, child);
  assert.match(scanned, /^vhd=.*\\xe4.* parent=none\nvhd=.*\\xff\.vhd .*\\xe4.*\n$/);
  const all = JSON.parse(await ok(bench, "vhd-util scan -f --json -m @", `${bench.folder}/*.vhd`));
  assert.deepEqual(
    all.map(({ vhd }: { vhd: string }) => vhd),
    [image, child, `${bench.folder}/child.vhd`].sort(),
  );
});

test("a tapdisk serves such an image, and tells of it on plain lines", async (bench) => {
  const { child } = makeImages(bench.folder);
  await ok(bench, "tap-ctl create -a @", `vhd:${child}`);
  const shown = `vhd:${bench.folder}/c\\xff.vhd`;
  const list = await ok(bench, "tap-ctl list");
  assert.match(list, /^pid=\d+ minor=0 state=0 args=vhd:[^\n]*\n$/);
  assert.ok(list.endsWith(`args=${shown}\n`), list);
  assert.equal(await ok(bench, "tap-ctl list -f @", child), list);
  assert.equal(JSON.parse(await ok(bench, "tap-ctl list --json"))[0].path, child);
  const pid = /pid=(\d+)/.exec(list)?.[1];
  const stats = JSON.parse(await ok(bench, `tap-ctl stats -p ${pid} -m 0`));
  assert.equal(stats.images[1].name, `${bench.folder}/${NAME}`);
  const again = await call(bench, "tap-ctl create -a @", input(`vhd:${child}`));
  assert.equal(again.code, 16);
  assert.ok(again.stderr.includes(`${bench.folder}/c\\xff.vhd for writing`), again.stderr);
  const missing = await call(bench, "tap-ctl create -a @", input(`vhd:/none${NAME}`));
  assert.ok(missing.stderr.includes(`/none${SHOWN}: No such file`), missing.stderr);
  assert.match(missing.stderr, /^\P{Cc}*\n$/u);
  await ok(bench, `tap-ctl destroy -p ${pid} -m 0`);
  await until("it has ended", () => bench.log().includes("Ended"));
  assert.ok(bench.log().includes(shown), bench.log());
  for (const line of bench.log().trimEnd().split("\n")) assert.match(line, /^\d{4}-\d\d-\P{Cc}*$/u);
});

test("an argument that is no UTF-8 is the runtime's to refuse, as the help says", async (bench) => {
  const script = `exec "${binaryPath("vhd-util")}" query -v -n "$(printf 'b\\344d.vhd')"`;
  const { code } = await run("sh", ["-c", script], { env: bench.env });
  assert.equal(code, 101);
  for (const name of ["vhd-util", "tap-ctl", "tapdisk"]) {
    const help = await ok(bench, `${name} --help`);
    assert.match(help, /not UTF-8 ends the program with status 101/, name);
    assert.match(help, /--stdin-args/, name);
  }
  const twice = await call(bench, "vhd-util query @ --stdin-args", input("x"));
  assert.equal(twice.code, 22);
  assert.match(twice.stderr, /^vhd-util: .*--stdin-args is given twice/);
});

Deno.test("names: arguments on standard input are split at NULs and come in their place", () => {
  assert.deepEqual(splitArguments(input("a b", "", "c\udce4")), ["a b", "", "c\udce4"]);
  assert.deepEqual(splitArguments(encodeName("a\0b\n")), ["a", "b\n"]);
  assert.deepEqual(splitArguments(new Uint8Array()), []);
  const read = () => input("x", "y");
  assert.deepEqual(withStdinArguments(["-n", "--stdin-args", "-v"], read), ["-n", "x", "y", "-v"]);
  const never = () => assert.fail("standard input was read");
  for (const args of [["-v"], ["--", "--stdin-args"], ["--stdin-argsx"]]) {
    assert.deepEqual(withStdinArguments(args, never), args);
  }
});
