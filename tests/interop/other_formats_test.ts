/**
 * QCOW of version 1 and VHDX beside QEMU and libvhdi: what they made is read here, and what is written
 * here is read by them.
 */
import assert from "node:assert/strict";
import { osStorage } from "../../src/files/storage.ts";
import { Random } from "../../src/testing/random.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { needsServed, waitUntil, withTapdisks } from "../support/served.ts";
import { binaryPath, findTool, needs, run, runOk, withTempDir } from "../support/tools.ts";
import { MadeVhdx } from "../support/vhdx.ts";

const MIB = 1 << 20;
const SIZE = 24 * MIB + 512;
const tool = needs("dist/td-util", "qemu-img", "qemu-io", "qemu-nbd");
const served = needsServed("qemu-img", "qemu-io");
const python = needs("/usr/lib/python3/dist-packages/pyvhdi.cpython-311-x86_64-linux-gnu.so");

function tdUtil(...args: string[]): Promise<string> {
  return runOk(binaryPath("td-util"), args);
}

/** A sparse raw file; each run of bytes differs from the others. */
function makeRaw(path: string, seed: number): void {
  const random = new Random(seed);
  const bytes = new Uint8Array(SIZE);
  for (let i = 0; i < 60; i++) {
    const at = random.below(SIZE - 70_000);
    bytes.fill(1 + random.below(255), at, at + 1 + random.below(70_000));
  }
  Deno.writeFileSync(path, bytes);
}

function same(a: string, b: string): void {
  assertBytes(Deno.readFileSync(a), Deno.readFileSync(b));
}

function test(name: string, fn: (folder: string) => Promise<void>): void {
  const { ignore, suffix } = tool;
  Deno.test({ name: `${name}${suffix}`, ignore, fn: () => withTempDir(fn) });
}

const MADE_BY_QEMU = [
  ["qcow", "qcow", []],
  ["qcow", "qcow", ["-c"]],
  ["vhdx", "vhdx", []],
  ["vhdx", "vhdx", ["-o", "subformat=fixed"]],
  ["vhdx", "vhdx", ["-o", "block_size=1M,block_state_zero=off"]],
  ["vhdx", "vhdx", ["-o", "block_size=32M,log_size=2M"]],
  ["qcow2", "qcow2", ["-c"]],
] as const;

for (const [type, format, options] of MADE_BY_QEMU) {
  test(`QEMU's ${format} ${options.join(" ")} is read as QEMU reads it`, async (folder) => {
    makeRaw(`${folder}/a.raw`, 3);
    // QEMU compresses only whole clusters of a QCOW.
    if (type === "qcow") Deno.truncateSync(`${folder}/a.raw`, 24 * MIB);
    const made = ["convert", "-f", "raw", "-O", format, ...options, `${folder}/a.raw`];
    // qemu-img 7.2 ends with status 1 after it has written a compressed QCOW.
    await run("qemu-img", [...made, `${folder}/a`]);
    const compared = ["compare", "-f", "raw", "-F", format, `${folder}/a.raw`, `${folder}/a`];
    await runOk("qemu-img", compared);

    await tdUtil("convert", `${type}:${folder}/a`, `raw:${folder}/b.raw`);
    same(`${folder}/a.raw`, `${folder}/b.raw`);
    await tdUtil("check", `${type}:${folder}/a`);
  });
}

for (const [type, format] of [["qcow", "qcow"], ["vhd", "vpc"], ["qcow2", "qcow2"]]) {
  test(`QEMU reads our ${type}, and writes to it`, async (folder) => {
    makeRaw(`${folder}/a.raw`, 4);
    await tdUtil("convert", `raw:${folder}/a.raw`, `${type}:${folder}/a`);
    await runOk("qemu-img", [
      "compare",
      "-f",
      "raw",
      "-F",
      format,
      `${folder}/a.raw`,
      `${folder}/a`,
    ]);
    for (const file of [["raw", `${folder}/a.raw`], [format, `${folder}/a`]]) {
      await runOk("qemu-io", [
        "-f",
        file[0],
        "-c",
        "write -P 7 1M 3M",
        "-c",
        "write -P 8 20M 512",
        file[1],
      ]);
    }
    await tdUtil("convert", `${type}:${folder}/a`, `raw:${folder}/b.raw`);
    same(`${folder}/a.raw`, `${folder}/b.raw`);
  });
}

test("QEMU follows the names of backing files that td-util writes", async (folder) => {
  makeRaw(`${folder}/a.raw`, 5);
  for (const [type, format] of [["qcow", "qcow"], ["qcow2", "qcow2"]]) {
    await tdUtil("snapshot", `raw:${folder}/a.raw`, `${type}:${folder}/${type}.1`);
    await tdUtil("snapshot", `${type}:${folder}/${type}.1`, `${type}:${folder}/${type}.2`);
    const top = `${folder}/${type}.2`;
    await runOk("qemu-img", ["compare", "-f", "raw", "-F", format, `${folder}/a.raw`, top]);
    await runOk("qemu-io", ["-f", format, "-c", "write -P 9 5M 70000", top]);
    await runOk("qemu-img", ["convert", "-f", format, "-O", "raw", top, `${folder}/${type}.raw`]);
    await tdUtil("diff", `${type}:${top}`, `raw:${folder}/${type}.raw`);
  }
});

test("a conversion writes to an export of an NBD server, and reads from it", async (folder) => {
  makeRaw(`${folder}/a.raw`, 9);
  await tdUtil("convert", `raw:${folder}/a.raw`, `qcow:${folder}/a.qcow`);
  Deno.writeFileSync(`${folder}/export.raw`, new Uint8Array(SIZE).fill(0xee));
  const socket = `${folder}/socket`;
  const server = new Deno.Command(findTool("qemu-nbd") ?? "", {
    args: ["-f", "raw", "-t", "-k", socket, `${folder}/export.raw`],
  }).spawn();
  try {
    await waitUntil(() => osStorage.exists(socket), "the server listens");
    await tdUtil("convert", `qcow:${folder}/a.qcow`, `nbd:unix:${socket}`);
    await tdUtil("convert", `nbd:unix:${socket}`, `vhd:${folder}/b.vhd`);
  } finally {
    server.kill();
    await server.status;
  }
  same(`${folder}/a.raw`, `${folder}/export.raw`);
  await tdUtil("diff", `raw:${folder}/a.raw`, `vhd:${folder}/b.vhd`);
});

test("a stream leaves holes in a file, and none in one that is appended to", async (folder) => {
  makeRaw(`${folder}/a.raw`, 6);
  await tdUtil("convert", `raw:${folder}/a.raw`, `qcow:${folder}/a.qcow`);
  const script = `"$1" stream "qcow:$2/a.qcow" > "$2/b.raw" && printf x > "$2/c.raw" && ` +
    `"$1" stream "qcow:$2/a.qcow" >> "$2/c.raw" && ("$1" stream "qcow:$2/a.qcow"; printf y) > "$2/d.raw"`;
  await runOk("sh", ["-c", script, "sh", binaryPath("td-util"), folder]);
  same(`${folder}/a.raw`, `${folder}/b.raw`);
  const content = Deno.readFileSync(`${folder}/a.raw`);
  assert.deepEqual(Deno.readFileSync(`${folder}/c.raw`).subarray(1), content);
  const followed = Deno.readFileSync(`${folder}/d.raw`);
  assert.deepEqual([followed.length, followed.at(-1)], [SIZE + 1, 121]);
  assert.ok((Deno.statSync(`${folder}/b.raw`).blocks ?? 0) * 512 < SIZE / 2);
});

for (
  const [signal, options, image] of [
    ["TERM", [], "vhd:new"],
    ["INT", [], "qcow2:new"],
    ["INT", ["--compress"], "qcow2:new"],
    ["HUP", ["--keep-zeros"], "raw:new"],
  ] as const
) {
  const what = ["convert", ...options, image].join(" ");
  test(`SIG${signal} stops ${what}, which leaves nothing`, async (folder) => {
    const raw = `${folder}/big.raw`;
    await runOk("sh", ["-c", `head -c 300000256 /dev/urandom > "$1"`, "sh", raw]);
    const [type] = image.split(":");
    const program = [binaryPath("td-util"), "convert", ...options, `raw:${raw}`];
    await run("timeout", ["-s", signal, "0.5", ...program, `${type}:${folder}/new`]);
    const left = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) =>
      name !== "big.raw"
    );
    // On a quick machine it may end before the signal.
    assert.deepEqual(left, left.includes("new") ? ["new"] : []);
    if (left.includes("new")) await tdUtil("diff", `raw:${raw}`, `${type}:${folder}/new`);
  });
}

for (const [option, type] of [["--compress", "zlib"], ["--compress=zstd", "zstd"]]) {
  test(`QEMU reads what convert ${option} writes, as qemu-img convert -c does`, async (folder) => {
    makeRaw(`${folder}/a.raw`, 5);
    const [raw, ours, theirs] = ["a.raw", "ours", "theirs"].map((name) => `${folder}/${name}`);
    await tdUtil("convert", option, `raw:${raw}`, `qcow2:${ours}`);
    await runOk("qemu-img", ["check", "-f", "qcow2", ours]);
    await runOk("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", raw, ours]);
    const made = ["-O", "qcow2", "-c", "-o", `compression_type=${type}`];
    await runOk("qemu-img", ["convert", "-f", "raw", ...made, raw, theirs]);
    await tdUtil("diff", `qcow2:${ours}`, `qcow2:${theirs}`);
    const sizes = [ours, theirs].map((path) => Deno.statSync(path).size);
    assert.ok(sizes[0] < 1.3 * sizes[1], `${sizes[0]} bytes, and ${sizes[1]} by QEMU`);
    // Both write to what was compressed.
    await runOk("qemu-io", ["-f", "qcow2", "-c", "write -P 7 1M 300k", ours]);
    await runOk("qemu-img", ["check", "-f", "qcow2", ours]);
  });
}

test("QEMU sees a VHD for Azure as fixed, with whole MiB and a footer at its end", async (folder) => {
  makeRaw(`${folder}/a.raw`, 6);
  await tdUtil("convert", "--azure", `raw:${folder}/a.raw`, `vhd:${folder}/a.vhd`);
  const told = await runOk("qemu-img", ["info", "-f", "vpc", "--output=json", `${folder}/a.vhd`]);
  assert.equal(JSON.parse(told)["virtual-size"], 25 * MIB);
  const bytes = Deno.readFileSync(`${folder}/a.vhd`);
  assert.equal(bytes.length, 25 * MIB + 512);
  const footer = new DataView(bytes.buffer, 25 * MIB);
  // Both sizes, the geometry of the specification's appendix, and the type.
  assert.equal(footer.getBigUint64(40), BigInt(25 * MIB));
  assert.equal(footer.getBigUint64(48), BigInt(25 * MIB));
  assert.deepEqual([footer.getUint16(56), footer.getUint8(58), footer.getUint8(59)], [752, 4, 17]);
  assert.equal(footer.getUint32(60), 2);
});

Deno.test({
  name: `libvhdi reads our differencing VHDXs as td-util does${tool.suffix}${python.suffix}`,
  ignore: tool.ignore || python.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      for (const sectorBytes of [512, 4096]) {
        const random = new Random(sectorBytes);
        const guids = [1, 2].map((n) => `aaaaaaaa-0000-4000-8000-00000000000${n}`);
        const layers = guids.map((_, layer) =>
          new Map(
            Array.from({ length: 500 }, () => random.below(48 * 2048 * 512 / sectorBytes)).flatMap(
              (unit) =>
                Array.from(
                  { length: sectorBytes / 512 },
                  (_, i) =>
                    [unit * sectorBytes / 512 + i, new Uint8Array(512).fill(1 + layer)] as const,
                ),
            ),
          )
        );
        const shape = { sizeBytes: 48 * MIB, sectorBytes };
        const parent = { path: "base.vhdx", dataGuid: guids[0] };
        const base = new MadeVhdx({ ...shape, dataGuid: guids[0], sectors: layers[0] });
        const child = new MadeVhdx({ ...shape, dataGuid: guids[1], parent, sectors: layers[1] });
        Deno.writeFileSync(`${folder}/base.vhdx`, base.bytes);
        Deno.writeFileSync(`${folder}/child.vhdx`, child.bytes);
        const script = "import pyvhdi, sys\n" +
          "p = pyvhdi.file(); p.open(sys.argv[1] + '/base.vhdx')\n" +
          "c = pyvhdi.file(); c.open(sys.argv[1] + '/child.vhdx'); c.set_parent(p)\n" +
          "open(sys.argv[1] + '/theirs', 'wb').write(c.read_buffer_at_offset(c.get_media_size(), 0))\n";
        await runOk("/usr/bin/python3", ["-c", script, folder]);
        await runOk("sh", [
          "-c",
          `"$1" stream "vhdx:$2/child.vhdx" > "$2/ours"`,
          "sh",
          binaryPath("td-util"),
          folder,
        ]);
        same(`${folder}/ours`, `${folder}/theirs`);
      }
    }),
});

Deno.test({
  name: `a QCOW that a tapdisk serves is written like a raw file that QEMU writes${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      makeRaw(`${folder}/base.raw`, 7);
      Deno.copyFileSync(`${folder}/base.raw`, `${folder}/model.raw`);
      await tdUtil("snapshot", `raw:${folder}/base.raw`, `qcow:${folder}/top.qcow`);
      const disk = await tapdisks.serve(`qcow:${folder}/top.qcow`);
      const random = new Random(8);
      const writes = Array.from({ length: 60 }, (_, i) => {
        const sectors = 1 + random.below(i % 3 === 0 ? 400 : 20);
        const at = random.below(SIZE / 512 - sectors);
        return ["-c", `write -P ${1 + i} ${at * 512} ${sectors * 512}`];
      }).flat();
      await runOk("qemu-io", ["-f", "raw", ...writes, `nbd+unix:///?socket=${disk.socket}`]);
      await runOk("qemu-io", ["-f", "raw", ...writes, `${folder}/model.raw`]);
      await tapdisks.stop(disk);
      await runOk("qemu-img", [
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow",
        `${folder}/model.raw`,
        `${folder}/top.qcow`,
      ]);
      await tdUtil("check", `qcow:${folder}/top.qcow`);
    }),
});

Deno.test({
  name:
    `td-util does not judge a QCOW2 that is written, nor move what is read of one${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [base, child] = [`qcow2:${folder}/base`, `qcow2:${folder}/child`];
      await tdUtil("create", base, "16Mi");
      await tdUtil("snapshot", base, child);
      const disk = await tapdisks.serve(child);
      // The reference count of the first cluster, as if its block was read too early.
      const bytes = Deno.readFileSync(`${folder}/child`);
      const view = new DataView(bytes.buffer);
      const counts = Number(view.getBigUint64(Number(view.getBigUint64(48))));
      const file = Deno.openSync(`${folder}/child`, { write: true });
      const put = (count: number): void => {
        file.seekSync(counts, Deno.SeekMode.Start);
        file.writeSync(Uint8Array.of(0, count));
      };
      put(0);
      const fails = async (...args: string[]): Promise<string> => {
        const { code, stderr } = await run(binaryPath("td-util"), args);
        assert.equal(code, 16, stderr);
        return stderr;
      };
      assert.match(await fails("check", child), /Cannot check .* while it is written/);
      put(1);
      await tdUtil("check", child);
      assert.match(await fails("commit", child), /Cannot change .*base: tapdisk .* reads it/);
      await tapdisks.stop(disk);
      await tdUtil("commit", child);
      put(0);
      file.close();
      assert.equal((await run(binaryPath("td-util"), ["check", child])).code, 22);
    }),
});

test("a QCOW2 with snapshots keeps the image that they show below it", async (folder) => {
  makeRaw(`${folder}/a.raw`, 3);
  makeRaw(`${folder}/b.raw`, 4);
  const image = `qcow2:${folder}/a`;
  await tdUtil("snapshot", `raw:${folder}/a.raw`, image);
  await runOk("qemu-img", ["snapshot", "-c", "one", `${folder}/a`]);
  const refused = await run(binaryPath("td-util"), ["rebase", image, `raw:${folder}/b.raw`]);
  assert.match(refused.stderr, /its snapshots would read differently/);
  assert.equal(refused.code, 95);
  await runOk("qemu-img", ["convert", "-l", "one", "-O", "raw", `${folder}/a`, `${folder}/c.raw`]);
  Deno.truncateSync(`${folder}/c.raw`, SIZE);
  same(`${folder}/a.raw`, `${folder}/c.raw`);
  await Deno.copyFile(`${folder}/a.raw`, `${folder}/moved.raw`);
  await tdUtil("rebase", "-u", image, `raw:${folder}/moved.raw`);
  await tdUtil("diff", image, `raw:${folder}/a.raw`);
});
