import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import {
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
  PLAT_CODE_WI2K,
} from "../../src/vhd/format/locator.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { unresolvedParent } from "../../src/vhd/image/parent.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { changeParent } from "../../src/vhd/modify.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { type ForeignImage, type ForeignLocator, putForeignImage } from "../support/foreign_vhd.ts";
import { killEverywhere } from "../support/kill_everywhere.ts";
import { getFile } from "../support/vhd.ts";

const SIZE = 4 << 20;
const BLOCKS = { 0: "x", 5: "y", 63: "z" };

/** A child of `/v/a.vhd` to be relinked to `/v/sub/b.vhd`, the same disk with another UUID. */
function family(child: Partial<ForeignImage>): SimulatedDisk {
  const storage = new SimulatedDisk();
  const blocks = { 1: "p", 5: "q" };
  const uuid = putForeignImage(storage, "/v/a.vhd", { blocks });
  putForeignImage(storage, "/v/sub/b.vhd", { blocks: { 1: "r" } });
  const parent = { uuid, name: "a.vhd" };
  putForeignImage(storage, "/v/c.vhd", { blocks: BLOCKS, parent, ...child });
  return storage;
}

function contentOf(storage: SimulatedDisk): string {
  const chain = openChain("/v/c.vhd", { storage });
  const bytes = new Uint8Array(SIZE);
  readRange(chain, bytes, 0);
  chain.close();
  let text = "";
  for (let at = 0; at < SIZE; at += 65536) text += String.fromCharCode(bytes[at] || 46);
  return text;
}

const OLD: ForeignLocator = { code: PLAT_CODE_W2RU, path: "./a.vhd" };
const UNREAD: ForeignLocator = { code: PLAT_CODE_WI2K, bytes: new Uint8Array(100).fill(0x41) };

const CHILDREN: [string, Partial<ForeignImage>][] = [
  ["no locators, a block behind the BAT at once", {}],
  ["no locators and no blocks: the footer is in the way", { blocks: {} }],
  ["small blocks, so that several are in the way", {
    blockSizeBytes: 4096,
    blocks: { 0: "x", 1: "x", 80: "y", 81: "y" },
  }],
  ["a locator that nobody reads", { locators: [UNREAD] }],
  ["eight of them", { locators: Array.from({ length: 8 }, () => UNREAD) }],
  ["a locator whose room makes no sense", { locators: [{ ...OLD, dataSpace: 0xffff_fe00 }] }],
  ["a locator that lies in the BAT", { locators: [{ ...OLD, dataOffset: 1536n }] }],
  ["a locator that lies in a block", { locators: [{ ...OLD, dataOffset: 9000n }] }],
  ["a locator that alone leads to the parent", {
    locators: [OLD, UNREAD],
    header: (header) => header.parentName = new Uint8Array(512),
  }],
  ["a locator behind the file", { locators: [{ ...OLD, dataOffset: 1n << 40n }] }],
];

Deno.test("a child without locators of use gets some, without a journal, whenever it is killed", () => {
  for (const [what, child] of CHILDREN) {
    const origin = family(child);
    const before = contentOf(origin);
    const done = origin.copy();
    changeParent("/v/c.vhd", { storage: done, parent: "/v/sub/b.vhd" });
    const after = contentOf(done);
    assert.notEqual(after, before);
    killEverywhere(
      origin,
      (storage) => changeParent("/v/c.vhd", { storage, parent: "/v/sub/b.vhd" }),
      (storage, finished) => {
        const content = contentOf(storage);
        assert.ok(content === after || (!finished && content === before), what);
        const { valid, findings } = checkImage("/v/c.vhd", { storage, ignoreFooter: !finished });
        assert.ok(valid, `${what}: ${JSON.stringify(findings)}`);
        if (!finished) return;
        const image = openVhd("/v/c.vhd", { storage });
        assert.equal(unresolvedParent(image), "./sub/b.vhd");
        assert.deepEqual(image.locatorFaults, []);
        const ours = [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU];
        const codes = image.header?.locators.map(({ code }) => code) ?? [];
        assert.ok(ours.every((code) => codes.includes(code)), what);
      },
    );
  }
});

Deno.test("with a journal too, and what is broken off goes back to the byte", () => {
  for (const [what, child] of CHILDREN) {
    const origin = family(child);
    const original = getFile(origin, "/v/c.vhd");
    killEverywhere(
      origin,
      (storage) => changeParent("/v/c.vhd", { storage, parent: "/v/sub/b.vhd", journal: "/j" }),
      (storage, finished) => {
        if (storage.exists("/j")) revertJournal("/v/c.vhd", { storage, journal: "/j" });
        // Once the journal is marked as complete, the change is complete, before the call returns.
        const isOld = Buffer.compare(getFile(storage, "/v/c.vhd"), original) === 0;
        if (isOld && !finished) return;
        assert.equal(contentOf(storage)[1], "r", what);
        assert.equal(unresolvedParent(openVhd("/v/c.vhd", { storage })), "./sub/b.vhd", what);
        const { valid, findings } = checkImage("/v/c.vhd", { storage });
        assert.ok(valid, `${what}: ${JSON.stringify(findings)}`);
      },
    );
  }
});

Deno.test("a full disk leaves a child without locators as it was", () => {
  for (const [what, child] of CHILDREN) {
    const origin = family(child);
    const original = getFile(origin, "/v/c.vhd");
    for (let failing = 1; failing <= 2; failing++) {
      const storage = origin.copy();
      let writes = 0;
      storage.beforeOperation = ({ kind }) =>
        kind === "write" && ++writes === failing ? Errno.ENOSPC : 0;
      try {
        changeParent("/v/c.vhd", { storage, parent: "/v/sub/b.vhd" });
        assert.ok(failing > 1, what);
      } catch (error) {
        assert.ok(error instanceof SystemError && error.errno === Errno.ENOSPC, String(error));
      }
      const { valid } = checkImage("/v/c.vhd", { storage });
      assert.ok(valid, what);
      if (failing === 1) {
        assert.ok(Buffer.compare(getFile(storage, "/v/c.vhd"), original) === 0, what);
      }
    }
  }
});
