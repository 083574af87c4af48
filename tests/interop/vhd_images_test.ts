import assert from "node:assert/strict";
import fc from "fast-check";
import { openChain } from "../../src/vhd/image/chain.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";

const MIB = 1024 * 1024;

/** Writes to an image through the project's code. */
function writeInto(
  path: string,
  writes: readonly { offset: number; bytes: Uint8Array<ArrayBuffer> }[],
): void {
  const image = openVhd(path, { readOnly: false });
  for (const { offset, bytes } of writes) writeRange(image, bytes, offset);
  finishWriting(image);
  image.close();
}

/** The whole disk as read by the project's code. */
function readDisk(path: string): Uint8Array<ArrayBuffer> {
  const chain = openChain(path);
  const disk = new Uint8Array(chain.images[0].sizeBytes);
  readRange(chain, disk, 0);
  chain.close();
  return disk;
}

/** Fails at the first difference without printing all bytes. */
function assertSameDisk(actual: Uint8Array, expected: Uint8Array): void {
  assert.equal(actual.length, expected.length);
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  assert.equal(at, -1, `byte ${at} is ${actual[at]} instead of ${expected[at]}`);
}

function pattern(lengthBytes: number, seed: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(lengthBytes).map((_, i) => (i * 7 + (i >> 9) * seed + seed) & 0xff);
}

/** The disk as read by qemu-img, as raw bytes. An option makes qemu use the current size. */
async function convert(path: string, raw: string): Promise<Uint8Array> {
  const source = `driver=vpc,force_size_calc=current_size,file.filename=${path}`;
  await runOk("qemu-img", ["convert", "--image-opts", "-O", "raw", source, raw]);
  return Deno.readFileSync(raw);
}

const qemu = needs("qemu-img");
const vhdi = needs("vhdiinfo");

Deno.test({
  name: `qemu-img opens, checks and reads what we make${qemu.suffix}`,
  ignore: qemu.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const path = `${folder}/a.vhd`;
      createDynamic(path, { sizeBytes: 16 * MIB });
      const data = pattern(3 * MIB, 3);
      writeInto(path, [{ offset: 1536, bytes: data }, {
        offset: 15 * MIB,
        bytes: data.slice(0, 512),
      }]);
      const info = JSON.parse(await runOk("qemu-img", ["info", "--output=json", path]));
      assert.equal(info.format, "vpc");
      const check = await run("qemu-img", ["check", path]);
      assert.ok(check.code === 0 || check.code === 63, check.stdout + check.stderr);
      assertSameDisk(await convert(path, `${folder}/a.raw`), readDisk(path));

      createFixed(`${folder}/f.vhd`, { sizeBytes: 4 * MIB });
      writeInto(`${folder}/f.vhd`, [{ offset: MIB, bytes: data.slice(0, MIB) }]);
      assertSameDisk(
        await convert(`${folder}/f.vhd`, `${folder}/f.raw`),
        readDisk(`${folder}/f.vhd`),
      );
    }),
});

Deno.test({
  name: `we read, check and write what qemu-img makes, and qemu reads it again${qemu.suffix}`,
  ignore: qemu.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const raw = pattern(9 * MIB + 8192, 5);
      raw.fill(0, 2 * MIB, 7 * MIB);
      Deno.writeFileSync(`${folder}/in.raw`, raw);
      for (const subformat of ["dynamic", "fixed"]) {
        const path = `${folder}/${subformat}.vhd`;
        const options = `subformat=${subformat},force_size=on`;
        await runOk("qemu-img", [
          "convert",
          "-f",
          "raw",
          "-O",
          "vpc",
          "-o",
          options,
          `${folder}/in.raw`,
          path,
        ]);
        assert.equal(openVhd(path).type, subformat);
        assertSameDisk(readDisk(path), raw);
        // With force_size, qemu writes the largest possible geometry, which is more than the disk.
        const { valid, findings } = checkImage(path, { checkData: true });
        assert.ok(valid, JSON.stringify(findings));
        assert.ok(findings.some(({ field }) => field === "footer.geometry"));
        const bytes = pattern(MIB, 9);
        writeInto(path, [{ offset: 3 * MIB + 512, bytes }]);
        const changed = raw.slice();
        changed.set(bytes, 3 * MIB + 512);
        assertSameDisk(readDisk(path), changed);
        assertSameDisk(await convert(path, `${folder}/out.raw`), changed);
      }
    }),
});

Deno.test({
  name: `a child of an image that qemu-img made reads through to it${qemu.suffix}`,
  ignore: qemu.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const raw = pattern(4 * MIB, 11);
      Deno.writeFileSync(`${folder}/in.raw`, raw);
      await runOk("qemu-img", [
        "convert",
        "-O",
        "vpc",
        "-o",
        "force_size=on",
        `${folder}/in.raw`,
        `${folder}/base.vhd`,
      ]);
      snapshot(`${folder}/child.vhd`, { parent: `${folder}/base.vhd` });
      writeInto(`${folder}/child.vhd`, [{ offset: 1024, bytes: new Uint8Array(512) }]);
      raw.fill(0, 1024, 1536);
      assertSameDisk(readDisk(`${folder}/child.vhd`), raw);
      assert.equal(checkImage(`${folder}/child.vhd`).valid, true);
    }),
});

Deno.test({
  name: `any sequence of writes reads back the same through qemu-img${qemu.suffix}`,
  ignore: qemu.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const sectors = 3 * 4096;
      const write = fc.record({
        sector: fc.nat(sectors - 1),
        count: fc.oneof(fc.integer({ min: 1, max: 64 }), fc.constant(4100)),
        fill: fc.integer({ min: 1, max: 255 }),
      });
      await fc.assert(
        fc.asyncProperty(fc.array(write, { maxLength: 12 }), async (writes) => {
          const path = `${folder}/p.vhd`;
          createDynamic(path, { sizeBytes: sectors * 512 });
          const model = new Uint8Array(sectors * 512);
          const list = writes.map(({ sector, count, fill }) => {
            const length = Math.min(count, sectors - sector) * 512;
            model.fill(fill, sector * 512, sector * 512 + length);
            return { offset: sector * 512, bytes: new Uint8Array(length).fill(fill) };
          });
          writeInto(path, list);
          assertSameDisk(readDisk(path), model);
          assertSameDisk(await convert(path, `${folder}/p.raw`), model);
        }),
        { numRuns: 6 },
      );
    }),
});

Deno.test({
  name: `vhdiinfo knows our images, their kind, size and parent${vhdi.suffix}`,
  ignore: vhdi.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      createDynamic(`${folder}/a.vhd`, { sizeBytes: 16 * MIB });
      writeInto(`${folder}/a.vhd`, [{ offset: 0, bytes: new Uint8Array(512).fill(1) }]);
      snapshot(`${folder}/b.vhd`, { parent: `${folder}/a.vhd` });
      createFixed(`${folder}/f.vhd`, { sizeBytes: 2 * MIB });
      const base = await runOk("vhdiinfo", [`${folder}/a.vhd`]);
      assert.match(base, /Disk type\s*: Dynamic/);
      assert.match(base, /\(16777216 bytes\)/);
      const child = await runOk("vhdiinfo", [`${folder}/b.vhd`]);
      assert.match(child, /Disk type\s*: Differential/);
      assert.match(child, /Parent filename\s*: a\.vhd/);
      assert.match(await runOk("vhdiinfo", [`${folder}/f.vhd`]), /Disk type\s*: Fixed/);
    }),
});
