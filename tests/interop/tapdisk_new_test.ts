import assert from "node:assert/strict";
import { commandLine, ControlBench } from "../support/control.ts";
import { run, type RunResult, withTempDir } from "../support/tools.ts";

async function tapdisk(bench: ControlBench, ...args: string[]): Promise<RunResult> {
  const [program, ...rest] = commandLine("tapdisk", ...args);
  return await run(program, rest, { env: bench.env, cwd: bench.folder, timeoutMs: 60_000 });
}

Deno.test("tapdisk -n serves an image, and prints where it is", async () => {
  await withTempDir(async (folder) => {
    const bench = new ControlBench(folder);
    Deno.writeFileSync(`${folder}/disk.raw`, new Uint8Array(1 << 20));
    const { code, stdout } = await tapdisk(bench, "-n", "aio:disk.raw");
    assert.equal(code, 0);
    const [line] = await bench.list();
    const [, pid, minor] = /^pid=(\d+) minor=(\d+) state=0 /.exec(line) ?? [];
    assert.ok(line.endsWith(`args=aio:${folder}/disk.raw`));
    assert.equal(stdout, `${bench.control}/nbd${pid}.${minor}\n`);
    assert.ok(Deno.lstatSync(stdout.trim()).isSocket);
    await bench.ok(`destroy -p ${pid} -m ${minor}`);
    assert.deepEqual(await bench.list(), []);
  });
});

Deno.test("tapdisk -n takes drivers that bars part, as it did at first", async () => {
  await withTempDir(async (folder) => {
    const bench = new ControlBench(folder);
    Deno.writeFileSync(`${folder}/disk|.raw`, new Uint8Array(1 << 20));
    const { code, stderr } = await tapdisk(bench, "-n", "log:|aio:disk|.raw");
    assert.equal(code, 0, stderr);
    const [line] = await bench.list();
    assert.ok(line.endsWith(`args=log:aio:${folder}/disk|.raw`), line);
    const [, pid, minor] = /^pid=(\d+) minor=(\d+)/.exec(line) ?? [];
    await bench.ok(`destroy -p ${pid} -m ${minor}`);
  });
});

Deno.test("tapdisk -n says why it cannot, and leaves nothing behind", async () => {
  await withTempDir(async (folder) => {
    const bench = new ControlBench(folder);
    const { code, stdout, stderr } = await tapdisk(bench, "-n", `vhd:${folder}/none.vhd`);
    assert.equal(code, 2);
    assert.equal(stdout, "");
    assert.match(stderr, /^tapdisk: Cannot open .*none\.vhd: No such file or directory/);
    assert.deepEqual(await bench.list(), []);
    const both = await tapdisk(bench, "-D", "-n", `vhd:${folder}/none.vhd`);
    assert.equal(both.code, 22);
  });
});
