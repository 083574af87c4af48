/** td-util, run in this process on real files. */
import assert from "node:assert/strict";
import type { Subcommand } from "../../src/cli/subcommands/command.ts";
import { TD_UTIL, tdUtilMain } from "../../src/cli/td_util/main.ts";
// Loaded here because Deno reports a library that is loaded within a test as a leak.
import { copyInto } from "../../src/images/convert.ts";
import { createEngine } from "../../src/images/engine.ts";
import { OpenImage } from "../../src/images/open_image.ts";
import { withTempDir } from "../support/tools.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { type ProgramResult, runProgram } from "../support/vhd.ts";
import { MadeVhdx } from "../support/vhdx.ts";

const MIB = 1 << 20;
const DISK_BYTES = 9 * MIB + 512;

function tdUtil(...args: string[]): Promise<ProgramResult> {
  return runProgram(tdUtilMain, args);
}

async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await tdUtil(...args);
  assert.equal(code, 0, `${args.join(" ")}: ${stderr}`);
  return stdout;
}

async function fails(message: RegExp, ...args: string[]): Promise<void> {
  const { code, stderr } = await tdUtil(...args);
  assert.notEqual(code, 0);
  assert.match(stderr, message);
}

/** A disk with data, zeros and holes. */
function someContent(): Uint8Array<ArrayBuffer> {
  const content = new Uint8Array(DISK_BYTES);
  for (const [at, length] of [[0, 700], [70_000, 5], [2 * MIB - 100, 5000], [5 * MIB, 3 * MIB]]) {
    for (let i = 0; i < length; i++) content[at + i] = 1 + (at + i * 7) % 250;
  }
  content[DISK_BYTES - 1] = 9;
  return content;
}

function withImages(fn: (folder: string, content: Uint8Array) => Promise<void>): Promise<void> {
  return withTempDir(async (folder) => {
    const content = someContent();
    Deno.writeFileSync(`${folder}/src.raw`, content);
    await fn(folder, content);
  });
}

const WRITABLE = [
  { name: "raw", type: "raw", options: [] },
  { name: "qcow", type: "qcow", options: [] },
  { name: "qcow2", type: "qcow2", options: [] },
  { name: "dynamic", type: "vhd", options: [] },
  { name: "fixed", type: "vhd", options: ["--fixed"] },
];

for (const from of WRITABLE) {
  for (const to of WRITABLE) {
    Deno.test(`td-util: convert keeps all bytes, ${from.name} to ${to.name}`, () =>
      withImages(async (folder, content) => {
        const [a, b, c] = [`${from.type}:${folder}/a`, `${to.type}:${folder}/b`, `${folder}/c.raw`];
        await ok("convert", ...from.options, `raw:${folder}/src.raw`, a);
        await ok("convert", ...to.options, a, b);
        await ok("convert", b, `aio:${c}`);
        assertBytes(Deno.readFileSync(c), content);
        assertBytes((await tdUtil("stream", b)).stdoutBytes, content);
        assert.equal((await tdUtil("diff", a, b)).code, 0);
        const room = (Deno.statSync(c).blocks ?? 0) * 512;
        assert.ok(room <= 4 * MIB, `${room} bytes for 3 MiB of data`);
      }));
  }
}

for (const type of ["zlib", "zstd"]) {
  Deno.test(`td-util: convert compresses by ${type}, and what does not get shorter is plain`, () =>
    withImages(async (folder, content) => {
      const [raw, image] = [`${folder}/a.raw`, `qcow2:${folder}/a.qcow2`];
      crypto.getRandomValues(content.subarray(6 * MIB, 6 * MIB + 65536));
      Deno.writeFileSync(raw, content);
      await ok(
        "convert",
        type === "zlib" ? "--compress" : `--compress=${type}`,
        `raw:${raw}`,
        image,
      );
      assertBytes((await tdUtil("stream", image)).stdoutBytes, content);
      assert.equal((await tdUtil("check", image)).code, 0);
      assert.ok(Deno.statSync(`${folder}/a.qcow2`).size < MIB);
      await fails(/only a QCOW2/, "convert", "--compress", `raw:${raw}`, `vhd:${folder}/x`);
      await fails(/zlib or zstd/, "convert", "--compress=gzip", `raw:${raw}`, `qcow2:${folder}/x`);
    }));
}

Deno.test("td-util: a copy has the type of its image, and no parent", () =>
  withImages(async (folder, content) => {
    await ok("convert", `raw:${folder}/src.raw`, `vhd:${folder}/a.vhd`);
    await ok("copy", `vhd:${folder}/a.vhd`, `${folder}/b.vhd`);
    assert.match(await ok("info", `vhd:${folder}/b.vhd`), /kind: dynamic/);
    assertBytes((await tdUtil("stream", `vhd:${folder}/b.vhd`)).stdoutBytes, content);
  }));

Deno.test("td-util: a VHD for Azure is fixed, and has whole MiB", () =>
  withImages(async (folder, content) => {
    const image = `vhd:${folder}/azure.vhd`;
    await ok("convert", "--azure", `raw:${folder}/src.raw`, image);
    assert.match(await ok("info", image), /disk: 10 MiB \(10485760 bytes\)\n.*\n {2}kind: fixed/);
    assert.equal(Deno.statSync(`${folder}/azure.vhd`).size, 10 * MIB + 512);
    const { stdoutBytes } = await tdUtil("stream", "--count", String(DISK_BYTES / 512), image);
    assertBytes(stdoutBytes, content);
    await fails(/for Azure/, "convert", "--azure", `raw:${folder}/src.raw`, `qcow:${folder}/x`);
  }));

Deno.test("td-util: a part of a disk is streamed", () =>
  withImages(async (folder, content) => {
    const { stdoutBytes } = await tdUtil(
      "stream",
      "--skip",
      "4000",
      "--count",
      "9000",
      `raw:${folder}/src.raw`,
    );
    assert.deepEqual(stdoutBytes, content.slice(4000 * 512, 13_000 * 512));
    await fails(
      /Cannot start at sector 99999999/,
      "stream",
      "--skip",
      "99999999",
      `raw:${folder}/src.raw`,
    );
  }));

Deno.test("td-util: diff finds each sector, and what only one disk has", () =>
  withImages(async (folder, content) => {
    const [a, b] = [`${folder}/a.raw`, `${folder}/b.qcow`];
    await ok("convert", `raw:${folder}/src.raw`, `qcow:${b}`);
    const other = content.slice();
    for (const at of [0, 3 * MIB + 17, 5 * MIB + 511, 5 * MIB + 512]) other[at] ^= 1;
    Deno.writeFileSync(a, other);
    for (const images of [[`raw:${a}`, `qcow:${b}`], [`qcow:${b}`, `raw:${a}`]]) {
      const { code, stdout } = await tdUtil("diff", "--json", ...images);
      assert.equal(code, 1);
      const ranges = JSON.parse(stdout).ranges.map(
        (
          range: { offsetBytes: number; lengthBytes: number },
        ) => [range.offsetBytes, range.lengthBytes],
      );
      assert.deepEqual(ranges, [[0, 512], [3 * MIB, 512], [5 * MIB, 1024]]);
    }
    Deno.writeFileSync(a, content.slice(0, 4 * MIB));
    const { code, stdout } = await tdUtil("diff", `raw:${a}`, `qcow:${b}`);
    assert.deepEqual([code, stdout], [1, `The disks have ${4 * MIB} and ${DISK_BYTES} bytes\n`]);
    assert.equal((await tdUtil("diff", "--quiet", `raw:${a}`, `qcow:${b}`)).stdout, "");
  }));

Deno.test("td-util: a disk that may not be read does not differ", () =>
  withTempDir((outside) =>
    withImages(async (folder) => {
      const image = `qcow2:${folder}/child.qcow2`;
      Deno.writeFileSync(`${outside}/base.raw`, new Uint8Array(4096));
      await ok("snapshot", `raw:${outside}/base.raw`, image);
      const { code, stderr } = await tdUtil("diff", image, `raw:${folder}/src.raw`);
      assert.match(stderr, /lies outside of .*\(EPERM\)/);
      assert.equal(code, 13);
    })
  ));

Deno.test("td-util: map says which image holds what", () =>
  withTempDir(async (folder) => {
    const guids = ["aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"];
    const sectors = (...list: number[]): Map<number, Uint8Array> =>
      new Map(list.map((sector) => [sector, new Uint8Array(512).fill(7)]));
    const shape = { sizeBytes: 8 * MIB };
    const base = new MadeVhdx({ ...shape, dataGuid: guids[0], sectors: sectors(9) });
    const parent = { path: "base.vhdx", dataGuid: guids[0] };
    const child = new MadeVhdx({
      ...shape,
      dataGuid: guids[1],
      parent,
      sectors: sectors(1, 2, 5000),
    });
    Deno.writeFileSync(`${folder}/base.vhdx`, base.bytes);
    Deno.writeFileSync(`${folder}/child.vhdx`, child.bytes);
    const { layers, extents } = JSON.parse(await ok("map", "--json", `vhdx:${folder}/child.vhdx`));
    assert.deepEqual(layers, [`vhdx:${folder}/child.vhdx`, `vhdx:${folder}/base.vhdx`]);
    const found = extents.map(
      (
        extent: { offsetBytes: number; lengthBytes: number; layer: number | null },
      ) => [extent.offsetBytes / 512, extent.lengthBytes / 512, extent.layer],
    );
    assert.deepEqual(found, [
      [0, 1, 1],
      [1, 2, 0],
      [3, 4093, 1],
      [4096, 904, null],
      [5000, 1, 0],
      [5001, 11_383, null],
    ]);
    const info = JSON.parse(await ok("info", "--json", `vhdx:${folder}/child.vhdx`));
    assert.equal(info.layers.length, 2);
    assert.equal(info.layers[0].facts.differencing, true);
    await ok("convert", `vhdx:${folder}/child.vhdx`, `vhd:${folder}/flat.vhd`);
    assert.equal(
      (await tdUtil("diff", `vhdx:${folder}/child.vhdx`, `vhd:${folder}/flat.vhd`)).code,
      0,
    );
    Deno.removeSync(`${folder}/base.vhdx`);
    const { stdout } = await tdUtil("info", `vhdx:${folder}/child.vhdx`);
    assert.match(stdout, /chain: .*base\.vhdx/);
  }));

/** A chain of one kind: a base with the content, and an empty image on it. */
const CHAINS = [
  { base: "raw:base", child: "qcow:child", other: "qcow:other" },
  { base: "qcow:base", child: "qcow:child", other: "raw:other" },
  { base: "raw:base", child: "vhd:child", other: "vhd:other" },
  { base: "vhd:base", child: "vhd:child", other: "raw:other" },
  { base: "raw:base", child: "qcow2:child", other: "qcow2:other" },
  { base: "qcow2:base", child: "qcow2:child", other: "vhd:other" },
  { base: "vhd:base", child: "qcow2:child", other: "raw:other" },
];

function placed(folder: string, name: string): string {
  return name.replace(":", `:${folder}/`);
}

/** Writes to a disk through another image, which is converted back. */
async function change(
  folder: string,
  image: string,
  bytes: Uint8Array<ArrayBuffer>,
): Promise<void> {
  // Zeros are holes, so that the image is told to have zeros there.
  const file = Deno.openSync(`${folder}/change.raw`, { create: true, write: true, truncate: true });
  file.truncateSync(bytes.length);
  for (let at = 0; at < bytes.length; at += 4096) {
    const part = bytes.subarray(at, at + 4096);
    if (part.every((byte) => byte === 0)) continue;
    file.seekSync(at, Deno.SeekMode.Start);
    file.writeSync(part);
  }
  file.close();
  const engine = createEngine(() => {});
  const source = await OpenImage.open(engine, `aio:${folder}/change.raw`, { readOnly: true });
  await copyInto(engine, { source, target: image, isNew: false, options: {} });
  await source.close(engine);
  engine.close();
}

for (const { base, child, other } of CHAINS) {
  const between = `${child} on ${base}`;

  Deno.test(`td-util: snapshot, commit, ${between}`, () =>
    withTempDir(async (folder) => {
      const [below, above] = [placed(folder, base), placed(folder, child)];
      const content = new Uint8Array(4 * MIB).fill(3);
      Deno.writeFileSync(`${folder}/src.raw`, content);
      await ok("convert", `raw:${folder}/src.raw`, below);
      await ok("snapshot", below, above);
      assertBytes((await tdUtil("stream", above)).stdoutBytes, content);
      const changed = content.slice();
      changed.fill(0, 1 * MIB, 2 * MIB + 512);
      changed.fill(8, 3 * MIB + 512, 3 * MIB + 5000);
      await change(folder, above.replace("raw:", "aio:"), changed);
      assertBytes((await tdUtil("stream", above)).stdoutBytes, changed);
      assertBytes((await tdUtil("stream", below)).stdoutBytes, content);
      assert.match(await ok("commit", above), /^Wrote \d+ sectors/);
      assertBytes((await tdUtil("stream", below)).stdoutBytes, changed);
      assertBytes((await tdUtil("stream", above)).stdoutBytes, changed);
      assert.match(await ok("check", "--chain", above), /is valid/);
    }));

  Deno.test(`td-util: rebase keeps what is read, ${between}, then on ${other}`, () =>
    withTempDir(async (folder) => {
      const [below, above, next] = [base, child, other].map((name) => placed(folder, name));
      const content = someContent().slice(0, 8 * MIB);
      Deno.writeFileSync(`${folder}/src.raw`, content);
      await ok("convert", `raw:${folder}/src.raw`, below);
      const unlike = content.slice().fill(9, 3 * MIB, 6 * MIB).fill(0, 0, 4096);
      Deno.writeFileSync(`${folder}/unlike.raw`, unlike);
      await ok("convert", `raw:${folder}/unlike.raw`, next);
      await ok("snapshot", below, above);
      await ok("rebase", above, next);
      assertBytes((await tdUtil("stream", above)).stdoutBytes, content);
      const { layers } = JSON.parse(await ok("info", "--json", above));
      assert.ok(layers[1].name.endsWith("/other"), layers[1].name);
      await ok("check", above);
      await ok("rebase", "-u", above, below);
      await ok("check", above);
      assertBytes((await tdUtil("stream", above)).stdoutBytes, content);
      // A chain would lead back to itself.
      for (const options of [[], ["-u"]]) {
        await fails(/it is that image, or has it below it/, "rebase", ...options, above, above);
        const over = `${above.split(":")[0]}:${folder}/over`;
        if (options.length === 0) await ok("snapshot", above, over);
        await fails(/it is that image, or has it below it/, "rebase", ...options, above, over);
      }
      assertBytes((await tdUtil("stream", above)).stdoutBytes, content);
      await fails(/what is below it can be of/, "rebase", above, `vhdx:${folder}/src.raw`);
    }));
}

/** A child that was made smaller, or larger, than what is below it; its own data is at both ends. */
async function oddChild(folder: string, type: string, childMib: number): Promise<Uint8Array> {
  const below = new Uint8Array(8 * MIB).fill(5);
  Deno.writeFileSync(`${folder}/below.raw`, below);
  const [base, child] = [`${type}:${folder}/base`, `${type}:${folder}/child`];
  await ok("convert", `raw:${folder}/below.raw`, base);
  await ok("snapshot", base, child);
  await ok("resize", "--shrink", child, `${childMib}Mi`);
  const content = new Uint8Array(childMib * MIB).fill(5, 0, 8 * MIB);
  content.fill(6, 0, MIB).fill(7, content.length - 512);
  await change(folder, child, content);
  assertBytes((await tdUtil("stream", child)).stdoutBytes, content);
  return content;
}

for (const type of ["vhd", "qcow2"]) {
  Deno.test(`td-util: what is added to a child reads as zeros, ${type}`, () =>
    withTempDir(async (folder) => {
      const content = await oddChild(folder, type, 4);
      const child = `${type}:${folder}/child`;
      if (type === "qcow2") return await fails(/would be seen there/, "resize", child, "8Mi");
      await ok("resize", child, "12Mi");
      const grown = new Uint8Array(12 * MIB);
      grown.set(content);
      assertBytes((await tdUtil("stream", child)).stdoutBytes, grown);
      await ok("check", child);
      // The zeros go into what is below.
      await ok("commit", child);
      const base = (await tdUtil("stream", `${type}:${folder}/base`)).stdoutBytes;
      assertBytes(base, grown.subarray(0, 8 * MIB));
      assertBytes((await tdUtil("stream", child)).stdoutBytes, grown);
    }));

  Deno.test(`td-util: a child is shorter than what is below it, ${type}`, () =>
    withTempDir(async (folder) => {
      const content = await oddChild(folder, type, 4);
      const [base, child] = [`${type}:${folder}/base`, `${type}:${folder}/child`];
      Deno.writeFileSync(`${folder}/other.raw`, new Uint8Array(8 * MIB).fill(9));
      await ok("convert", `raw:${folder}/other.raw`, `${type}:${folder}/other`);
      await ok("rebase", child, `${type}:${folder}/other`);
      assertBytes((await tdUtil("stream", child)).stdoutBytes, content);
      await ok("commit", child);
      assertBytes((await tdUtil("stream", child)).stdoutBytes, content);
      const merged = new Uint8Array(8 * MIB).fill(9);
      merged.set(content);
      assertBytes((await tdUtil("stream", `${type}:${folder}/other`)).stdoutBytes, merged);
      assertBytes((await tdUtil("stream", base)).stdoutBytes, new Uint8Array(8 * MIB).fill(5));
    }));

  Deno.test(`td-util: a child is longer than what is below it, ${type}`, () =>
    withTempDir(async (folder) => {
      const content = await oddChild(folder, type, 12);
      const child = `${type}:${folder}/child`;
      // A longer image has something where the one below has nothing.
      Deno.writeFileSync(`${folder}/other.raw`, new Uint8Array(14 * MIB).fill(9));
      await ok("convert", `raw:${folder}/other.raw`, `${type}:${folder}/other`);
      await fails(/ENOSPC|ERANGE|resize it first/, "commit", child);
      await ok("rebase", child, `${type}:${folder}/other`);
      assertBytes((await tdUtil("stream", child)).stdoutBytes, content);
      await ok("commit", child);
      const merged = new Uint8Array(14 * MIB).fill(9);
      merged.set(content);
      assertBytes((await tdUtil("stream", `${type}:${folder}/other`)).stdoutBytes, merged);
    }));
}

Deno.test("td-util: resize keeps the content, and shrinks only when it is told to", () =>
  withTempDir(async (folder) => {
    const content = new Uint8Array(4 * MIB).fill(1, 0, 3 * MIB);
    Deno.writeFileSync(`${folder}/disk.raw`, content);
    const types = ["raw", "vhd", "qcow2"];
    const images = types.map((type) => `${type}:${folder}/disk.${type}`);
    for (const image of images.slice(1)) await ok("convert", images[0], image);
    for (const image of images) {
      await ok("resize", image, "8Mi");
      const grown = (await tdUtil("stream", image)).stdoutBytes;
      assert.equal(grown.length, 8 * MIB);
      assertBytes(grown.subarray(0, 4 * MIB), content);
      await fails(/it would lose data/, "resize", image, "4Mi");
      await ok("resize", "--shrink", image, "4Mi");
      assertBytes((await tdUtil("stream", image)).stdoutBytes, content);
    }
    await ok("create", `qcow:${folder}/disk.qcow`, "4Mi");
    await fails(/convert it/, "resize", `qcow:${folder}/disk.qcow`, "8Mi");
  }));

for (const type of ["vhd", "qcow2", "raw"]) {
  Deno.test(`td-util: compact gives the room of zeros back, ${type}`, () =>
    withTempDir(async (folder) => {
      const content = new Uint8Array(20 * MIB).fill(1);
      Deno.writeFileSync(`${folder}/src`, content);
      const image = `${type}:${folder}/disk`;
      await ok("convert", `raw:${folder}/src`, image);
      content.fill(0, 0, 13 * MIB);
      if (type === "raw") Deno.writeFileSync(`${folder}/disk`, content);
      else await change(folder, image, content);
      const won = JSON.parse(await ok("compact", "--json", image));
      // A raw image keeps its length.
      const [before, after] = type === "raw"
        ? [won.roomBeforeBytes, won.roomAfterBytes]
        : [won.beforeBytes, won.afterBytes];
      assert.ok(before - after >= 12 * MIB, JSON.stringify(won));
      assertBytes((await tdUtil("stream", image)).stdoutBytes, content);
      if (type !== "raw") assert.match(await ok("check", image), /is valid/);
      assert.match(await ok("compact", image), /^The file has .*, 0 B less .* takes .*, 0 B less/);
      assert.equal(await ok("compact", "--quiet", image), "");
    }));
}

Deno.test("td-util: check finds faults, and repairs what can be repaired", () =>
  withTempDir(async (folder) => {
    await ok("create", `vhd:${folder}/disk.vhd`, "4Mi");
    const bytes = Deno.readFileSync(`${folder}/disk.vhd`);
    bytes[bytes.length - 400] ^= 1;
    Deno.writeFileSync(`${folder}/disk.vhd`, bytes);
    const bad = await tdUtil("check", `vhd:${folder}/disk.vhd`);
    assert.deepEqual([bad.code, /is damaged/.test(bad.stdout)], [22, true]);
    assert.match(await ok("check", "--repair", `vhd:${folder}/disk.vhd`), /^repaired: .*is valid/s);
    await ok("create", `qcow:${folder}/disk.qcow`, "4Mi");
    const qcow = Deno.readFileSync(`${folder}/disk.qcow`);
    qcow[55] = 16;
    Deno.writeFileSync(`${folder}/disk.qcow`, qcow);
    assert.equal((await tdUtil("check", "--json", `qcow:${folder}/disk.qcow`)).code, 22);
    await fails(/nothing can be mended/, "check", "--repair", `qcow:${folder}/disk.qcow`);
    await fails(/no room from the start/, "create", "--fixed", `qcow2:${folder}/a`, "4Mi");
    await fails(
      /no room from the start/,
      "convert",
      "--fixed",
      `vhd:${folder}/disk.vhd`,
      `raw:${folder}/a`,
    );
    await fails(/nothing to check/, "check", `raw:${folder}/disk.vhd`);
  }));

Deno.test("td-util: nothing is overwritten, and no part of a copy is left", () =>
  withImages(async (folder, content) => {
    const source = `raw:${folder}/src.raw`;
    Deno.writeTextFileSync(`${folder}/there`, "mine");
    await fails(/choose another name/, "convert", source, `qcow:${folder}/there`);
    await fails(/choose another name/, "create", `qcow:${folder}/there`, "1Mi");
    assert.equal(Deno.readTextFileSync(`${folder}/there`), "mine");
    await fails(/only read/, "convert", source, `vhdx:${folder}/new.vhdx`);
    await fails(/Cannot make an image named log:aio:/, "convert", source, `log:aio:${folder}/new`);
    await fails(/such as 10Gi/, "create", `qcow:${folder}/new`, "1000");
    Deno.writeFileSync(`${folder}/bad.qcow`, content);
    await fails(/header\.magic/, "convert", `qcow:${folder}/bad.qcow`, `raw:${folder}/new`);
    assert.deepEqual([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), [
      "bad.qcow",
      "src.raw",
      "there",
    ]);
  }));

Deno.test("td-util: units of sizes are powers of 1024", () =>
  withImages(async (folder) => {
    const sizes: [string, number][] = [
      ["3Ti", 3 * 2 ** 40],
      ["1t", 2 ** 40],
      ["0x400000", 1 << 22],
      ["10G", 10 * 2 ** 30],
    ];
    for (const [size, bytes] of sizes) {
      await ok("create", `qcow2:${folder}/${size}`, size);
      const { layers } = JSON.parse(await ok("info", "--json", `qcow2:${folder}/${size}`));
      assert.equal(layers[0].sizeBytes, bytes, size);
    }
  }));

Deno.test("td-util: every command has help with its options and a worked example", async () => {
  const commands = await Promise.all(
    [...TD_UTIL.subcommands.values()].map((load): Promise<Subcommand> => load()),
  );
  for (const command of commands) {
    const help = (await ok(command.name, "--help")).replace(/\s+/g, " ");
    for (const { text } of command.options) assert.ok(help.includes(text), text);
    assert.ok(command.example.includes(`$ td-util ${command.name} `), command.name);
    const { code, stdout } = await tdUtil(command.name);
    assert.deepEqual([code, stdout], [22, `${command.usage}\n`]);
  }
});
