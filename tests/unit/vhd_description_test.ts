/**
 * The library's description of an image: a plain record that the caller cannot change.
 *
 * @module
 */
import assert from "node:assert/strict";
import { createDynamic, createFixed, openDisk, openVhd, snapshot } from "../../mod.ts";
import { storeKeyhash } from "../../src/vhd/key.ts";
import { setField } from "../../src/vhd/set_fields.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;

Deno.test("a dynamic image: sizes, blocks, flags, and the image as its only layer", () =>
  withTempDir((folder) => {
    const path = `${folder}/a.vhd`;
    createDynamic(path, { sizeBytes: 8 * MIB, reserveBytes: 64 * MIB });
    storeKeyhash(path, { nonce: new Uint8Array(32), hash: new Uint8Array(32) });
    setField(path, { field: "hidden", value: 1 });
    setField(path, { field: "marker", value: 7 });
    const { uuid, fileBytes, ...others } = openVhd(path);
    assert.match(uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.equal(fileBytes, Deno.statSync(path).size);
    assert.deepEqual(others, {
      path,
      type: "dynamic",
      sizeBytes: 8 * MIB,
      maxSizeBytes: 64 * MIB,
      blockSizeBytes: 2 * MIB,
      blocks: 4,
      allocatedBlocks: 0,
      parent: null,
      layers: [path],
      chainError: null,
      hidden: true,
      savedState: false,
      encrypted: true,
      marker: 7,
    });
    return Promise.resolve();
  }));

Deno.test("a fixed image has no blocks", () =>
  withTempDir((folder) => {
    const path = `${folder}/a.vhd`;
    createFixed(path, { sizeBytes: 4 * MIB, sparse: true });
    const { type, sizeBytes, maxSizeBytes, blocks, allocatedBlocks, blockSizeBytes } = openVhd(
      path,
    );
    assert.deepEqual([type, sizeBytes, maxSizeBytes], ["fixed", 4 * MIB, 4 * MIB]);
    assert.deepEqual([blocks, allocatedBlocks, blockSizeBytes], [null, null, null]);
    return Promise.resolve();
  }));

Deno.test("a chain: its layers down to a raw image, and where it breaks off", () =>
  withTempDir((folder) => {
    const [raw, base, top] = ["raw", "base.vhd", "top.vhd"].map((name) => `${folder}/${name}`);
    Deno.writeFileSync(raw, new Uint8Array(4 * MIB));
    snapshot(base, { parent: raw, rawParent: true });
    snapshot(top, { parent: base, keepEmptyParent: true });
    const disk = openDisk(top, { writable: true });
    disk.write(new Uint8Array(512).fill(1), 0);
    disk.close();
    const whole = openVhd(top);
    assert.deepEqual(whole.layers, [top, base, raw]);
    assert.equal(whole.allocatedBlocks, 1);
    const { uuid } = openVhd(base);
    assert.deepEqual(whole.parent, { raw: false, uuid, storedPath: "./base.vhd" });
    assert.deepEqual(openVhd(base).parent, { raw: true, uuid: null, storedPath: "./raw" });
    Deno.removeSync(base);
    const broken = openVhd(top);
    assert.deepEqual(broken.layers, [top]);
    assert.match(broken.chainError ?? "", /its parent is missing/);
    return Promise.resolve();
  }));

Deno.test("a description cannot be changed, and holds no file", () =>
  withTempDir((folder) => {
    const path = `${folder}/a.vhd`;
    createDynamic(path, { sizeBytes: 4 * MIB });
    snapshot(`${folder}/b.vhd`, { parent: path, keepEmptyParent: true });
    const before = [...Deno.readDirSync("/proc/self/fd")].length;
    const image = openVhd(`${folder}/b.vhd`);
    assert.equal([...Deno.readDirSync("/proc/self/fd")].length, before);
    for (const part of [image, image.layers, image.parent]) assert.ok(Object.isFrozen(part));
    return Promise.resolve();
  }));
