/**
 * Coalesce and copy on real files and devices: killed by a signal, with block devices as output,
 * and compared by qemu-img.
 */

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { openDisk } from "../../src/bulk/disk.ts";
import { allowParentsIn } from "../../src/files/confinement.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { loops } from "../support/loop_device.ts";
import { binaryPath, needs, run, runOk, withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const DISK = 96 * MIB;

/** A parent and a child with ranges of data in some of their blocks. */
function makePair(folder: string): { base: string; child: string } {
  const [base, child] = [`${folder}/base.vhd`, `${folder}/child.vhd`];
  createDynamic(base, { sizeBytes: DISK });
  scribble(base, { seed: 3, step: 7 });
  snapshot(child, { parent: base });
  scribble(child, { seed: 11, step: 3 });
  return { base, child };
}

function scribble(path: string, { seed, step }: { seed: number; step: number }): void {
  const disk = openDisk(path, { writable: true });
  for (let at = seed * 4096; at + 3 * MIB < DISK; at += step * MIB + 512) {
    disk.write(new Uint8Array(MIB + 512 * seed).fill(seed + (at >> 20)), at);
  }
  disk.close();
}

function contentOf(path: string): Uint8Array<ArrayBuffer> {
  using disk = openDisk(path);
  const content = new Uint8Array(disk.sizeBytes);
  disk.read(content, 0);
  return content;
}

function assertSame(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert.ok(Buffer.compare(actual, expected) === 0, what);
}

const built = needs("dist/vhd-util");
Deno.test({
  name: `coalesce killed by SIGKILL at many moments, then run to its end${built.suffix}`,
  ignore: built.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const { base, child } = makePair(folder);
      const wanted = contentOf(child);
      for (let afterMs = 40; afterMs < 140; afterMs += 10) {
        const process = new Deno.Command(binaryPath("vhd-util"), {
          args: ["coalesce", "-n", child],
          stdout: "null",
          stderr: "null",
        }).spawn();
        const timer = setTimeout(() => {
          try {
            process.kill("SIGKILL");
          } catch (error) {
            if (!(error instanceof TypeError)) throw error;
          }
        }, afterMs);
        await process.status;
        clearTimeout(timer);
        assertSame(contentOf(child), wanted, `the chain, killed after ${afterMs} ms`);
      }
      await runOk(binaryPath("vhd-util"), ["coalesce", "-n", child]);
      assertSame(contentOf(base), wanted, "the parent");
      assert.equal(checkImage(base, { checkData: true }).valid, true);
    }),
});

Deno.test({
  name: `coalesce and copy onto block devices${loops.suffix}`,
  ignore: loops.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const devices: string[] = [];
      const deviceOf = async (name: string, sizeBytes: number): Promise<string> => {
        Deno.writeFileSync(`${folder}/${name}`, crypto.getRandomValues(new Uint8Array(65536)));
        Deno.truncateSync(`${folder}/${name}`, sizeBytes);
        const path = (await runOk("losetup", ["-f", "--show", `${folder}/${name}`])).trim();
        devices.push(path);
        return path;
      };
      const code = async (...args: string[]): Promise<number> => (await vhdUtil(...args)).code;
      const before = allowParentsIn(["/dev"]);
      try {
        const { child } = makePair(folder);
        const wanted = contentOf(child);
        const copy = await deviceOf("copy", DISK + 2 * MIB);
        assert.equal(await code("copy", "-n", child, "-N", copy), 0);
        assertSame(contentOf(copy), wanted, "a copy on a device");
        assert.equal(checkImage(copy, { checkData: true }).valid, true);
        snapshot(`${folder}/top.vhd`, { parent: copy });
        scribble(`${folder}/top.vhd`, { seed: 5, step: 5 });
        const top = contentOf(`${folder}/top.vhd`);
        assert.equal(await code("coalesce", "-n", `${folder}/top.vhd`), 0);
        assertSame(contentOf(copy), top, "a parent on a device");
        const raw = await deviceOf("raw", DISK);
        snapshot(`${folder}/onraw.vhd`, { parent: raw, rawParent: true });
        scribble(`${folder}/onraw.vhd`, { seed: 9, step: 4 });
        const onRaw = contentOf(`${folder}/onraw.vhd`);
        assert.equal(await code("coalesce", "-n", `${folder}/onraw.vhd`), 0);
        assertSame(Deno.readFileSync(`${folder}/raw`), onRaw, "a raw parent on a device");
        allowParentsIn(before);
        const small = await deviceOf("small", 8 * MIB);
        assert.equal(await code("copy", "-n", child, "-N", small), 28);
      } finally {
        for (const device of devices) await runOk("losetup", ["-d", device]);
      }
    }),
});

const qemu = needs("qemu-img");
Deno.test({
  name: `qemu-img reads a copy and a coalesced parent as the chain did${qemu.suffix}`,
  ignore: qemu.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const { base, child } = makePair(folder);
      Deno.writeFileSync(`${folder}/wanted`, contentOf(child));
      assert.equal((await vhdUtil("copy", "-n", child, "-N", `${folder}/copy.vhd`)).code, 0);
      assert.equal((await vhdUtil("coalesce", "-n", child)).code, 0);
      for (const path of [`${folder}/copy.vhd`, base]) {
        // qemu-img uses the geometry unless an option makes it use the size.
        const image = `driver=vpc,force_size_calc=current_size,file.filename=${path}`;
        const target = `driver=raw,file.filename=${folder}/wanted`;
        const args = ["compare", "--image-opts", image, target];
        assert.match(await runOk("qemu-img", args), /Images are identical/);
      }
    }),
});

const terminal = needs("dist/vhd-util", "script");
Deno.test({
  name: `a bar shows progress on a terminal, and nothing where there is none${terminal.suffix}`,
  ignore: terminal.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const { child } = makePair(folder);
      const command = (name: string): string[] => [
        ...[binaryPath("vhd-util"), "copy", "-n", child],
        ...["-N", `${folder}/${name}.vhd`],
      ];
      const shown = await runOk("script", ["-qec", command("seen").join(" "), "/dev/null"], {
        env: { TERM: "xterm" },
      });
      assert.match(shown, /copy \[[#.]+\] \d+%/);
      const [program, ...args] = command("unseen");
      const { stdout, stderr } = await run(program, args);
      assert.equal(stdout + stderr, "");
      const percent = await runOk(program, ["coalesce", "-p", "-n", child]);
      assert.match(percent, /^\r +\d+\.\d\d%\r.*\r100\.00%\nCoalesced \d+ sectors\n$/s);
    }),
});
