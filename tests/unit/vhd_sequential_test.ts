/** Dynamic VHDs that are written from start to end. */
import assert from "node:assert/strict";
import type { PutBytes } from "../../src/images/kind.ts";
import { streamImage } from "../../src/images/stream.ts";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { SequentialVhd } from "../../src/vhd/sequential.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { findTool, runOk, withTempDir } from "../support/tools.ts";
import { writeLater } from "../support/write_later.ts";

const SECTOR_BYTES = 512;
const DISK_BYTES = (9 << 20) + 3 * SECTOR_BYTES;

/** Writes random runs of sectors, perhaps by `put`; returns what the disk then holds. */
function writeSome(image: SequentialVhd, random: Random, put?: PutBytes): Uint8Array {
  const content = new Uint8Array(DISK_BYTES);
  for (let at = 0; at < DISK_BYTES;) {
    const length = (1 + random.below(random.chance(0.2) ? 6000 : 60)) * SECTOR_BYTES;
    const end = Math.min(DISK_BYTES, at + length);
    if (random.chance(0.6)) {
      content.fill(1 + random.below(255), at, end);
      image.write(content.slice(at, end), at, put);
    }
    at = end;
  }
  return content;
}

async function contentOf(path: string): Promise<Uint8Array> {
  const content = new Uint8Array(DISK_BYTES);
  let at = 0;
  await streamImage(`vhd:${path}`, {
    write(bytes): void {
      content.set(bytes, at);
      at += bytes.length;
    },
    skip(lengthBytes): void {
      at += lengthBytes;
    },
  });
  assert.equal(at, DISK_BYTES);
  return content;
}

Deno.test("vhd: an image is written from start to end", () =>
  withTempDir(async (folder) => {
    for (let seed = 0; seed < 4; seed++) {
      const path = `${folder}/${seed}.vhd`;
      const image = new SequentialVhd(path, { sizeBytes: DISK_BYTES });
      const content = seed % 2 === 0
        ? writeSome(image, new Random(seed))
        : writeLater(image.file, (put) => writeSome(image, new Random(seed), put));
      image.finish();
      const { valid, findings } = checkImage(path, { checkData: true });
      assert.deepEqual([valid, findings], [true, []], `seed ${seed}`);
      assertBytes(await contentOf(path), content);
      if (findTool("qemu-img") === undefined) continue;
      // QEMU does not look at bitmaps.
      await runOk("qemu-img", ["convert", "-O", "raw", "-f", "vpc", path, `${folder}/raw`]);
      const theirs = Deno.readFileSync(`${folder}/raw`);
      assertBytes(theirs.subarray(0, DISK_BYTES), content.subarray(0, theirs.length));
    }
  }));

Deno.test("vhd: blocks are written in their order, and an empty image is whole", () =>
  withTempDir((folder) => {
    const image = new SequentialVhd(`${folder}/a`, { sizeBytes: DISK_BYTES });
    image.write(new Uint8Array(512), 5 << 20);
    assert.throws(() => image.write(new Uint8Array(512), 0), /order/);
    image.abandon();
    new SequentialVhd(`${folder}/b`, { sizeBytes: DISK_BYTES }).finish();
    assert.equal(checkImage(`${folder}/b`, { checkData: true }).valid, true);
    return Promise.resolve();
  }));
