import assert from "node:assert/strict";
import { checkImage } from "../../src/vhd/check/check.ts";
import { scanFast, scanFully } from "../../src/vhd/check/scan.ts";
import {
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
  PLAT_CODE_WI2K,
} from "../../src/vhd/format/locator.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { resolveParent } from "../../src/vhd/image/parent.ts";
import { VhdChainError } from "../../src/vhd/image/errors.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { resizeVhd } from "../../src/vhd/resize/resize.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { type ForeignLocator, putForeignImage } from "../support/foreign_vhd.ts";
import { Simulation } from "../support/sim.ts";
import { getFile, putFile } from "../support/vhd.ts";

const RELATIVE: ForeignLocator = { code: PLAT_CODE_W2RU, path: "./p.vhd" };

/** A parent and a child with the given locators. */
function family(
  locators: readonly ForeignLocator[],
  { name = "p.vhd", creatorApplication = "win " }: {
    name?: string;
    creatorApplication?: string;
  } = {},
): SimulatedDisk {
  const storage = new SimulatedDisk();
  const uuid = putForeignImage(storage, "/v/p.vhd", { blocks: { 0: "p" } });
  putForeignImage(storage, "/v/other.vhd", { blocks: { 0: "o" } });
  putForeignImage(storage, "/v/c.vhd", {
    blocks: { 1: "c" },
    parent: { uuid, name },
    locators,
    footer: (footer) => {
      footer.creatorApplication = creatorApplication;
      footer.creatorVersion = 0x0001_0001;
    },
  });
  return storage;
}

/** The letter at the start of the child's first and second block. */
function lettersOf(storage: SimulatedDisk): string {
  const chain = openChain("/v/c.vhd", { storage });
  const bytes = new Uint8Array(1);
  const letters = [0, 65536].map((at) => {
    readRange(chain, bytes, at);
    return String.fromCharCode(bytes[0]);
  });
  chain.close();
  return letters.join("");
}

function assertFound(storage: SimulatedDisk): void {
  assert.equal(lettersOf(storage), "pc");
  assert.equal(resolveParent(openVhd("/v/c.vhd", { storage })), "/v/p.vhd");
  assert.equal(scanFully(storage, "/v/c.vhd").parent, "/v/p.vhd");
  const { valid, findings } = checkImage("/v/c.vhd", { storage });
  assert.ok(valid, JSON.stringify(findings));
}

const ODD_LOCATORS: [string, ForeignLocator][] = [
  ["room that is no number of sectors", { ...RELATIVE, dataSpace: 600 }],
  ["no room", { ...RELATIVE, dataSpace: 0 }],
  ["room of 4 GiB", { ...RELATIVE, dataSpace: 0xffff_fe00 }],
  ["room past the end of the file", { ...RELATIVE, dataSpace: 200 }],
  ["no name", { ...RELATIVE, dataLength: 0 }],
  ["a name longer than its room", { ...RELATIVE, dataSpace: 1, dataLength: 600 }],
  ["a name of 4 GiB", { ...RELATIVE, dataLength: 0xffff_ffff }],
  ["a name before the header", { ...RELATIVE, dataOffset: 0n }],
  ["a name past the end of the file", { ...RELATIVE, dataOffset: 1n << 52n }],
  ["a name at the largest offset", { ...RELATIVE, dataOffset: (1n << 64n) - 1n }],
  ["an unaligned place", { ...RELATIVE, dataOffset: 1801n }],
  ["an unknown platform", { ...RELATIVE, code: 0x1234_5678, bytes: new Uint8Array(40) }],
  ["a name that leads nowhere", { ...RELATIVE, path: "./gone.vhd" }],
  ["a name of garbage", { ...RELATIVE, bytes: new Uint8Array(512).fill(0xd8) }],
  ["a file name instead of a URL", { code: PLAT_CODE_MACX, bytes: new Uint8Array(20).fill(65) }],
];

Deno.test("one odd locator does not make an image unusable, wherever it stands", () => {
  for (const [what, odd] of ODD_LOCATORS) {
    for (const locators of [[odd, RELATIVE], [RELATIVE, odd], [odd]]) {
      const storage = family(locators);
      assertFound(storage);
      const image = openVhd("/v/c.vhd", { storage, readOnly: false });
      writeRange(image, new Uint8Array(512).fill(0x77), 65536 * 9);
      finishWriting(image);
      assertFound(storage);
      assert.equal(scanFast(storage, "/v/c.vhd", { markers: true }).parent, "p.vhd", what);
    }
  }
});

Deno.test("a resize carries the names along and leaves out what makes no sense", () => {
  for (const [what, odd] of ODD_LOCATORS) {
    for (const locators of [[odd, RELATIVE], [odd]]) {
      const storage = family(locators, { creatorApplication: "tap\0" });
      resizeVhd("/v/c.vhd", { storage, sizeBytes: 64 << 20, journal: "/j" });
      assertFound(storage);
      const image = openVhd("/v/c.vhd", { storage });
      const faults = image.locatorFaults.filter(({ locator }) => locator.dataSpace > 0);
      assert.deepEqual(faults, [], what);
      assert.ok(getFile(storage, "/v/c.vhd").length < 2 << 20, what);
    }
  }
});

Deno.test("the live driver takes the same parent", () => {
  const stale: ForeignLocator = { code: PLAT_CODE_W2KU, path: "/v/other.vhd" };
  for (const locators of [[stale, RELATIVE], [stale], [], [ODD_LOCATORS[2][1]]]) {
    const simulation = new Simulation({ seed: 1, latencyMs: 1 });
    const files = family(locators);
    for (const path of ["/v/p.vhd", "/v/other.vhd", "/v/c.vhd"]) {
      putFile(simulation.disk, path, getFile(files, path));
    }
    const device = simulation.open("vhd:/v/c.vhd");
    const outcome = device.read(0, 1);
    device.settle();
    assert.equal(outcome.data?.[0], "p".charCodeAt(0));
    device.close();
    simulation.close();
  }
});

Deno.test("a wrong locator is a warning while the parent is found, and an error else", () => {
  for (const [what, odd] of ODD_LOCATORS) {
    const storage = family([odd]);
    const { findings } = checkImage("/v/c.vhd", { storage });
    assert.ok(findings.some(({ severity }) => severity === "warning"), what);
    storage.remove("/v/p.vhd");
    const without = checkImage("/v/c.vhd", { storage });
    assert.equal(without.valid, false, what);
    assert.ok(without.findings.every(({ severity }) => severity === "error"), what);
  }
});

Deno.test("a locator that leads to an image with another UUID is passed over", () => {
  const stale: ForeignLocator = { code: PLAT_CODE_W2KU, path: "/v/other.vhd" };
  for (const locators of [[stale, RELATIVE], [RELATIVE, stale], [stale]]) {
    assertFound(family(locators));
  }
  const junk = family([{ code: PLAT_CODE_W2KU, path: "./junk" }, RELATIVE]);
  putFile(junk, "/v/junk", new Uint8Array(8192));
  assertFound(junk);
});

Deno.test("without locators that can be read, the header's name beside the child counts", () => {
  assertFound(family([]));
  assertFound(family([{ code: PLAT_CODE_WI2K, bytes: new Uint8Array(30).fill(0x41) }]));
  assertFound(family([], { name: "C:\\images\\p.vhd" }));
  assertFound(family([], { name: "../../etc/p.vhd" }));
});

Deno.test("a header without a name is a warning while a locator leads to the parent", () => {
  for (const locators of [[RELATIVE], []]) {
    const storage = family(locators);
    const { uuid } = openVhd("/v/p.vhd", { storage }).footer;
    putForeignImage(storage, "/v/c.vhd", {
      blocks: { 1: "c" },
      parent: { uuid, name: "p.vhd" },
      locators,
      header: (header) => header.parentName = new Uint8Array(512),
    });
    const { valid, findings } = checkImage("/v/c.vhd", { storage });
    assert.equal(valid, locators.length > 0);
    assert.ok(findings.some(({ field }) => field === "header.parentName"));
    if (valid) assertFound(storage);
    else assert.throws(() => openChain("/v/c.vhd", { storage }), /names no parent/);
  }
});

Deno.test("the header's name counts only with the right UUID", () => {
  const storage = family([], { name: "other.vhd" });
  const refused = (options: { ignoreParentUuid?: boolean }): void =>
    assert.throws(
      () => openChain("/v/c.vhd", { storage, ...options }),
      (error) => error instanceof VhdChainError && /other\.vhd has UUID/.test(error.message),
    );
  refused({});
  refused({ ignoreParentUuid: true });
  assert.equal(checkImage("/v/c.vhd", { storage }).valid, false);
  for (const name of ["nothing.vhd", "..", "/"]) {
    assert.throws(
      () => openChain("/v/c.vhd", { storage: family([], { name }) }),
      (error) => error instanceof VhdChainError || error instanceof Error,
      name,
    );
  }
});

Deno.test("whoever does not ask for the UUID gets the right image first, else the first", () => {
  const stale: ForeignLocator = { code: PLAT_CODE_W2KU, path: "/v/other.vhd" };
  const both = family([stale, RELATIVE]);
  const any = (storage: SimulatedDisk): string =>
    resolveParent(openVhd("/v/c.vhd", { storage }), { anyUuid: true });
  assert.equal(any(both), "/v/p.vhd");
  both.remove("/v/p.vhd");
  assert.equal(any(both), "/v/other.vhd");
  assert.equal(openChain("/v/c.vhd", { storage: both, ignoreParentUuid: true }).depth, 2);
  assert.throws(() => openChain("/v/c.vhd", { storage: both }), /other\.vhd has UUID/);
});

Deno.test("a raw parent has no UUID: the first file that a locator leads to is it", () => {
  const storage = new SimulatedDisk();
  putFile(storage, "/v/p.raw", new Uint8Array(4 << 20).fill(0x72));
  const parent = { uuid: new Uint8Array(16), name: "p.raw" };
  putForeignImage(storage, "/v/c.vhd", {
    parent,
    locators: [{ code: PLAT_CODE_W2RU, path: "./gone" }, { code: PLAT_CODE_W2RU, path: "./p.raw" }],
  });
  assert.equal(resolveParent(openVhd("/v/c.vhd", { storage })), "/v/p.raw");
  putForeignImage(storage, "/v/c.vhd", { parent });
  assert.throws(() => openChain("/v/c.vhd", { storage }), /names no parent/);
});
