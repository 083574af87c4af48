/** Offline work on QCOW2 images: what is created, checked, mended and resized, judged by QEMU. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2, type CreateQcow2Options } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../src/qcow2/repair.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { snapshotQcow2 } from "../../src/qcow2/snapshot.ts";
import { assertQemuClean, qemuCheck, qemuCreate } from "../support/qcow2.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");
const MIB = 1 << 20;

function test(name: string, fn: (folder: string) => Promise<void>): void {
  Deno.test({ name: `${name}${suffix}`, ignore, fn: () => withTempDir(fn) });
}

function found(path: string): { errors: readonly string[]; leaks: number } {
  const image = openQcow2(path);
  const { errors, leakedClusters } = checkQcow2(image);
  image.close();
  return { errors, leaks: leakedClusters };
}

const MADE: readonly [string, Omit<CreateQcow2Options, "sizeBytes">, string[]][] = [
  ["the defaults", {}, []],
  ["version 2", { version: 2 }, ["compat=0.10"]],
  ["small clusters", { clusterBytes: 512 }, ["cluster_size=512"]],
  ["large clusters", { clusterBytes: 2 * MIB }, ["cluster_size=2M"]],
  ["wide counts", { refcountBits: 64 }, ["refcount_bits=64"]],
  ["narrow counts", { refcountBits: 1 }, ["refcount_bits=1"]],
  ["lazy counts", { lazyRefcounts: true }, ["lazy_refcounts=on"]],
  ["subclusters", { extendedL2: true }, ["extended_l2=on"]],
  ["zstd", { compression: "zstd" }, ["compression_type=zstd"]],
];

for (const [name, options, qemu] of MADE) {
  test(`an image with ${name} is made as qemu-img makes it`, async (folder) => {
    const sizeBytes = 5 * 1024 * MIB + 512;
    createQcow2(`${folder}/own.qcow2`, { sizeBytes, ...options });
    await qemuCreate(`${folder}/qemu.qcow2`, sizeBytes, qemu);
    for (const name of ["own", "qemu"]) {
      await assertQemuClean(`${folder}/${name}.qcow2`);
      assert.deepEqual(found(`${folder}/${name}.qcow2`), { errors: [], leaks: 0 });
    }
    const [own, other] = ["own", "qemu"].map((file) => {
      const image = openQcow2(`${folder}/${file}.qcow2`);
      image.close();
      // QEMU writes fewer names of features, and puts the L1 table elsewhere.
      const { l1TableOffset: _, ...header } = image.header;
      return { ...header, sizeBytes: image.sizeBytes };
    });
    assert.deepEqual(own, other);
    await runOk("qemu-io", [
      "-c",
      "write -P 3 1M 3M",
      "-c",
      "read -P 3 1M 3M",
      `${folder}/own.qcow2`,
    ]);
    await assertQemuClean(`${folder}/own.qcow2`);
  });
}

test("a child names its parent relative to its folder", async (folder) => {
  Deno.mkdirSync(`${folder}/sub`);
  createQcow2(`${folder}/base.qcow2`, { sizeBytes: 8 * MIB, clusterBytes: 4096 });
  await runOk("qemu-io", ["-c", "write -P 3 1M 1M", `${folder}/base.qcow2`]);
  snapshotQcow2(`${folder}/sub/child.qcow2`, {
    parent: { type: "qcow2", path: `${folder}/base.qcow2` },
  });
  const image = openQcow2(`${folder}/sub/child.qcow2`);
  image.close();
  assert.deepEqual(image.backing, { name: "../base.qcow2", format: "qcow2" });
  assert.equal(image.geometry.clusterBytes, 4096);
  await runOk("qemu-io", ["-c", "read -P 3 1M 1M", `${folder}/sub/child.qcow2`]);
});

test("an image with wrong reference counts and flags is mended", async (folder) => {
  const path = `${folder}/a.qcow2`;
  await qemuCreate(path, 64 * MIB, ["cluster_size=4k"]);
  await runOk("qemu-io", ["-c", "write -P 3 0 2M", "-c", "write -P 4 10M 1M", path]);
  await runOk("qemu-img", ["snapshot", "-c", "s", path]);
  await runOk("qemu-io", ["-c", "write -P 5 0 64k", path]);
  const image = openQcow2(path);
  image.close();
  const file = Deno.openSync(path, { read: true, write: true });
  const block = image.refcountTable.getUint32(4, false);
  file.seekSync(block + 100, Deno.SeekMode.Start);
  file.writeSync(Uint8Array.of(0, 0, 0, 7, 0, 0));
  // The table of the first clusters is not shared: its flag is set.
  const table = image.l1.getUint32(4, false);
  file.seekSync(table + 8 * 20, Deno.SeekMode.Start);
  file.writeSync(Uint8Array.of(0x80));
  file.seekSync(72, Deno.SeekMode.Start);
  file.writeSync(Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 1));
  file.close();
  assert.ok(found(path).errors.length > 0);
  assert.ok((await qemuCheck(path)).errors > 0);
  assert.equal(repairQcow2(path).length, 2);
  assert.deepEqual(found(path), { errors: [], leaks: 0 });
  await assertQemuClean(path);
  assert.deepEqual(repairQcow2(path), []);
  await runOk("qemu-io", ["-c", "read -P 5 0 64k", "-c", "read -P 3 64k 1984k", path]);
  await runOk("qemu-io", ["-c", "write -P 6 0 3M", path]);
  await runOk("qemu-img", ["snapshot", "-a", "s", path]);
  await runOk("qemu-io", ["-c", "read -P 3 0 2M", "-c", "read -P 4 10M 1M", path]);
  await assertQemuClean(path);
});

test("an image that a killed QEMU left with lazy counts is mended", async (folder) => {
  const path = `${folder}/a.qcow2`;
  await qemuCreate(path, 64 * MIB, ["lazy_refcounts=on"]);
  // QEMU ends without closing the image.
  const commands = ["-c", "write -P 3 0 4M", "-c", "flush", "-c", "abort"];
  const { code } = await new Deno.Command("qemu-io", { args: [...commands, path] }).output();
  assert.notEqual(code, 0);
  assert.ok(found(path).errors.length > 0);
  repairQcow2(path);
  assert.deepEqual(found(path), { errors: [], leaks: 0 });
  await assertQemuClean(path);
  await runOk("qemu-io", ["-c", "read -P 3 0 4M", path]);
});

const SIZES: readonly [string, string[], number, number][] = [
  ["within its table's cluster", [], 8 * MIB, 5000 * MIB],
  ["with a table of more clusters", ["cluster_size=512"], 8 * MIB, 200 * MIB],
  ["of version 2", ["compat=0.10", "cluster_size=1k"], 8 * MIB, 900 * MIB],
];

for (const [name, options, before, after] of SIZES) {
  test(`an image ${name} is made larger`, async (folder) => {
    const path = `${folder}/a.qcow2`;
    await qemuCreate(path, before, options);
    await runOk("qemu-io", ["-c", "write -P 3 0 8M", path]);
    resizeQcow2(path, { sizeBytes: after });
    await assertQemuClean(path);
    assert.deepEqual(found(path), { errors: [], leaks: 0 });
    const last = `${after - MIB} 1M`;
    await runOk("qemu-io", ["-c", "read -P 3 0 8M", "-c", `read -P 0 8M 1M`, path]);
    await runOk("qemu-io", ["-c", `write -P 4 ${last}`, "-c", `read -P 4 ${last}`, path]);
    await assertQemuClean(path);
    assert.throws(() => resizeQcow2(path, { sizeBytes: before }), /would lose data/);
  });
}

const ODD_END = 2 * MIB - 4096 - 512;

test("a disk that is made larger shows nothing of what lay behind its end", async (folder) => {
  const path = `${folder}/a.qcow2`;
  for (const options of [[], ["extended_l2=on"], ["data_file=data"], ["cluster_size=2M"]]) {
    for (const cut of [ODD_END, MIB]) {
      await runOk("rm", ["-f", path, "data"], { cwd: folder });
      const more = options.length === 0 ? [] : ["-o", options.join(",")];
      const create = ["create", "-q", "-f", "qcow2", ...more, "a.qcow2", String(2 * MIB)];
      await runOk("qemu-img", create, { cwd: folder });
      await runOk("qemu-io", ["-c", "write -P 3 0 2M", "a.qcow2"], { cwd: folder });
      const shrink = ["resize", "-q", "--shrink", "a.qcow2", String(cut)];
      await runOk("qemu-img", shrink, { cwd: folder });
      resizeQcow2(path, { sizeBytes: 4 * MIB });
      const reads = [`read -P 3 0 ${cut}`, `read -P 0 ${cut} ${4 * MIB - cut}`];
      await runOk("qemu-io", ["-c", reads[0], "-c", reads[1], "a.qcow2"], { cwd: folder });
    }
  }
});

test("a disk whose end holds more than it shows is not made larger", async (folder) => {
  const path = `${folder}/a.qcow2`;
  const size = String(ODD_END);
  await runOk("qemu-img", ["create", "-q", "-f", "raw", `${folder}/base`, "2M"]);
  const backing = ["-b", "base", "-F", "raw"];
  await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...backing, path, size]);
  assert.throws(() => resizeQcow2(path, { sizeBytes: 4 * MIB }), /base is longer/);
  const base = Deno.openSync(`${folder}/base`, { write: true });
  base.writeSync(new Uint8Array(2 * MIB).fill(7));
  base.truncateSync(2 * MIB);
  base.close();
  const compress = ["convert", "-c", "-f", "raw", "-O", "qcow2", `${folder}/base`, path];
  await runOk("qemu-img", compress);
  await runOk("qemu-img", ["resize", "-q", "--shrink", path, size]);
  assert.throws(() => resizeQcow2(path, { sizeBytes: 4 * MIB }), /behind the end of the disk/);
});
