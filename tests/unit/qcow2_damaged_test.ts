/**
 * Bytes of the tables of QCOW2 images are changed at random. The check and qemu-img judge them alike, a
 * repair mends what qemu-img mends at least, and what it does not mend it leaves as it is.
 */
import assert from "node:assert/strict";
import { SystemError } from "../../ffi/errno.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { openQcow2, type Qcow2Image } from "../../src/qcow2/image/image.ts";
import { repairQcow2 } from "../../src/qcow2/repair.ts";
import { Random } from "../../src/testing/random.ts";
import { qemuCreate } from "../support/qcow2.ts";
import { needs, run, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");
/** In the last one a compressed cluster leads beyond all files. */
const SEEDS = [...Array.from({ length: 15 }, (_, i) => i + 18), 101];
const DISK_SECTORS = 4096;
/** Exit statuses of qemu-img check: nothing was found, errors, lost clusters. */
const SOUND = 0;
const LEAKS = 3;

async function makeImage(path: string, random: Random): Promise<void> {
  const hasSubclusters = random.chance(0.2);
  const clusterBytes = hasSubclusters ? 16384 : 2 ** (9 + random.below(5));
  const options = [`cluster_size=${clusterBytes}`, `refcount_bits=${2 ** (1 + random.below(6))}`];
  if (hasSubclusters) options.push("extended_l2=on");
  await qemuCreate(path, DISK_SECTORS * 512, options);
  const write = (pattern: number): string[] => {
    const range = `${512 * random.below(3000)} ${512 * (1 + random.below(900))}`;
    return ["-c", `write -P ${pattern} ${range}`];
  };
  await runOk("qemu-io", [...[1, 2, 3, 4, 5, 6, 7, 8].flatMap(write), path]);
  if (!random.chance(0.4)) return;
  await runOk("qemu-img", ["snapshot", "-c", "s", path]);
  await runOk("qemu-io", [...write(9), path]);
}

/** A byte of a refcount block, an L2 table, the L1 table or the refcount table. */
function placeIn({ header, l1, refcountTable, geometry }: Qcow2Image, random: Random): number {
  const { clusterBytes, l2EntryBytes, l2Entries } = geometry;
  const low = (table: DataView): number[] =>
    Array.from({ length: table.byteLength / 8 }, (_, i) => table.getUint32(8 * i + 4, false))
      .filter((offset) => offset > 0);
  switch (random.below(6)) {
    case 0:
    case 1:
      return low(refcountTable)[0] + random.below(Math.min(clusterBytes, 600));
    case 2:
    case 3: {
      const tables = low(l1);
      const inTable = l2EntryBytes * random.below(Math.min(l2Entries, 64));
      return tables[random.below(tables.length)] + inTable + random.below(l2EntryBytes);
    }
    case 4:
      return Number(header.l1TableOffset) + random.below(Math.min(l1.byteLength, 64));
    default:
      return Number(header.refcountTableOffset) + random.below(16);
  }
}

function damage(path: string, random: Random): void {
  const image = openQcow2(path);
  image.close();
  const file = Deno.openSync(path, { read: true, write: true });
  for (let i = random.below(3); i >= 0; i--) {
    const at = placeIn(image, random);
    const byte = new Uint8Array(1);
    file.seekSync(at, Deno.SeekMode.Start);
    file.readSync(byte);
    byte[0] = random.chance(0.5) ? byte[0] ^ (1 << random.below(8)) : random.below(256);
    file.seekSync(at, Deno.SeekMode.Start);
    file.writeSync(byte);
  }
  file.close();
}

function errorsOf(path: string): number {
  const image = openQcow2(path);
  try {
    return checkQcow2(image).errorCount;
  } finally {
    image.close();
  }
}

async function qemuStatus(path: string, ...options: string[]): Promise<number> {
  return (await run("qemu-img", ["check", "-f", "qcow2", ...options, path])).code;
}

/** Repairs an image; false when it is left as it is. */
function isRepaired(path: string): boolean {
  const before = Deno.readFileSync(path);
  try {
    repairQcow2(path);
    return true;
  } catch (error) {
    assert.ok(error instanceof SystemError);
    assert.deepEqual(Deno.readFileSync(path), before, "A repair that was refused has changed it");
    return false;
  }
}

for (const seed of SEEDS) {
  Deno.test({
    name: `a damaged image is judged and mended as by qemu-img, seed ${seed}${suffix}`,
    ignore,
    fn: () =>
      withTempDir(async (folder) => {
        const random = new Random(seed);
        const [path, other, raw] = ["a", "b", "raw"].map((name) => `${folder}/${name}`);
        await makeImage(path, random);
        await runOk("qemu-img", ["convert", "-O", "raw", path, raw]);
        damage(path, random);
        const isSame = async (): Promise<boolean> =>
          (await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", path, raw])).code === 0;
        const wasSame = await isSame();
        const status = await qemuStatus(path);
        assert.equal(errorsOf(path) === 0, status === SOUND || status === LEAKS);
        Deno.copyFileSync(path, other);
        await qemuStatus(other, "-r", "all");
        const isMendable = await qemuStatus(other) === SOUND;
        const isMended = isRepaired(path);
        assert.ok(isMended || !isMendable, "qemu-img mends it");
        if (!isMended) return;
        assert.equal(await qemuStatus(path), SOUND);
        assert.equal(errorsOf(path), 0);
        if (wasSame) assert.ok(await isSame(), "A repair has changed what is read");
      }),
  });
}
