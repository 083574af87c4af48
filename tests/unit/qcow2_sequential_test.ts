/** QCOW2 images that are written from start to end. */
import assert from "node:assert/strict";
import { deflateRawSync } from "node:zlib";
import { osStorage } from "../../src/files/storage.ts";
import type { PutBytes } from "../../src/images/kind.ts";
import { streamImage } from "../../src/images/stream.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { SequentialQcow2 } from "../../src/qcow2/sequential.ts";
import { Random } from "../../src/testing/random.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { findTool, runOk, withTempDir } from "../support/tools.ts";
import { writeLater } from "../support/write_later.ts";

const SECTOR_BYTES = 512;

/** Bytes of a cluster that can be compressed. */
function fillEasily(bytes: Uint8Array, random: Random): void {
  bytes.fill(1 + random.below(255));
  for (let i = random.below(20); i > 0; i--) bytes[random.below(bytes.length)] = random.below(256);
}

/** Writes random clusters, and runs of sectors perhaps by `put`; returns what the disk then holds. */
function writeSome(
  image: SequentialQcow2,
  { sizeBytes, random }: { sizeBytes: number; random: Random },
  put?: PutBytes,
): Uint8Array {
  const { clusterBytes } = image;
  const content = new Uint8Array(sizeBytes);
  const plainShare = random.next();
  for (let at = 0; at + clusterBytes <= sizeBytes;) {
    const clusters = 1 + random.below(4);
    const end = Math.min(at + clusters * clusterBytes, sizeBytes - sizeBytes % clusterBytes);
    if (random.chance(0.2)) at = end;
    else if (random.chance(plainShare)) {
      const from = at + random.below(clusterBytes / SECTOR_BYTES) * SECTOR_BYTES;
      const run = content.subarray(from, end);
      for (let i = 0; i < run.length; i++) run[i] = random.below(256);
      image.write(run.slice(), from, put);
      at = end;
    } else {
      const bytes = content.subarray(at, at + clusterBytes);
      fillEasily(bytes, random);
      const packed = deflateRawSync(bytes, { windowBits: 12 });
      if (packed.length < clusterBytes) image.writeCompressed(at / clusterBytes, packed);
      else image.write(bytes.slice(), at);
      at += clusterBytes;
    }
  }
  return content;
}

async function contentOf(path: string, sizeBytes: number): Promise<Uint8Array> {
  const content = new Uint8Array(sizeBytes);
  let at = 0;
  await streamImage(`qcow2:${path}`, {
    write(bytes): void {
      content.set(bytes, at);
      at += bytes.length;
    },
    skip(lengthBytes): void {
      at += lengthBytes;
    },
  });
  assert.equal(at, sizeBytes);
  return content;
}

for (const [clusterBytes, sizeBytes] of [[512, 700_416], [4096, 8 << 20], [65536, 9 << 20]]) {
  const name = `qcow2: an image of clusters of ${clusterBytes} bytes is written from start to end`;
  Deno.test(name, () =>
    withTempDir(async (folder) => {
      for (let seed = 0; seed < 5; seed++) {
        const path = `${folder}/${seed}.qcow2`;
        const image = new SequentialQcow2(path, { sizeBytes, clusterBytes });
        const wanted = { sizeBytes, random: new Random(seed) };
        const content = seed % 2 === 0
          ? writeSome(image, wanted)
          : writeLater(image.file, (put) => writeSome(image, wanted, put));
        image.finish();
        const opened = openQcow2(path);
        try {
          const { errors, leakedClusters, endOfData } = checkQcow2(opened);
          assert.deepEqual([errors, leakedClusters], [[], 0], `seed ${seed}`);
          assert.equal(osStorage.status(path).sizeBytes, endOfData);
        } finally {
          opened.close();
        }
        assertBytes(await contentOf(path, sizeBytes), content);
        if (findTool("qemu-img") !== undefined) await runOk("qemu-img", ["check", "-q", path]);
      }
    }));
}

Deno.test("qcow2: clusters are written in their order, and an empty image is whole", () =>
  withTempDir((folder) => {
    const image = new SequentialQcow2(`${folder}/a`, { sizeBytes: 1 << 20 });
    image.write(new Uint8Array(512), 3 * 65536);
    assert.throws(() => image.write(new Uint8Array(512), 0), /order/);
    assert.throws(() => image.writeCompressed(3, new Uint8Array(9)), /order/);
    image.abandon();
    new SequentialQcow2(`${folder}/b`, { sizeBytes: 1 << 20 }).finish();
    const opened = openQcow2(`${folder}/b`);
    assert.equal(checkQcow2(opened).errorCount, 0);
    opened.close();
    return Promise.resolve();
  }));
