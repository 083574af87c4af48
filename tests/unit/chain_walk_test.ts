/**
 * All code that follows a chain has the same limits and opens exactly the parent that a child was
 * created from.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { coalesce } from "../../src/bulk/coalesce.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import type { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { ancestorPaths } from "../../src/vhd/check/check.ts";
import { fillImage } from "../../src/vhd/fill.ts";
import { PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { MAX_CHAIN_DEPTH } from "../../src/vhd/image/chain_walk.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { putForeignImage } from "../support/foreign_vhd.ts";
import { Simulation } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

const SIZE_BYTES = 1 << 20;

/** Creates images `/0` to `/<layers - 1>`, each the parent of the next. */
function makeChain(storage: SimulatedDisk, layers: number): string {
  let uuid = putForeignImage(storage, "/0", { sizeBytes: SIZE_BYTES, blocks: { 0: "a" } });
  for (let i = 1; i < layers; i++) {
    const parent = { uuid, name: `${i - 1}` };
    const locators = [{ code: PLAT_CODE_W2RU, path: `./${i - 1}` }];
    uuid = putForeignImage(storage, `/${i}`, { sizeBytes: SIZE_BYTES, parent, locators });
  }
  return `/${layers - 1}`;
}

type Follower = (simulation: Simulation, top: string) => unknown;

/** The functions that open images to read through them. */
const READERS: Readonly<Record<string, Follower>> = {
  "opening a chain": ({ disk }, path) => openChain(path, { storage: disk }).close(),
  "filling": ({ disk }, path) => fillImage(path, { storage: disk }),
  "copying": ({ disk }, path) => copyImage(path, "/copy", { makeContext: disk.bulkContext() }),
  "coalescing into the last ancestor": ({ disk }, path) =>
    coalesce(path, { ancestor: "/0", makeContext: disk.bulkContext() }),
  "coalescing into a new image": ({ disk }, path) =>
    coalesce(path, { output: "/merged", oldest: "/0", makeContext: disk.bulkContext() }),
  "serving": (simulation, path) => simulation.open(`vhd:${path}`).close(),
};
const FOLLOWERS: Readonly<Record<string, Follower>> = {
  ...READERS,
  "checking ancestors": ({ disk }, path) => ancestorPaths(path, { storage: disk }),
  "a snapshot": ({ disk }, path) => snapshot("/s", { storage: disk, parent: path }),
};

async function assertFails(
  run: () => unknown,
  { errno, text }: { errno: number; text: RegExp },
): Promise<void> {
  await assert.rejects(
    async () => await run(),
    (error) => error instanceof SystemError && error.errno === errno && text.test(error.message),
  );
}

for (const [what, follow] of Object.entries(FOLLOWERS)) {
  Deno.test(`${what}: a chain of one layer too many is ELOOP`, async () => {
    const simulation = new Simulation({ seed: 1 });
    const top = makeChain(simulation.disk, MAX_CHAIN_DEPTH + 1);
    await assertFails(() => follow(simulation, top), {
      errno: Errno.ELOOP,
      text: /more than 256 layers/,
    });
    simulation.close();
  });

  Deno.test(`${what}: a chain that leads back, by the same name or another, is ELOOP`, async () => {
    for (const byAnotherName of [false, true]) {
      const simulation = new Simulation({ seed: 1 });
      const { disk } = simulation;
      makeChain(disk, 3);
      // The parent of /1 is /2, with the UUID that /1 was created from.
      const child = { uuid: new Uint8Array(16).fill(7), name: "2" };
      const locators = [{ code: PLAT_CODE_W2RU, path: byAnotherName ? "./link" : "./2" }];
      const footer = (fields: { uuid: Uint8Array }): unknown => fields.uuid = child.uuid;
      const loop = { sizeBytes: SIZE_BYTES, parent: child, footer };
      const one = [{ code: PLAT_CODE_W2RU, path: "./1" }];
      putForeignImage(disk, "/1", { ...loop, locators });
      putForeignImage(disk, "/2", { ...loop, parent: { ...child, name: "1" }, locators: one });
      if (byAnotherName) disk.link("/2", "/link");
      await assertFails(() => follow(simulation, "/2"), {
        errno: Errno.ELOOP,
        text: /leads back to \/(2|link)/,
      });
      simulation.close();
    }
  });
}

/** Follows a chain of two whose parent is replaced when it is opened for the nth time. */
async function followExchanged(
  follow: Follower,
  exchange: (disk: SimulatedDisk) => void,
  nth: number,
): Promise<{ exchanged: boolean; errno: number }> {
  const simulation = new Simulation({ seed: 1 });
  const { disk } = simulation;
  const top = makeChain(disk, 2);
  let opened = 0;
  disk.beforeOperation = ({ kind, path }): void => {
    if (kind !== "open" || path !== "/0" || ++opened !== nth) return;
    const hook = disk.beforeOperation;
    disk.beforeOperation = null;
    exchange(disk);
    disk.beforeOperation = hook;
  };
  let errno = 0;
  try {
    await follow(simulation, top);
  } catch (error) {
    assert.ok(error instanceof SystemError, String(error));
    errno = error.errno;
  }
  disk.beforeOperation = null;
  simulation.close();
  return { exchanged: opened >= nth, errno };
}

/** Other contents in the same file, and another file under the same name. */
const EXCHANGES: Readonly<Record<string, (disk: SimulatedDisk) => void>> = {
  "another image in the same file": (disk) => {
    putForeignImage(disk, "/other", { sizeBytes: SIZE_BYTES, blocks: { 0: "x" } });
    putFile(disk, "/0", getFile(disk, "/other"));
  },
  "a copy of it with another UUID": (disk) => {
    putForeignImage(disk, "/other", { sizeBytes: SIZE_BYTES, blocks: { 0: "x" } });
    disk.rename("/other", "/0");
  },
};

for (const [what, follow] of Object.entries(READERS)) {
  for (const [exchange, put] of Object.entries(EXCHANGES)) {
    Deno.test(`${what}: ${exchange}, put there after the parent was found, is refused`, async () => {
      let refused = 0;
      for (let nth = 1;; nth++) {
        const { exchanged, errno } = await followExchanged(follow, put, nth);
        if (!exchanged) break;
        if (errno === 0) continue;
        // EBUSY: the replacement is refused because the parent is already locked.
        assert.ok(
          [Errno.EINVAL, Errno.ESTALE, Errno.EBUSY].some((one) => one === errno),
          `${errno}`,
        );
        refused++;
        assert.equal(refused, nth, "an exchange was not noticed");
      }
      assert.ok(refused >= 2, `${refused}`);
    });
  }
}
