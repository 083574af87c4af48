/** The tools of the first blktap, with the arguments that they had there. */
import assert from "node:assert/strict";
import { IMAGE_TOOLS, imageToolMain } from "../../src/cli/image_tools/main.ts";
import { imageToolPage } from "../../src/cli/image_tools/documents.ts";
import { withTempDir } from "../support/tools.ts";
import { type ProgramResult, runProgram } from "../support/vhd.ts";
// Loaded here because Deno reports a library that is loaded within a test as a leak.
import "../../src/images/convert.ts";

const MIB = 1 << 20;

function tool(name: string, ...args: string[]): Promise<ProgramResult> {
  return runProgram((given, options) => imageToolMain(name, given, options), args);
}

async function ok(name: string, ...args: string[]): Promise<ProgramResult> {
  const result = await tool(name, ...args);
  assert.equal(result.code, 0, result.stderr);
  return result;
}

Deno.test("img2qcow, qcow2raw, tapdisk-diff and tapdisk-stream keep all bytes", () =>
  withTempDir(async (folder) => {
    const content = new Uint8Array(3 * MIB).fill(5, 1000, MIB);
    const [raw, qcow, back] = ["a.raw", "a.qcow", "b.raw"].map((name) => `${folder}/${name}`);
    Deno.writeFileSync(raw, content);
    await ok("img2qcow", qcow, raw);
    await ok("qcow2raw", back, qcow);
    assert.deepEqual(Deno.readFileSync(back), content);
    await ok("tapdisk-diff", "-n", `qcow:${qcow}`, "-m", `aio:${back}`);
    const { stdoutBytes } = await ok("tapdisk-stream", "-n", `qcow:${qcow}`, "-s", "1", "-c", "7");
    assert.deepEqual(stdoutBytes, content.slice(512, 8 * 512));
    content[2 * MIB + 3] = 1;
    Deno.writeFileSync(back, content);
    const { code, stderr } = await tool("tapdisk-diff", "-n", `qcow:${qcow}`, "-m", `aio:${back}`);
    assert.deepEqual([code, stderr], [22, `mismatch at sector ${2 * MIB / 512}\n`]);
    Deno.writeFileSync(back, content.slice(0, MIB));
    const sizes = await tool("tapdisk-diff", "-n", `qcow:${qcow}`, "-m", `aio:${back}`);
    assert.deepEqual([sizes.code, sizes.stderr], [22, "Image sizes differ: 6144 != 2048\n"]);
    const there = await tool("img2qcow", qcow, raw);
    assert.match(there.stderr, /choose another name/);
  }));

Deno.test("qcow-create makes images with and without a backing file, and never guesses its format", () =>
  withTempDir(async (folder) => {
    const base = `${folder}/base.raw`;
    Deno.writeFileSync(base, new Uint8Array(MIB).fill(7));
    await ok("qcow-create", "-r", "4", `${folder}/alone.qcow`);
    const { stdoutBytes: zeros } = await ok("tapdisk-stream", "-n", `qcow:${folder}/alone.qcow`);
    assert.deepEqual(zeros, new Uint8Array(4 * MIB));
    await ok("qcow-create", "2", `${folder}/child.qcow`, base);
    const { stdoutBytes } = await ok("tapdisk-stream", "-n", `qcow:${folder}/child.qcow`);
    assert.deepEqual(stdoutBytes, new Uint8Array(2 * MIB).fill(7, 0, MIB));
    const { code, stderr } = await tool(
      "qcow-create",
      "2",
      `${folder}/top.qcow`,
      `${folder}/child.qcow`,
    );
    assert.equal(code, 22);
    assert.match(stderr, /begins like a QCOW.*name it qcow:/);
    await ok("qcow-create", "2", `${folder}/top.qcow`, `qcow:${folder}/child.qcow`);
    const { stdoutBytes: top } = await ok("tapdisk-stream", "-n", `qcow:${folder}/top.qcow`);
    assert.deepEqual(top, stdoutBytes);
  }));

Deno.test("wrong arguments of the tools print the usage, and each has help and a manual page", async () => {
  for (const { name, synopsis, summary } of IMAGE_TOOLS) {
    const { code, stderr } = await tool(name);
    assert.deepEqual([code, stderr], [22, `usage: ${name} ${synopsis}\n`]);
    assert.match((await ok(name, "-h")).stdout, new RegExp(`^usage: ${name} `));
    const tooMany = await tool(name, "-x");
    assert.match(tooMany.stderr, /invalid option -- 'x'/);
    const page = imageToolPage({
      name,
      synopsis,
      summary,
      text: "",
      letters: "",
      operands: [0, 0],
      run: () => 0,
    });
    assert.ok(page.includes(".SH SYNOPSIS"));
  }
  assert.equal((await tool("tapdisk-stream", "-n", "aio:/x", "-c", "many")).code, 22);
  assert.equal((await tool("qcow-create", "none", "/x")).code, 22);
});
