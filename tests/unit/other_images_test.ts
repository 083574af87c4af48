/**
 * Images of other programs in forms that are rare and legal, one test for each form that was once
 * refused or reported as damaged. `tests/search/images` makes such images at random.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1 << 20;

Deno.test("blocks may be as small as a sector", () => {
  for (const blockSizeBytes of [512, 1024, 2048]) {
    using storage = new SimulatedDisk();
    const sizeBytes = 5 * blockSizeBytes;
    putForeignImage(storage, "/a.vhd", { sizeBytes, blockSizeBytes, blocks: { 0: "a", 4: "b" } });
    const chain = openChain("/a.vhd", { storage });
    const bytes = new Uint8Array(sizeBytes);
    readRange(chain, bytes, 0);
    chain.close();
    const wanted = new Uint8Array(sizeBytes).fill(97, 0, blockSizeBytes)
      .fill(98, 4 * blockSizeBytes);
    assert.deepEqual(bytes, wanted);
    assert.deepEqual(checkImage("/a.vhd", { storage, checkData: true }).findings, []);
  }
});

Deno.test("the header's unused data offset may be 32 bits of ones", () => {
  using storage = new SimulatedDisk();
  const header = { dataOffset: 0xffff_ffffn };
  putForeignImage(storage, "/a.vhd", { header: (own) => Object.assign(own, header) });
  openVhd("/a.vhd", { storage }).close();
  const { valid, findings } = checkImage("/a.vhd", { storage });
  assert.deepEqual([valid, findings.map(({ field }) => field)], [true, ["header.dataOffset"]]);
});

Deno.test("a structure may lie directly in front of a footer of 511 bytes", () => {
  using storage = new SimulatedDisk();
  // The batmap is the last structure of an empty image of ours, the table of one without a batmap.
  createDynamic("/map.vhd", { storage, sizeBytes: 8 * MIB });
  putForeignImage(storage, "/table.vhd", {});
  for (const path of ["/map.vhd", "/table.vhd"]) {
    putFile(storage, path, getFile(storage, path).slice(0, -1));
    assert.deepEqual(checkImage(path, { storage }).findings, []);
    const image = openVhd(path, { storage });
    assert.deepEqual([image.footerSource, image.batmapFault], ["short", null]);
    image.close();
  }
});

Deno.test("repair makes a batmap for blocks of 64 MiB that check finds valid", () => {
  using storage = new SimulatedDisk();
  putForeignImage(storage, "/a.vhd", {
    sizeBytes: 2 ** 41,
    blockSizeBytes: 64 * MIB,
    footer: (footer) =>
      Object.assign(footer, { creatorApplication: "tap\0", creatorVersion: 0x0001_0003 }),
  });
  repairImage("/a.vhd", { storage });
  assert.notEqual(openVhd("/a.vhd", { storage }).batmap, null);
  assert.deepEqual(checkImage("/a.vhd", { storage }).findings, []);
});
