/**
 * Copies and merges write to temporary files: several for one output do not conflict, links are not
 * followed, and a signal leaves no file behind.
 */
import assert from "node:assert/strict";
import { checkImage, coalesce, copyImage, createDynamic, openDisk, snapshot } from "../../mod.ts";
import { Errno } from "../../ffi/errno.ts";
import { binaryPath, needs, run, withTempDir } from "../support/tools.ts";

const MIB = 1024 * 1024;
const built = needs("dist/vhd-util");

function makeImage(path: string, dataMib: number): void {
  createDynamic(path, { sizeBytes: 600 * MIB });
  using disk = openDisk(path, { writable: true });
  const bytes = new Uint8Array(2 * MIB).fill(7);
  for (let at = 0; at < dataMib; at += 2) disk.write(bytes, at * MIB);
}

function namesIn(folder: string): string[] {
  return Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
}

async function until(condition: () => boolean): Promise<void> {
  for (const end = Date.now() + 10_000; !condition();) {
    assert.ok(Date.now() < end, "it does not come to that");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Starts vhd-util and stops it as soon as its temporary file exists. */
async function startAndStop(folder: string, args: string[]): Promise<Deno.ChildProcess> {
  const options = { args, stdout: "piped", stderr: "piped" } as const;
  const child = new Deno.Command(binaryPath("vhd-util"), options).spawn();
  await until(() => namesIn(folder).some((name) => name.endsWith(".part")));
  Deno.kill(child.pid, "SIGSTOP");
  return child;
}

for (const command of ["copy", "coalesce"] as const) {
  Deno.test({
    name: `of two calls of ${command} that make one image, one wins${built.suffix}`,
    ignore: built.ignore,
    fn: () =>
      withTempDir(async (folder) => {
        makeImage(`${folder}/base.vhd`, 256);
        snapshot(`${folder}/b.vhd`, { parent: `${folder}/base.vhd` });
        const out = `${folder}/z.vhd`;
        const args = [command, "-n", `${folder}/b.vhd`, command === "copy" ? "-N" : "-o", out];
        const first = await startAndStop(folder, args);
        const second = await run(binaryPath("vhd-util"), args);
        assert.equal(second.code, 0, second.stderr);
        const won = Deno.statSync(out).ino;
        Deno.kill(first.pid, "SIGCONT");
        const { code, stderr } = await first.output();
        assert.equal(code, Errno.EEXIST, new TextDecoder().decode(stderr));
        assert.equal(Deno.statSync(out).ino, won);
        assert.equal(checkImage(out, { checkData: true }).valid, true);
        assert.deepEqual(namesIn(folder), ["b.vhd", "base.vhd", "z.vhd"]);
      }),
  });

  for (const [signal, status] of [["SIGTERM", 143], ["SIGINT", 130], ["SIGHUP", 129]] as const) {
    Deno.test({
      name: `${command} that ${signal} ends leaves nothing behind${built.suffix}`,
      ignore: built.ignore,
      fn: () =>
        withTempDir(async (folder) => {
          makeImage(`${folder}/base.vhd`, 256);
          snapshot(`${folder}/b.vhd`, { parent: `${folder}/base.vhd` });
          const output = [command === "copy" ? "-N" : "-o", `${folder}/z.vhd`];
          const child = await startAndStop(folder, [command, "-n", `${folder}/b.vhd`, ...output]);
          Deno.kill(child.pid, signal);
          Deno.kill(child.pid, "SIGCONT");
          const { code, stderr } = await child.output();
          assert.equal(code, status, new TextDecoder().decode(stderr));
          assert.match(new TextDecoder().decode(stderr), new RegExp(`Stopped by ${signal}`));
          assert.deepEqual(namesIn(folder), ["b.vhd", "base.vhd"]);
        }),
    });
  }
}

Deno.test("coalesce that is called off leaves a chain in order, and can be done again", () =>
  withTempDir(async (folder) => {
    const [base, child] = [`${folder}/base.vhd`, `${folder}/child.vhd`];
    createDynamic(base, { sizeBytes: 64 * MIB });
    snapshot(child, { parent: base, keepEmptyParent: true });
    {
      using disk = openDisk(child, { writable: true });
      disk.write(new Uint8Array(60 * MIB).fill(9), 0);
    }
    const caller = new AbortController();
    const onProgress = (done: number): void => {
      if (done === 10) caller.abort();
    };
    const { signal } = caller;
    await assert.rejects(coalesce(child, { onProgress, signal }), { code: "ECANCELED" });
    const { size } = Deno.statSync(base);
    assert.ok(size > 10 * MIB && size < 50 * MIB, String(size));
    assert.equal(checkImage(base, { checkData: true }).valid, true);
    assert.equal(await coalesce(child), 60 * MIB / 512);
    assert.equal(checkImage(base, { checkData: true }).valid, true);
  }));

Deno.test("a copy does not follow links that lie in its way, and takes the name of nothing", () =>
  withTempDir(async (folder) => {
    makeImage(`${folder}/b.vhd`, 2);
    const victim = `${folder}/victim`;
    Deno.writeTextFileSync(victim, "precious");
    Deno.symlinkSync(victim, `${folder}/z.vhd.part`);
    Deno.symlinkSync(`${folder}/nowhere`, `${folder}/link.vhd`);
    await copyImage(`${folder}/b.vhd`, `${folder}/z.vhd`);
    assert.equal(Deno.readTextFileSync(victim), "precious");
    assert.equal(checkImage(`${folder}/z.vhd`, { checkData: true }).valid, true);
    await assert.rejects(copyImage(`${folder}/b.vhd`, `${folder}/link.vhd`), { code: "EEXIST" });
    await assert.rejects(copyImage(`${folder}/b.vhd`, `${folder}/z.vhd`), { code: "EEXIST" });
    const signal = AbortSignal.abort();
    const off = copyImage(`${folder}/b.vhd`, `${folder}/y.vhd`, { signal });
    await assert.rejects(off, { code: "ECANCELED" });
    const names = ["b.vhd", "link.vhd", "victim", "z.vhd", "z.vhd.part"];
    assert.deepEqual(namesIn(folder), names);
  }));
