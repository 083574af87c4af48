import assert from "node:assert/strict";
import { AesXts } from "../../ffi/aes_xts.ts";
import { Errno } from "../../ffi/errno.ts";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../src/vhd/key.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import type { Storage } from "../../src/files/storage.ts";
import { burst, DISK_MIB, DISK_SECTORS, Model, readAll } from "../support/disk_model.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { SECTOR_BYTES, Simulation } from "../support/sim.ts";

const ignore = !hasLibcrypto();
const suffix = ignore ? " (skipped: needs libcrypto.so.3)" : "";

function keyBytes(bits: number, seed: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: bits / 8 }, (_, i) => i * 7 + seed);
}

function create(storage: Storage, path: string): void {
  createDynamic(path, { storage, sizeBytes: DISK_MIB * 1024 * 1024 });
}

function encrypt(storage: Storage, path: string, key: Uint8Array): void {
  const nonce = new Uint8Array(32).fill(9);
  storeKeyhash(path, { storage, nonce, hash: hashKey(key, nonce) });
}

for (const seed of [1, 2, 3, 4, 5, 6]) {
  const bits = seed % 2 === 0 ? 512 : 256;
  const name = `any requests on an encrypted chain read back through errors, ${bits} bits`;
  Deno.test(`${name}, seed ${seed}${suffix}`, { ignore }, () => {
    const random = new Random(seed);
    const simulation = new Simulation({ seed, latencyMs: seed % 3 === 0 ? 0 : 3 });
    const storage = simulation.disk;
    const key = keyBytes(bits, seed);
    create(storage, "/base.vhd");
    encrypt(storage, "/base.vhd", key);
    const device = simulation.open("vhd:/base.vhd", { key: new DiskKey(key) });
    const model = new Model();
    const errors = [Errno.EIO, Errno.ENOSPC, Errno.ETIMEDOUT];
    const fault = (): number => random.chance(0.1) ? errors[random.below(errors.length)] : 0;
    let leaf = "/base.vhd";
    for (let round = 1; round <= 8; round++) {
      simulation.fault = fault;
      burst(device, model, random, round);
      simulation.fault = null;
      if (round % 3 !== 0) continue;
      device.pause();
      const child = `/child${round}.vhd`;
      snapshot(child, { storage, parent: leaf });
      leaf = child;
      device.resume(`vhd:${leaf}`);
    }
    readAll(device, model);
    device.close();
    assert.deepEqual(checkImage(leaf, { storage }).findings, []);
    assert.ok(!simulation.log.some((line) => line.includes("key")));
    simulation.close();
  });
}

Deno.test(`an encrypted child reads an unencrypted parent as it is${suffix}`, { ignore }, () => {
  const random = new Random(5);
  const simulation = new Simulation({ seed: 5, latencyMs: 2 });
  const storage = simulation.disk;
  const model = new Model();
  create(storage, "/base.vhd");
  const plain = simulation.open("vhd:/base.vhd");
  for (let round = 1; round <= 3; round++) burst(plain, model, random, round);
  plain.close();
  snapshot("/child.vhd", { storage, parent: "/base.vhd" });
  const key = keyBytes(512, 3);
  encrypt(storage, "/child.vhd", key);
  const child = simulation.open("vhd:/child.vhd", { key: new DiskKey(key) });
  readAll(child, model);
  for (let round = 4; round <= 6; round++) burst(child, model, random, round);
  readAll(child, model);
  child.close();
  simulation.close();
});

Deno.test(
  `what is on disk is the data under AES-XTS, sector by sector${suffix}`,
  { ignore },
  () => {
    const simulation = new Simulation({ seed: 7, latencyMs: 1 });
    const storage = simulation.disk;
    const key = keyBytes(512, 1);
    create(storage, "/a.vhd");
    encrypt(storage, "/a.vhd", key);
    const device = simulation.open("vhd:/a.vhd", { key: new DiskKey(key) });
    const model = new Model();
    const random = new Random(8);
    for (let round = 1; round <= 3; round++) burst(device, model, random, round);
    device.close();

    const chain = openChain("/a.vhd", { storage });
    const cipher = new AesXts(key);
    let held = 0;
    for (let sector = 0; sector < DISK_SECTORS; sector++) {
      if (model.stamps[sector] <= 0) continue;
      const bytes = new Uint8Array(SECTOR_BYTES);
      readRange(chain, bytes, sector * SECTOR_BYTES);
      cipher.decrypt(bytes, sector);
      model.compare(bytes, sector);
      held++;
    }
    assert.ok(held > 1000);
    cipher.close();
    chain.close();
    simulation.close();
  },
);

Deno.test(`keys that are missing, wrong or not wanted are refused${suffix}`, { ignore }, () => {
  const simulation = new Simulation({ seed: 9 });
  const storage = simulation.disk;
  const key = (seed: number): DiskKey => new DiskKey(keyBytes(512, seed));
  create(storage, "/secret.vhd");
  encrypt(storage, "/secret.vhd", keyBytes(512, 1));
  create(storage, "/plain.vhd");
  snapshot("/child.vhd", { storage, parent: "/plain.vhd" });
  const refused = (name: string, given: DiskKey | undefined, errno: number, why: RegExp) =>
    assert.throws(
      () => simulation.open(`vhd:${name}`, { key: given }),
      (error: Error & { errno?: number }) => error.errno === errno && why.test(error.message),
    );
  refused("/secret.vhd", undefined, Errno.EINVAL, /secret\.vhd: it is encrypted and no key/);
  refused("/secret.vhd", key(2), Errno.ENOKEY, /the key is not the image's/);
  refused("/plain.vhd", key(1), Errno.EINVAL, /plain\.vhd with a key: it is not an encrypted/);
  refused("/child.vhd", key(1), Errno.EINVAL, /child\.vhd with a key: it is not an encrypted/);
  const wiped = key(1);
  wiped.wipe();
  refused("/secret.vhd", wiped, Errno.ENOKEY, /the key is not/);
  assert.equal(Deno.inspect(key(1), { showHidden: true, depth: 9 }), "DiskKey {}");
  assert.equal(JSON.stringify({ key: key(1) }), '{"key":{}}');
  // A refused open releases the image: it opens with the right key.
  simulation.open("vhd:/secret.vhd", { key: key(1) }).close();
  simulation.close();
});

Deno.test(`a secondary image of an encrypted disk is encrypted too${suffix}`, { ignore }, () => {
  for (const isLayer of [false, true]) {
    const random = new Random(7);
    const simulation = new Simulation({ seed: 7, latencyMs: 2 });
    const { disk: storage } = simulation;
    const key = (): DiskKey => new DiskKey(keyBytes(512, 1));
    create(storage, "/base.vhd");
    for (const path of ["/leaf.vhd", "/second.vhd", "/plain.vhd"]) {
      if (isLayer) snapshot(path, { storage, parent: "/base.vhd", keepEmptyParent: true });
      else create(storage, path);
      if (path !== "/plain.vhd") encrypt(storage, path, keyBytes(512, 1));
    }
    assert.throws(
      () => simulation.open("vhd:/leaf.vhd", { key: key(), secondary: "vhd:/plain.vhd" }),
      { code: "EINVAL", message: /plain\.vhd with a key: it is not an encrypted/ },
    );
    simulation.runUntil(() => storage.openFiles === 0, "Closing what was opened");
    const model = new Model();
    const device = simulation.open("vhd:/leaf.vhd", { key: key(), secondary: "vhd:/second.vhd" });
    for (let round = 1; round <= 3; round++) {
      burst(device, model, random, round);
      device.pause();
      device.resume();
    }
    assert.equal(device.vbd.statistics().nbd_mirror_failed, 0);
    device.close();
    for (const name of ["vhd:/leaf.vhd", "vhd:/second.vhd"]) {
      const alone = simulation.open(name, { readOnly: true, key: key() });
      readAll(alone, model);
      alone.close();
    }
    simulation.close();
  }
});
