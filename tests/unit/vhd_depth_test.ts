import assert from "node:assert/strict";
import { ancestorPaths } from "../../src/vhd/check/check.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { MAX_CHAIN_DEPTH } from "../../src/vhd/image/chain_walk.ts";
import { VhdChainError } from "../../src/vhd/image/errors.ts";
import { changeParent } from "../../src/vhd/modify.ts";
import { PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1 << 20;

/** Creates images `/0` to `/<layers - 1>`, each the parent of the next; `/0` may be raw. */
function makeChain(layers: number, { raw = false }: { raw?: boolean } = {}): SimulatedDisk {
  const storage = new SimulatedDisk();
  let uuid = new Uint8Array(16);
  if (raw) putFile(storage, "/0", new Uint8Array(2 * MIB));
  else uuid = putForeignImage(storage, "/0", { sizeBytes: 2 * MIB });
  for (let i = 1; i < layers; i++) {
    const parent = { uuid, name: `${i - 1}` };
    const locators = [{ code: PLAT_CODE_W2RU, path: `./${i - 1}` }];
    uuid = putForeignImage(storage, `/${i}`, { sizeBytes: 2 * MIB, parent, locators });
  }
  return storage;
}

function assertLoop(run: () => unknown, text: RegExp): void {
  assert.throws(run, (error) => {
    assert.ok(error instanceof VhdChainError, String(error));
    assert.equal(error.errno, 40);
    assert.match(error.message, text);
    assert.doesNotMatch(error.message, /symbolic/);
    return true;
  });
}

Deno.test("a snapshot is refused when nothing could open it for its depth", () => {
  for (const raw of [false, true]) {
    const storage = makeChain(MAX_CHAIN_DEPTH, { raw });
    const top = `/${MAX_CHAIN_DEPTH - 1}`;
    const chain = openChain(top, { storage });
    assert.equal(chain.depth, MAX_CHAIN_DEPTH);
    chain.close();
    assert.equal(ancestorPaths(top, { storage }).length, MAX_CHAIN_DEPTH - (raw ? 2 : 1));
    const attempt = (): void => snapshot("/s", { storage, parent: top, keepEmptyParent: true });
    assertLoop(attempt, /more than 256 layers/);
    assert.equal(storage.exists("/s"), false);
  }
});

Deno.test("a snapshot of an image with a missing parent is still made", () => {
  const storage = makeChain(3);
  storage.remove("/0");
  snapshot("/s", { storage, parent: "/2", keepEmptyParent: true });
});

Deno.test("another parent may not make a chain too deep, or a circle", () => {
  const storage = makeChain(MAX_CHAIN_DEPTH);
  snapshot("/c", { storage, parent: "/0", keepEmptyParent: true });
  const before = getFile(storage, "/c");
  const relink = (child: string, parent: string) => (): void => {
    changeParent(child, { storage, parent });
  };
  assertLoop(relink("/c", `/${MAX_CHAIN_DEPTH - 1}`), /more than 256 layers/);
  assert.deepEqual(getFile(storage, "/c"), before);
  assertLoop(relink("/5", "/9"), /leads back to \/5/);
  relink("/c", `/${MAX_CHAIN_DEPTH - 2}`)();
  openChain("/c", { storage }).close();
});
