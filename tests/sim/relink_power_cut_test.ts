import assert from "node:assert/strict";
import { changesOnly, DeadProcessError, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { Random } from "../../src/testing/random.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { changeParent } from "../../src/vhd/modify.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type ForeignImage, putForeignImage } from "../support/foreign_vhd.ts";
import { syncFile } from "../support/vhd.ts";

Deno.test("a power cut while an image without blocks is relinked below a running disk", () => {
  using storage = new SimulatedDisk({ seed: 1, powerCuts: true });
  for (const path of ["/a.vhd", "/b.vhd"]) createDynamic(path, { storage, sizeBytes: 4 << 20 });
  snapshot("/child.vhd", { storage, parent: "/a.vhd", keepEmptyParent: true });
  for (const path of storage.paths) syncFile(storage, path);
  const tapdisk = storage.open("/child.vhd", "write");
  const repairs: string[] = [];
  const random = new Random(1);
  storage.beforeOperation = changesOnly(() => {
    for (let i = 0; i < 10; i++) {
      using photograph = storage.photograph(random);
      const options = { storage: photograph, ignoreTimestamps: true };
      if (!checkImage("/child.vhd", options).valid) {
        repairs.push(...repairImage("/child.vhd", { storage: photograph }));
      }
      const { valid, findings } = checkImage("/child.vhd", options);
      assert.ok(valid, JSON.stringify(findings));
    }
  });
  assert.equal(changeParent("/child.vhd", { storage, parent: "/b.vhd" }), true);
  storage.beforeOperation = null;
  tapdisk.close();
  assert.ok(repairs.some((line) => line.includes("header")), repairs.join());
  const { valid, findings } = checkImage("/child.vhd", { storage, ignoreTimestamps: true });
  assert.ok(valid, JSON.stringify(findings));
});

Deno.test("a locator that leads nowhere is rewritten before one that leads to the parent", () => {
  using origin = new SimulatedDisk();
  putFamily(origin, {
    locators: [
      { code: PLAT_CODE_W2KU, path: "./a.vhd" },
      { code: PLAT_CODE_W2RU, path: "./nowhere.vhd" },
    ],
  });
  assertOpensWhenever(origin);
});

Deno.test("a locator that cannot be rewritten leads to the parent until the names change", () => {
  using origin = new SimulatedDisk();
  putFamily(origin, {
    locators: [
      { code: PLAT_CODE_MACX, path: "./nowhere.vhd" },
      { code: PLAT_CODE_MACX, path: "./child.vhd" },
      { code: PLAT_CODE_W2RU, path: "./a.vhd" },
      { code: 0x7856_3412, bytes: new Uint8Array(16) },
    ],
    header({ locators }) {
      locators[3] = { ...locators[2], code: locators[3].code };
    },
  });
  assertOpensWhenever(origin);
});

/** Two parents, and a child of the first that no name but those of locators leads to. */
function putFamily(storage: SimulatedDisk, child: ForeignImage): void {
  const parents = ["/a.vhd", "/b.vhd"].map((path) => putForeignImage(storage, path, {}));
  putForeignImage(storage, "/child.vhd", {
    parent: { uuid: parents[0], name: "other.vhd" },
    ...child,
  });
}

/** The child opens, whenever the process that gives it the other parent is killed. */
function assertOpensWhenever(origin: SimulatedDisk): void {
  let done = false;
  for (let left = 0; !done; left++) {
    using storage = origin.copy();
    let changes = 0;
    storage.beforeOperation = changesOnly(() => {
      if (++changes > left) storage.killProcesses();
    });
    try {
      changeParent("/child.vhd", { storage, parent: "/b.vhd" });
      done = true;
    } catch (error) {
      if (!(error instanceof DeadProcessError)) throw error;
    }
    storage.beforeOperation = null;
    openChain("/child.vhd", { storage }).close();
  }
}
