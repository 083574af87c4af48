/**
 * What filling an image must not lose.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { changesOnly, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { fillImage, preallocate } from "../../src/vhd/fill.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { storeKeyhash } from "../../src/vhd/key.ts";
import { setField } from "../../src/vhd/set_fields.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { syncFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SECTOR = 512;

function write(storage: SimulatedDisk, path: string, offsetBytes: number, value: number): void {
  const image = openVhd(path, { storage, readOnly: false });
  writeRange(image, new Uint8Array(SECTOR).fill(value), offsetBytes);
  finishWriting(image);
  image.close();
}

function makePair(storage: SimulatedDisk): void {
  createDynamic("/a.vhd", { storage, sizeBytes: 4 * MIB });
  write(storage, "/a.vhd", 0, 1);
  snapshot("/c.vhd", { storage, parent: "/a.vhd" });
  write(storage, "/c.vhd", SECTOR, 2);
  for (const path of ["/a.vhd", "/c.vhd"]) syncFile(storage, path);
}

Deno.test("a power cut in a fill hides nothing of the parent", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  makePair(disk);
  let photographs = 0;
  disk.beforeOperation = changesOnly(() => {
    const { length } = disk.undecided();
    for (let only = 0; only < length; only++) {
      photographs++;
      using photo = disk.photographWith((index) => index === only);
      const chain = openChain("/c.vhd", { storage: photo });
      const bytes = new Uint8Array(2 * SECTOR);
      readRange(chain, bytes, 0);
      chain.close();
      assert.deepEqual([bytes[0], bytes[SECTOR]], [1, 2]);
    }
  });
  fillImage("/c.vhd", { storage: disk });
  assert.ok(photographs > 5);
});

Deno.test("an encrypted image is not filled with data that is not encrypted", () => {
  using storage = new SimulatedDisk();
  makePair(storage);
  snapshot("/e.vhd", { storage, parent: "/a.vhd" });
  createDynamic("/d.vhd", { storage, sizeBytes: 4 * MIB });
  const bytes = new Uint8Array(32).fill(5);
  for (const path of ["/d.vhd", "/e.vhd"]) {
    storeKeyhash(path, { storage, nonce: bytes, hash: bytes });
  }
  const refused = { errno: Errno.EINVAL, message: /it is encrypted/ };
  assert.throws(() => fillImage("/e.vhd", { storage }), refused);
  assert.throws(() => fillImage("/d.vhd", { storage }), refused);
  assert.throws(() => preallocate("/d.vhd", { storage }), refused);
  // In a differencing image no sector of a new block counts as written.
  preallocate("/e.vhd", { storage });
  assert.ok(checkImage("/e.vhd", { storage, checkData: true }).valid);
});

Deno.test("an image that is hidden on a full disk stays hidden after a power cut", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  makePair(disk);
  disk.beforeOperation = ({ kind, offsetBytes }) =>
    kind === "write" && offsetBytes > 0 ? Errno.ENOSPC : 0;
  setField("/c.vhd", { storage: disk, field: "hidden", value: 1 });
  assert.deepEqual(disk.undecided(), []);
});

Deno.test("old data of a block device under clear bits is no fault", () => {
  using storage = new SimulatedDisk();
  storage.addBlockDevice("/dev/vg/a", { sizeBytes: 8 * MIB });
  createDynamic("/dev/vg/a", { storage, sizeBytes: 4 * MIB });
  write(storage, "/dev/vg/a", 0, 1);
  const file = storage.open("/dev/vg/a", "write");
  file.writeAt(new Uint8Array(SECTOR).fill(7), 4096 + SECTOR);
  file.close();
  assert.deepEqual(checkImage("/dev/vg/a", { storage, checkData: true }).findings, []);
});
