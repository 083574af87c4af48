import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createCipheriv } from "node:crypto";
import { AesXts } from "../../ffi/aes_xts.ts";
import { Arena } from "../../ffi/memory.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";

const SECTOR_BYTES = 512;
const ignore = !hasLibcrypto();
const suffix = ignore ? " (skipped: needs libcrypto.so.3)" : "";

function hex(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** Encrypts single blocks with plain AES, which the runtime provides. */
function aesBlocks(key: Uint8Array, bytes: Uint8Array): Uint8Array {
  const cipher = createCipheriv(`aes-${key.length * 8}-ecb`, key, null);
  cipher.setAutoPadding(false);
  return new Uint8Array(Buffer.concat([cipher.update(bytes), cipher.final()]));
}

/** AES-XTS as IEEE 1619 defines it, implemented with single blocks. */
function encryptedSector(key: Uint8Array, plain: Uint8Array, sector: number): Uint8Array {
  const half = key.length / 2;
  const number = new Uint8Array(16);
  new DataView(number.buffer).setUint32(0, sector, true);
  const mask = new Uint8Array(SECTOR_BYTES);
  mask.set(aesBlocks(key.subarray(half), number));
  for (let at = 16; at < SECTOR_BYTES; at++) {
    const inBlock = at % 16;
    const carry = inBlock === 0 ? 0 : mask[at - 17] >> 7;
    mask[at] = (mask[at - 16] << 1) | carry;
    if (inBlock === 15 && mask[at - 16] >> 7 === 1) mask[at - 15] ^= 0x87;
  }
  const mix = (bytes: Uint8Array): Uint8Array => bytes.map((byte, i) => byte ^ mask[i]);
  return mix(aesBlocks(key.subarray(0, half), mix(plain)));
}

Deno.test(`AES-XTS ends vector 4 of IEEE 1619 as it should${suffix}`, { ignore }, () => {
  const cipher = new AesXts(
    hex("2718281828459045235360287471352631415926535897932384626433832795"),
  );
  const bytes = Uint8Array.from({ length: SECTOR_BYTES }, (_, i) => i & 0xff);
  cipher.encrypt(bytes, 0);
  assert.equal(
    Buffer.from(bytes.subarray(496)).toString("hex"),
    "0a282df920147beabe421ee5319d0568",
  );
  cipher.close();
});

for (const bits of [256, 512]) {
  Deno.test(`AES-XTS of I/O memory is that of the standard, ${bits} bits${suffix}`, {
    ignore,
  }, () => {
    const count = 70;
    const key = Uint8Array.from({ length: bits / 8 }, (_, i) => i * 11 + 3);
    const cipher = new AesXts(key);
    const arena = new Arena(2 * count * SECTOR_BYTES);
    for (const sector of [0, 4095, 2 ** 31 - 3, 2 ** 32 - count]) {
      const plain = Uint8Array.from({ length: count * SECTOR_BYTES }, (_, i) => i * 5 + sector);
      arena.bytes.set(plain);
      cipher.encryptSectors(arena.sector + count, arena.sector, count, sector);
      const [from, to] = [0, 1].map((half) =>
        arena.bytes.subarray(half * plain.length, (half + 1) * plain.length)
      );
      assert.deepEqual(from, plain, "the source stays as it was");
      for (const i of [0, 1, 31, 32, count - 1]) {
        const at = i * SECTOR_BYTES;
        assert.deepEqual(
          to.slice(at, at + SECTOR_BYTES),
          encryptedSector(key, plain.subarray(at, at + SECTOR_BYTES), sector + i),
          `sector ${sector + i}`,
        );
      }
      const bytes = plain.slice();
      cipher.encrypt(bytes, sector);
      assert.deepEqual(to, bytes, "bytes and I/O memory give the same");
      cipher.decryptSectors(arena.sector + count, count, sector);
      assert.deepEqual(to, plain);
    }
    arena.release();
    cipher.close();
  });
}
