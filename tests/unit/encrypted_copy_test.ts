import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { AesXts } from "../../ffi/aes_xts.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { openDisk } from "../../src/bulk/disk.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { withTempDir } from "../support/tools.ts";
import { goldenImage, vhdUtil } from "../support/vhd.ts";

const ignore = !hasLibcrypto();
const suffix = ignore ? " (skipped: needs libcrypto.so.3)" : "";

function hex(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.from(text, "hex"));
}

Deno.test(`AES-XTS has the results of IEEE 1619, vectors 4 and 10${suffix}`, { ignore }, () => {
  const plain = Uint8Array.from({ length: 512 }, (_, i) => i & 0xff);
  const vectors = [
    {
      key: "2718281828459045235360287471352631415926535897932384626433832795",
      sector: 0,
      starts: "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
    },
    {
      key: "27182818284590452353602874713526624977572470936999595749669676273141592653589793" +
        "238462643383279502884197169399375105820974944592",
      sector: 0xff,
      starts: "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
    },
  ];
  for (const { key, sector, starts } of vectors) {
    const cipher = new AesXts(hex(key));
    const bytes = plain.slice();
    cipher.encrypt(bytes, sector);
    assert.equal(Buffer.from(bytes.subarray(0, 32)).toString("hex"), starts);
    cipher.decrypt(bytes, sector);
    assert.deepEqual(bytes, plain);
    cipher.close();
  }
  assert.throws(() => new AesXts(new Uint8Array(48)), /a key of 384 bits/);
});

function contentOf(path: string): Uint8Array {
  using disk = openDisk(path);
  const content = new Uint8Array(disk.sizeBytes);
  disk.read(content, 0);
  return content;
}

Deno.test(
  `copy encrypts, with another key anew, with -K alone decrypts${suffix}`,
  { ignore },
  () =>
    withTempDir(async (folder) => {
      const at = (name: string): string => `${folder}/${name}`;
      for (const name of ["base.vhd", "child.vhd"] as const) {
        Deno.writeFileSync(at(name), await goldenImage(name));
      }
      const keys = [1, 2].map((seed) => Uint8Array.from({ length: 64 }, (_, i) => i * seed + seed));
      for (const [index, key] of keys.entries()) Deno.writeFileSync(at(`key${index}`), key);
      const copy = async (...args: string[]): Promise<number> =>
        (await vhdUtil("copy", ...args.map((arg) => arg.startsWith("-") ? arg : at(arg)))).code;
      assert.equal(await copy("-n", "child.vhd", "-N", "first.vhd", "-k", "key0"), 0);
      const image = openVhd(at("first.vhd"));
      image.close();
      assert.equal(image.batmap?.header.keyhash.cookie, 1);
      const plain = contentOf(at("child.vhd"));
      const encrypted = contentOf(at("first.vhd"));
      const cipher = new AesXts(keys[0]);
      const sector = encrypted.slice(8192 * 512, 8193 * 512);
      assert.notDeepEqual(sector, plain.slice(8192 * 512, 8193 * 512));
      cipher.decrypt(sector, 8192);
      assert.deepEqual(sector, plain.slice(8192 * 512, 8193 * 512));
      cipher.close();

      assert.equal(await copy("-n", "first.vhd", "-N", "wrong.vhd", "-k", "key1"), 126);
      assert.equal(
        await copy("-n", "first.vhd", "-N", "wrong.vhd", "-k", "key1", "-K", "key1"),
        126,
      );
      assert.equal(
        await copy("-n", "first.vhd", "-N", "second.vhd", "-k", "key1", "-K", "key0"),
        0,
      );
      assert.equal(await copy("-n", "second.vhd", "-N", "same.vhd", "-k", "key1"), 0);
      assert.ok(Buffer.compare(contentOf(at("same.vhd")), contentOf(at("second.vhd"))) === 0);
      assert.equal(await copy("-n", "second.vhd", "-N", "plain.vhd", "-K", "key1"), 0);
      assert.ok(Buffer.compare(contentOf(at("plain.vhd")), plain) === 0);
      await assert.rejects(
        copyImage(at("plain.vhd"), at("wrong.vhd"), { sourceKey: keys[0] }),
        /it is not encrypted/,
      );
      Deno.writeFileSync(at("short"), new Uint8Array(16));
      assert.equal(await copy("-n", "child.vhd", "-N", "wrong.vhd", "-k", "short"), 1);
      const names = Array.from(Deno.readDirSync(folder), ({ name }) => name);
      assert.ok(!names.some((name) => name.startsWith("wrong")), names.join());
    }),
);
