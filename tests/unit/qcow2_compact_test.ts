/** QCOW2 images that are compacted, made smaller and put on other images, judged by QEMU. */
import assert from "node:assert/strict";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { compactQcow2 } from "../../src/qcow2/compact.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { setBackingFile } from "../../src/qcow2/rebase.ts";
import { resizeQcow2 } from "../../src/qcow2/resize.ts";
import { Random } from "../../src/testing/random.ts";
import { assertQemuClean, qemuCreate } from "../support/qcow2.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");
const MIB = 1 << 20;
const DISK_BYTES = 6 * MIB;

function test(name: string, fn: (folder: string) => Promise<void>): void {
  Deno.test({ name: `${name}${suffix}`, ignore, fn: () => withTempDir(fn) });
}

/** Options of an image that a seed chooses. */
function someOptions(random: Random): { options: string[]; isOld: boolean; refcountBits: number } {
  const hasSubclusters = random.chance(0.3);
  const clusterBits = hasSubclusters ? 14 + random.below(3) : 9 + random.below(8);
  const isOld = !hasSubclusters && random.chance(0.2);
  const refcountBits = isOld ? 16 : 2 ** random.below(7);
  const options = [`cluster_size=${2 ** clusterBits}`];
  options.push(isOld ? "compat=0.10" : `refcount_bits=${refcountBits}`);
  if (hasSubclusters) options.push("extended_l2=on");
  return { options, isOld, refcountBits };
}

/** Commands of qemu-io: data, zeros that take room, zeros that do not, discards. */
function someWrites(random: Random, isOld: boolean): string[] {
  return Array.from({ length: 40 }, (_, i) => {
    const count = 1 + random.below(random.chance(0.3) ? 600 : 40);
    const range = `${512 * random.below(DISK_BYTES / 512 - count)} ${512 * count}`;
    const kind = random.below(10);
    if (kind < 8) return ["-c", `write -P ${kind < 4 ? i + 10 : 0} ${range}`];
    return ["-c", kind === 8 && !isOld ? `write -z -u ${range}` : `discard ${range}`];
  }).flat();
}

for (let seed = 1; seed <= 12; seed++) {
  test(`a compacted image reads the same, seed ${seed}`, async (folder) => {
    const random = new Random(seed);
    const { options, isOld, refcountBits } = someOptions(random);
    const [path, raw] = [`${folder}/a.qcow2`, `${folder}/a.raw`];
    if (random.chance(0.4)) {
      await runOk("qemu-img", ["create", "-q", "-f", "raw", `${folder}/base`, `${DISK_BYTES}`]);
      await runOk("qemu-io", ["-f", "raw", "-c", "write -P 9 0 4M", `${folder}/base`]);
      options.push(`backing_file=${folder}/base`, "backing_fmt=raw");
    }
    await qemuCreate(path, DISK_BYTES, options);
    await runOk("qemu-io", [...someWrites(random, isOld), path]);
    const hasSnapshot = refcountBits > 1 && random.chance(0.4);
    const raws = [`${folder}/s.raw`, raw];
    await runOk("qemu-img", ["convert", "-O", "raw", path, raws[0]]);
    if (hasSnapshot) await runOk("qemu-img", ["snapshot", "-c", "s", path]);
    await runOk("qemu-io", [...someWrites(random, isOld), path]);
    await runOk("qemu-img", ["convert", "-O", "raw", path, raw]);
    const { beforeBytes, afterBytes } = compactQcow2(path);
    assert.ok(afterBytes <= beforeBytes);
    assert.equal(Deno.statSync(path).size, afterBytes);
    await assertQemuClean(path);
    await runOk("qemu-img", ["compare", "-F", "raw", path, raw]);
    if (hasSnapshot) {
      await runOk("qemu-img", ["snapshot", "-a", "s", path]);
      await runOk("qemu-img", ["compare", "-F", "raw", path, raws[0]]);
    } else assert.equal(compactQcow2(path).movedClusters, 0);
    await runOk("qemu-io", [...someWrites(random, isOld), path]);
    await assertQemuClean(path);
  });
}

test("an image is refused that is damaged, or whose data is in another file", async (folder) => {
  const path = `${folder}/a.qcow2`;
  await qemuCreate(path, DISK_BYTES, ["lazy_refcounts=on"]);
  await run("qemu-io", ["-c", "write -P 3 0 4M", "-c", "flush", "-c", "abort", path]);
  assert.throws(() => compactQcow2(path), /td-util check --repair/);
  await qemuCreate(`${folder}/b.qcow2`, DISK_BYTES, [`data_file=${folder}/b.raw`]);
  assert.throws(() => compactQcow2(`${folder}/b.qcow2`), /its data is in another file/);
});

const SHRUNK: readonly [string, string[], number][] = [
  ["", [], 3 * MIB],
  ["within a cluster", ["cluster_size=2M"], 3 * MIB + 512],
  ["with subclusters", ["extended_l2=on"], 3 * MIB + 512],
  ["of version 2", ["compat=0.10", "cluster_size=4k"], MIB],
  ["whose tables are many", ["cluster_size=512"], 100 * 512],
];

for (const [name, options, after] of SHRUNK) {
  test(`an image ${name} is made smaller, and larger again`, async (folder) => {
    const path = `${folder}/a.qcow2`;
    await qemuCreate(path, DISK_BYTES, options);
    await runOk("qemu-io", ["-c", `write -P 3 0 ${DISK_BYTES}`, path]);
    assert.throws(() => resizeQcow2(path, { sizeBytes: after }), /would lose data/);
    resizeQcow2(path, { sizeBytes: after, shrink: true });
    await assertQemuClean(path);
    const rest = `${after} ${DISK_BYTES - after}`;
    await runOk("qemu-io", ["-c", `read -P 3 0 ${after}`, path]);
    resizeQcow2(path, { sizeBytes: DISK_BYTES });
    await runOk("qemu-io", ["-c", `read -P 3 0 ${after}`, "-c", `read -P 0 ${rest}`, path]);
    await assertQemuClean(path);
  });
}

test("an image with snapshots is not made smaller", async (folder) => {
  const path = `${folder}/a.qcow2`;
  await qemuCreate(path, DISK_BYTES);
  await runOk("qemu-img", ["snapshot", "-c", "s", path]);
  const shrink = (): void => resizeQcow2(path, { sizeBytes: MIB, shrink: true });
  assert.throws(shrink, /it has snapshots/);
});

const FRONTS: readonly [string, string[]][] = [
  ["the defaults", []],
  ["clusters of a sector", ["cluster_size=512"]],
  ["version 2", ["compat=0.10"]],
  ["a data file", ["data_file=DATA"]],
];

for (const [name, options] of FRONTS) {
  for (const hasBacking of [true, false]) {
    const what = hasBacking ? "on another" : "on nothing";
    test(`an image ${what} with ${name} is put on a third one, and back`, async (folder) => {
      for (const [file, pattern] of [["one", 1], ["two", 2]] as const) {
        await qemuCreate(`${folder}/${file}`, MIB);
        await runOk("qemu-io", ["-c", `write -P ${pattern} 0 1M`, `${folder}/${file}`]);
      }
      const path = `${folder}/a.qcow2`;
      const own = options.map((option) => option.replace("DATA", `${folder}/data`));
      const below = hasBacking ? [`backing_file=${folder}/one`, "backing_fmt=qcow2"] : [];
      await qemuCreate(path, MIB, [...own, ...below]);
      await runOk("qemu-io", ["-c", "write -P 7 512k 64k", path]);
      const before = openQcow2(path);
      before.close();
      for (const file of ["two", "one", "two"]) {
        setBackingFile(path, { parent: { type: "qcow2", path: `${folder}/${file}` } });
        await assertQemuClean(path);
        const pattern = file === "one" ? 1 : 2;
        await runOk("qemu-io", [
          "-c",
          `read -P ${pattern} 0 512k`,
          "-c",
          "read -P 7 512k 64k",
          path,
        ]);
        const image = openQcow2(path);
        image.close();
        assert.deepEqual(image.backing, { name: file, format: "qcow2" });
        assert.deepEqual(image.dataFile, before.dataFile);
      }
    });
  }
}

test("an image is not put on itself", async (folder) => {
  const path = `${folder}/a`;
  await qemuCreate(path, MIB);
  const parent = { type: "qcow2", path };
  assert.throws(() => setBackingFile(path, { parent }), /its own parent/);
});

Deno.test("a million entries of an L1 table that lead to one table, or to holes, are checked soon", () =>
  withTempDir((folder) => {
    const entries = 1 << 20;
    for (const isOne of [true, false]) {
      const path = `${folder}/${isOne}`;
      createQcow2(path, { sizeBytes: 2 ** 49 });
      const file = Deno.openSync(path, { read: true, write: true });
      const table = new DataView(new ArrayBuffer(8 * entries));
      const first = 1 << 24;
      for (let i = 0; i < entries; i++) {
        table.setBigUint64(8 * i, BigInt(first + (isOne ? 0 : 65536 * i)) | 1n << 63n);
      }
      file.seekSync(8 * 65536, Deno.SeekMode.Start);
      file.writeSync(new Uint8Array(table.buffer));
      const header = new DataView(new ArrayBuffer(12));
      header.setUint32(0, entries);
      header.setBigUint64(4, BigInt(8 * 65536));
      file.seekSync(36, Deno.SeekMode.Start);
      file.writeSync(new Uint8Array(header.buffer));
      file.truncateSync(first + 65536 * (isOne ? 1 : entries));
      file.close();
      const image = openQcow2(path);
      const start = performance.now();
      const { errorCount } = checkQcow2(image);
      const spentMs = performance.now() - start;
      image.close();
      assert.ok(errorCount > 0);
      assert.ok(spentMs < 120_000, `${spentMs} ms`);
    }
  }));
