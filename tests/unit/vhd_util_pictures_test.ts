import assert from "node:assert/strict";
import { inflateSync } from "node:zlib";
import fc from "fast-check";
import { openChain } from "../../src/vhd/image/chain.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { chainExtents } from "../../src/vhd/image/extents.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { needs, run, withTempDir } from "../support/tools.ts";
import { goldenImage, putFile, vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SECTOR = 512;

Deno.test("extents of a chain say where each sector is read from", () => {
  const write = fc.record({
    sector: fc.nat({ max: 5900 }),
    lengthSectors: fc.integer({ min: 1, max: 190 }),
  });
  const layers = fc.array(fc.array(write, { maxLength: 4 }), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(layers, fc.boolean(), (writes, raw) => {
      const storage = new SimulatedDisk();
      const shift = raw ? 1 : 0;
      if (raw) putFile(storage, "/raw", new Uint8Array(3 * MIB).fill(1));
      for (const [index, each] of writes.entries()) {
        const path = `/${index}.vhd`;
        if (index > 0) {
          snapshot(path, { storage, parent: `/${index - 1}.vhd`, keepEmptyParent: true });
        } else if (raw) snapshot(path, { storage, parent: "/raw", rawParent: true });
        else createDynamic(path, { storage, sizeBytes: 4 * MIB });
        const image = openVhd(path, { storage, readOnly: false });
        for (const { sector, lengthSectors } of each) {
          const data = new Uint8Array(lengthSectors * SECTOR).fill(1 + shift + index);
          writeRange(image, data, sector * SECTOR);
        }
        finishWriting(image);
        image.close();
      }
      const chain = openChain(`/${writes.length - 1}.vhd`, { storage });
      const content = new Uint8Array(chain.images[0].sizeBytes);
      readRange(chain, content, 0);
      let at = 0;
      for (const { sector, lengthSectors, layer } of chainExtents(chain)) {
        assert.equal(sector, at);
        at += lengthSectors;
        const value = layer < 0 ? 0 : writes.length + shift - layer;
        for (const place of [sector, at - 1, sector + (lengthSectors >> 1)]) {
          assert.equal(content[place * SECTOR], value, `sector ${place}, layer ${layer}`);
        }
      }
      assert.equal(at * SECTOR, content.length);
    }),
    { numRuns: 40 },
  );
});

async function withGolden(body: (folder: string) => Promise<void>): Promise<void> {
  await withTempDir(async (folder) => {
    for (const name of ["base.vhd", "child.vhd"] as const) {
      Deno.writeFileSync(`${folder}/${name}`, await goldenImage(name));
    }
    await body(Deno.realPathSync(folder));
  });
}

Deno.test("map draws the disk by layers, or lists its extents", () =>
  withGolden(async (folder) => {
    const { stdout } = await vhdUtil("map", "-n", `${folder}/child.vhd`);
    const lines = stdout.split("\n");
    assert.equal(lines[0], `Aa${".".repeat(46)}${"B".repeat(16)}`);
    assert.equal(lines[1], `${"A".repeat(32)}${"B".repeat(32)}`);
    assert.equal(lines[9], `${".".repeat(34)}b${".".repeat(29)}`);
    assert.deepEqual(lines.slice(16), [
      "  A  child.vhd  3.1 MiB",
      "  B  base.vhd   3.0 MiB",
      "each character is 64 KiB of 64 MiB; a capital letter means all data",
      "",
    ]);
    const alone = await vhdUtil("map", "-1", "-n", `${folder}/child.vhd`);
    assert.equal(alone.stdout.split("\n")[0], `aa${".".repeat(62)}`);
    const json = JSON.parse((await vhdUtil("map", "--json", "-n", `${folder}/child.vhd`)).stdout);
    assert.equal(json.length, 11);
    assert.deepEqual(json[1], {
      start: 32768,
      length: 65536,
      data: true,
      depth: 0,
      file: `${folder}/child.vhd`,
    });
    assert.deepEqual(json[7], {
      start: 40_000_000,
      length: 4096,
      data: true,
      depth: 1,
      file: `${folder}/base.vhd`,
    });
  }));

Deno.test("map writes SVG, HTML and PNG", () =>
  withGolden(async (folder) => {
    const image = `${folder}/child.vhd`;
    assert.equal((await vhdUtil("map", "-n", image, `--output=${folder}/map.svg`)).code, 0);
    const svg = Deno.readTextFileSync(`${folder}/map.svg`);
    assert.match(svg, /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" class="picture"/);
    // The fourth row, from 3 to 4 MiB: the base holds all of it.
    assert.match(svg, /<rect class="p1" x="84" y="81" width="896" height="7" [^>]*opacity="1"/);
    assert.match(svg, /<title>base\.vhd: 3\.0 MiB, 4\.7 %<\/title>/);
    assert.match(svg, /<desc [^>]*>64 MiB; a square is 8 KiB, .*57\.9 MiB hold no data\.<\/desc>/);
    const printed = await vhdUtil("map", "-n", image, "--svg");
    assert.equal(printed.stdout, svg);
    const alone = await vhdUtil("map", "-1", "-n", image, "--svg");
    assert.doesNotMatch(alone.stdout, /base\.vhd/);
    assert.equal((await vhdUtil("map", "-n", image, "-o", `${folder}/map.html`)).stdout, "");
    const page = Deno.readTextFileSync(`${folder}/map.html`);
    assert.match(page, /^<!doctype html>/);
    assert.equal((await vhdUtil("map", "-n", image, "--html")).stdout, page);
    assert.equal((await vhdUtil("map", "-n", image, "--svg", "--html")).code, 22);
    assert.equal((await vhdUtil("map", "-n", image, "--json", "-o", "x.svg")).code, 22);
    assert.equal((await vhdUtil("map", "-n", image, "--output", `${folder}/map.png`)).code, 0);
    const png = Deno.readFileSync(`${folder}/map.png`);
    const view = new DataView(png.buffer);
    assert.equal(view.getBigUint64(0), 0x89504e470d0a1a0an);
    const [width, height] = [view.getUint32(16), view.getUint32(20)];
    assert.deepEqual([width, height], [1024, 512]);
    const pixels = inflateSync(png.subarray(41, 41 + view.getUint32(33)));
    assert.equal(pixels.length, (1 + width * 3) * height);
    const at = (x: number, y: number): number[] => [
      ...pixels.subarray(y * (1 + width * 3) + 1 + x * 3).subarray(0, 3),
    ];
    assert.deepEqual(at(0, 0), [0xff, 0x7f, 0x0e]);
    assert.deepEqual(at(40, 0), [0x1f, 0x77, 0xb4]);
    assert.deepEqual(at(1023, 511), [0xee, 0xee, 0xee]);
    const wrong = await vhdUtil("map", "-n", image, "--output", `${folder}/map.gif`);
    assert.equal(wrong.code, 22);
    const nowhere = await vhdUtil("map", "-n", image, "--output", `${folder}/no/map.svg`);
    assert.equal(nowhere.code, 2);
  }));

Deno.test("tree draws chains, parents that are missing, and what is no image", () =>
  withGolden(async (folder) => {
    Deno.mkdirSync(`${folder}/sub`);
    const at = (name: string): string => `${folder}/sub/${name}`;
    createDynamic(at("gone.vhd"), { sizeBytes: 4 * MIB });
    snapshot(at("lost.vhd"), { parent: at("gone.vhd"), keepEmptyParent: true });
    snapshot(at("top.vhd"), { parent: `${folder}/child.vhd`, keepEmptyParent: true });
    Deno.writeFileSync(`${folder}/sub/disk`, new Uint8Array(2 * MIB));
    snapshot(at("onraw.vhd"), { parent: at("disk"), rawParent: true });
    Deno.removeSync(at("gone.vhd"));
    Deno.writeTextFileSync(at("bad.vhd"), "");
    const { stdout, code } = await vhdUtil("tree", `${folder}/sub`, "--parent-root", folder);
    assert.equal(code, 0);
    const names = stdout.split("\n").map((line) => line.replace(/ {2,}\S.*$/, ""));
    assert.deepEqual(
      names,
      [
        `${folder}/sub`,
        `├─ ${folder}/base.vhd`,
        `│  └─ ${folder}/child.vhd`,
        "│     └─ top.vhd",
        "├─ bad.vhd",
        "├─ disk",
        "│  └─ onraw.vhd",
        "└─ gone.vhd",
        "   └─ lost.vhd",
        "",
      ].map((line) => line.replace(/ {2,}\S.*$/, "")),
    );
    assert.match(stdout, /gone\.vhd +missing\n/);
    assert.match(stdout, /base\.vhd +64 MiB +10\.0 MiB +15% allocated\n/);
    assert.match(stdout, /disk +2 MiB +2 MiB +100% allocated raw\n/);
    assert.match(stdout, /bad\.vhd +Cannot use /);
    const [base] = JSON.parse(
      (await vhdUtil("tree", "--json", `${folder}/sub`, "--parent-root", folder)).stdout,
    );
    assert.equal(base.vhd, `${folder}/base.vhd`);
    assert.equal(base.allocated, 10 * MIB);
    assert.equal(base.children[0].children[0].vhd, at("top.vhd"));
  }));

Deno.test("a picture replaces a picture, and no other file", () =>
  withGolden(async (folder) => {
    const map = (...args: string[]) => vhdUtil("map", "-n", `${folder}/child.vhd`, ...args);
    const before = Deno.readFileSync(`${folder}/base.vhd`);
    for (const target of ["base.vhd", "child.vhd"]) {
      const { code, stdout, stderr } = await map("--svg", "-o", `${folder}/${target}`);
      assert.equal(code, 17);
      assert.equal(stdout, "");
      assert.match(stderr, /base\.vhd|child\.vhd/);
      assert.match(stderr, /the file exists and is no picture; choose another name or remove it/);
    }
    assert.deepEqual(Deno.readFileSync(`${folder}/base.vhd`), before);
    Deno.writeFileSync(`${folder}/raw.svg`, new Uint8Array(4096));
    assert.equal((await map("-o", `${folder}/raw.svg`)).code, 17);
    Deno.mkdirSync(`${folder}/folder.svg`);
    assert.equal((await map("-o", `${folder}/folder.svg`)).code, 22);
    const output = `${folder}/map.svg`;
    Deno.symlinkSync(`${folder}/real.svg`, output);
    Deno.writeTextFileSync(`${folder}/real.svg`, "");
    assert.equal((await map("-o", output)).code, 0);
    assert.equal((await map("--html", "-o", output)).code, 0);
    assert.ok(Deno.lstatSync(output).isSymlink);
    assert.match(Deno.readTextFileSync(`${folder}/real.svg`), /^<!doctype html>/);
    const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    assert.deepEqual(names, [
      "base.vhd",
      "child.vhd",
      "folder.svg",
      "map.svg",
      "raw.svg",
      "real.svg",
    ]);
  }));

Deno.test("a picture that cannot be written whole leaves nothing", async () => {
  const { ignore } = needs("bash");
  if (ignore) return;
  await withGolden(async (folder) => {
    // The largest file that this process may write, in blocks of 1024 bytes.
    const main = new URL("../../src/main.ts", import.meta.url).pathname;
    const args = ["run", "-A", "-q", main, "vhd-util", "map", "-n", `${folder}/child.vhd`];
    const command = `trap '' XFSZ; ulimit -f 4; exec "$@"`;
    const { code, stderr } = await run("bash", [
      ...["-c", command, "-", Deno.execPath(), ...args, "-o", `${folder}/map.html`],
    ], { env: { DENO_NO_UPDATE_CHECK: "1" } });
    assert.equal(code, 27, stderr);
    assert.match(stderr, /Cannot write .*map\.html: File too large \(EFBIG\)/);
    const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
    assert.deepEqual(names, ["base.vhd", "child.vhd"]);
  });
});

Deno.test("tree draws as SVG and HTML", () =>
  withGolden(async (folder) => {
    const hostile = `${folder}/<b>&"\u202e.vhd`;
    snapshot(hostile, { parent: `${folder}/child.vhd`, keepEmptyParent: true });
    const svg = (await vhdUtil("tree", "--svg", folder)).stdout;
    const names = [...svg.matchAll(/class="name"[^>]*>([^<]*)</g)].map(([, name]) => name);
    assert.deepEqual(names, ["base.vhd", "child.vhd", "&lt;b&gt;&amp;&quot;\\u202e.vhd"]);
    assert.match(svg, />dynamic · 64 MiB disk · 10\.0 MiB file</);
    assert.match(svg, />holds 10 MiB, 15\.6 %</);
    const html = (await vhdUtil("tree", "--html", folder)).stdout;
    assert.match(html, /3 images/);
    assert.doesNotMatch(html, /<b>/);
    assert.equal((await vhdUtil("tree", "-o", `${folder}/tree.html`, folder)).code, 0);
    assert.equal(Deno.readTextFileSync(`${folder}/tree.html`), html);
  }));
