/**
 * The power is cut at each operation of each offline command, and different parts of the unsynced
 * changes survive. Afterwards an image opens, if necessary after `revert` or `repair`; `check`
 * finds no error; all data that was synced before can be read. A change that a command has reported
 * as done is present.
 *
 * @module
 */
import { Buffer } from "node:buffer";
import assert from "node:assert/strict";
import { SystemError } from "../../ffi/errno.ts";
import { coalesce } from "../../src/bulk/coalesce.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { changesOnly, DeadProcessError, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { createDynamic, createFixed } from "../../src/vhd/create.ts";
import { fillImage, preallocate } from "../../src/vhd/fill.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { readRange } from "../../src/vhd/image/read.ts";
import { KEYHASH_BYTES, readKeyhash, storeKeyhash } from "../../src/vhd/key.ts";
import { changeParent, killData } from "../../src/vhd/modify.ts";
import { repairImage } from "../../src/vhd/repair.ts";
import { revertJournal } from "../../src/vhd/resize/journal_revert.ts";
import { growWithinMetadata, resizeVhd } from "../../src/vhd/resize/resize.ts";
import { setField } from "../../src/vhd/set_fields.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { getFile, putFile } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const BLOCK = 2 * MIB;
const DISK = 4 * BLOCK;
const JOURNAL = "/journal";
/** How many different choices of surviving changes are tested for each operation. */
const CHOICES = 3;

/** The contents of an image: a number for each block, read at the place where it is written. */
type Content = readonly number[];

interface Scenario {
  readonly name: string;
  /** Creates the initial images; {@linkcode makeFamily} by default. */
  readonly make?: (storage: SimulatedDisk) => void;
  readonly run: (storage: SimulatedDisk) => unknown;
  /** The images that exist before and after. */
  readonly images: readonly string[];
  /** An image that the command creates. */
  readonly made?: string;
  /** Images whose contents may change to the contents after the command. */
  readonly changes?: readonly string[];
  /** The number of choices when {@linkcode CHOICES} are not enough. */
  readonly choices?: number;
  /** A line of the output of `repair`, necessary after some cuts. */
  readonly repair?: RegExp;
  /** Throws unless the change of the command is present. */
  readonly verify?: (storage: SimulatedDisk) => void;
}

function fillBlock(storage: SimulatedDisk, path: string, block: number, value: number): void {
  const image = openVhd(path, { storage, readOnly: false });
  writeRange(image, new Uint8Array(4096).fill(value), block * BLOCK);
  finishWriting(image);
  image.close();
}

/** Two bases, and a child of the first; block n of each image has different contents. */
function makeFamily(storage: SimulatedDisk): void {
  for (const [path, value] of [["/a.vhd", 10], ["/b.vhd", 20]] as const) {
    createDynamic(path, { storage, sizeBytes: DISK });
    fillBlock(storage, path, 0, value);
    fillBlock(storage, path, 1, value + 1);
  }
  snapshot("/c.vhd", { storage, parent: "/a.vhd" });
  fillBlock(storage, "/c.vhd", 1, 31);
  fillBlock(storage, "/c.vhd", 2, 32);
}

function makeFixed(storage: SimulatedDisk): void {
  createFixed("/f.vhd", { storage, sizeBytes: DISK, sparse: true });
  const file = storage.open("/f.vhd", "write");
  file.writeAt(new Uint8Array(4096).fill(7), BLOCK);
  file.sync();
  file.close();
}

function makeReserve(storage: SimulatedDisk): void {
  createDynamic("/r.vhd", { storage, sizeBytes: DISK, reserveBytes: 4 * DISK });
  fillBlock(storage, "/r.vhd", 1, 41);
}

/** The first byte of each block and the first byte after its written part. */
function contentOf(storage: SimulatedDisk, path: string): Content {
  const chain = openChain(path, { storage });
  try {
    const found: number[] = [];
    const bytes = new Uint8Array(512);
    for (let block = 0; block < DISK / BLOCK; block++) {
      for (const inBlock of [0, 4096 - 512, 4096]) {
        readRange(chain, bytes, block * BLOCK + inBlock);
        assert.ok(bytes.every((byte) => byte === bytes[0]), `block ${block} of ${path}`);
        found.push(bytes[0]);
      }
    }
    return found;
  } finally {
    chain.close();
  }
}

function sizeOf(storage: SimulatedDisk, path: string): number {
  const image = openVhd(path, { storage });
  image.close();
  return image.sizeBytes;
}

const LONG = `/${"folder/".repeat(60)}b.vhd`;

/** Opens files as if a tapdisk served them. */
function besideTapdisk<Result>(storage: SimulatedDisk, work: () => Result): Result {
  const open = storage.open.bind(storage);
  Object.defineProperty(storage, "open", {
    configurable: true,
    value: (...args: Parameters<typeof open>) =>
      Object.defineProperty(open(...args), "isShared", { value: true }),
  });
  try {
    return work();
  } finally {
    Reflect.deleteProperty(storage, "open");
  }
}

function hiddenOf(storage: SimulatedDisk, path: string): boolean {
  const image = openVhd(path, { storage });
  image.close();
  return image.hidden;
}

function parentOf(storage: SimulatedDisk, path: string): string | undefined {
  const image = openVhd(path, { storage });
  image.close();
  return image.parent?.name;
}

function filled(value: number): Uint8Array {
  return new Uint8Array(KEYHASH_BYTES).fill(value);
}

const FAMILY = ["/a.vhd", "/b.vhd", "/c.vhd"];

/** A resize that a power cut interrupted, with its journal. */
function makeBrokenResize(storage: SimulatedDisk): void {
  makeFamily(storage);
  let changes = 0;
  storage.beforeOperation = changesOnly(({ path }) => path === "/a.vhd" && ++changes > 9 ? 5 : 0);
  try {
    resizeVhd("/a.vhd", { storage, sizeBytes: 2000 * DISK, journal: JOURNAL });
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
  storage.beforeOperation = null;
  assert.ok(storage.exists(JOURNAL));
}

const SCENARIOS: readonly Scenario[] = [
  {
    name: "create",
    run: (storage) => createDynamic("/new.vhd", { storage, sizeBytes: DISK }),
    images: FAMILY,
    made: "/new.vhd",
  },
  {
    name: "create a fixed image",
    run: (storage) => createFixed("/new.vhd", { storage, sizeBytes: DISK, sparse: true }),
    images: FAMILY,
    made: "/new.vhd",
  },
  {
    name: "snapshot",
    run: (storage) => snapshot("/new.vhd", { storage, parent: "/c.vhd" }),
    images: FAMILY,
    made: "/new.vhd",
  },
  {
    name: "modify -p",
    run: (storage) => changeParent("/c.vhd", { storage, parent: "/b.vhd" }),
    images: FAMILY,
    changes: ["/c.vhd"],
    choices: 8,
    repair: /header/,
    verify: (storage) => assert.equal(parentOf(storage, "/c.vhd"), "b.vhd"),
  },
  {
    name: "modify -p beside a tapdisk",
    run: (storage) =>
      besideTapdisk(storage, () => changeParent("/c.vhd", { storage, parent: "/b.vhd" })),
    images: FAMILY,
    changes: ["/c.vhd"],
    choices: 8,
    repair: /header/,
    verify: (storage) => assert.equal(parentOf(storage, "/c.vhd"), "b.vhd"),
  },
  {
    name: "modify -p of an image without blocks",
    make: (storage) => {
      makeFamily(storage);
      snapshot("/e.vhd", { storage, parent: "/a.vhd" });
    },
    run: (storage) => changeParent("/e.vhd", { storage, parent: "/b.vhd" }),
    images: [...FAMILY, "/e.vhd"],
    changes: ["/e.vhd"],
    choices: 8,
    repair: /header/,
    verify: (storage) => assert.equal(parentOf(storage, "/e.vhd"), "b.vhd"),
  },
  {
    name: "modify -p with a journal",
    make: (storage) => {
      makeFamily(storage);
      createDynamic(LONG, { storage, sizeBytes: DISK });
      fillBlock(storage, LONG, 0, 50);
    },
    run: (storage) => changeParent("/c.vhd", { storage, parent: LONG, journal: JOURNAL }),
    images: [...FAMILY, LONG],
    changes: ["/c.vhd"],
    verify: (storage) => assert.equal(contentOf(storage, "/c.vhd")[0], 50),
  },
  {
    name: "modify -z",
    run: (storage) => killData("/c.vhd", { storage }),
    images: FAMILY,
    changes: ["/c.vhd"],
  },
  {
    name: "set hidden",
    run: (storage) => setField("/a.vhd", { storage, field: "hidden", value: 1 }),
    images: FAMILY,
    verify: (storage) => assert.equal(hiddenOf(storage, "/a.vhd"), true),
  },
  {
    name: "set marker",
    run: (storage) => setField("/a.vhd", { storage, field: "marker", value: 1 }),
    images: FAMILY,
  },
  {
    name: "key",
    run: (storage) => storeKeyhash("/a.vhd", { storage, nonce: filled(3), hash: filled(4) }),
    make: (storage) => createDynamic("/a.vhd", { storage, sizeBytes: DISK }),
    images: ["/a.vhd"],
    verify: (storage) => assert.ok(readKeyhash("/a.vhd", { storage }) !== null),
  },
  {
    name: "resize within the metadata",
    make: makeReserve,
    run: (storage) => growWithinMetadata("/r.vhd", { storage, sizeBytes: 2 * DISK }),
    images: ["/r.vhd"],
    verify: (storage) => assert.equal(sizeOf(storage, "/r.vhd"), 2 * DISK),
  },
  {
    name: "resize with a journal",
    run: (storage) => resizeVhd("/a.vhd", { storage, sizeBytes: 2000 * DISK, journal: JOURNAL }),
    images: ["/a.vhd"],
    verify: (storage) => assert.equal(sizeOf(storage, "/a.vhd"), 2000 * DISK),
  },
  {
    name: "resize of a fixed image",
    make: makeFixed,
    run: (storage) => resizeVhd("/f.vhd", { storage, sizeBytes: 2 * DISK, journal: JOURNAL }),
    images: ["/f.vhd"],
    verify: (storage) => assert.equal(sizeOf(storage, "/f.vhd"), 2 * DISK),
  },
  {
    name: "revert",
    make: makeBrokenResize,
    run: (storage) => revertJournal("/a.vhd", { storage, journal: JOURNAL }),
    images: FAMILY,
    verify: (storage) => assert.equal(sizeOf(storage, "/a.vhd"), DISK),
  },
  {
    name: "repair of a footer",
    make: (storage) => {
      makeFamily(storage);
      const file = storage.open("/a.vhd", "write");
      file.writeAt(new Uint8Array(512).fill(9), file.sizeBytes() - 512);
      file.sync();
      file.close();
    },
    run: (storage) => void repairImage("/a.vhd", { storage }),
    images: FAMILY,
  },
  {
    name: "fill",
    run: (storage) => fillImage("/c.vhd", { storage }),
    images: FAMILY,
  },
  {
    name: "fill -b",
    run: (storage) => preallocate("/c.vhd", { storage }),
    images: FAMILY,
  },
  {
    name: "coalesce",
    run: (storage) => coalesce("/c.vhd", { makeContext: storage.bulkContext() }),
    images: ["/b.vhd", "/c.vhd"],
    verify: (storage) => assert.equal(contentOf(storage, "/a.vhd")[3], 31),
  },
  {
    name: "coalesce -o",
    run: (storage) =>
      coalesce("/c.vhd", { output: "/new.vhd", makeContext: storage.bulkContext() }),
    images: FAMILY,
    made: "/new.vhd",
  },
  {
    name: "copy",
    run: (storage) => copyImage("/c.vhd", "/new.vhd", { makeContext: storage.bulkContext() }),
    images: FAMILY,
    made: "/new.vhd",
  },
];

/** Opens an image, after a repair if necessary; returns its contents. */
function recovered(storage: SimulatedDisk, path: string, repairs?: string[]): Content {
  if (!checkImage(path, { storage, ignoreTimestamps: true }).valid) {
    const lines = repairImage(path, { storage });
    repairs?.push(...lines);
  }
  const { valid, findings } = checkImage(path, {
    storage,
    ignoreTimestamps: true,
    checkData: true,
  });
  assert.ok(valid, JSON.stringify(findings));
  return contentOf(storage, path);
}

interface Wanted {
  readonly before: ReadonlyMap<string, Content>;
  readonly after: ReadonlyMap<string, Content>;
}

interface Look {
  readonly wanted: Wanted;
  /** Whether the command had ended. */
  readonly done: boolean;
  /** Receives the output of `repair`. */
  readonly repairs: string[];
}

/** The user's steps after a power cut, and checks of the result. */
function look(storage: SimulatedDisk, scenario: Scenario, { wanted, done, repairs }: Look): void {
  const { images, made, changes = [] } = scenario;
  if (storage.exists(JOURNAL)) {
    assert.ok(!done, "a journal is gone for good when success has been reported");
    revertJournal(images.includes("/c.vhd") && changes.length > 0 ? "/c.vhd" : images[0], {
      storage,
      journal: JOURNAL,
    });
  }
  for (const path of images) {
    const content = recovered(storage, path, repairs);
    const before = wanted.before.get(path);
    const after = wanted.after.get(path);
    if (done) assert.deepEqual(content, after, path);
    else if (!changes.includes(path)) assert.deepEqual(content, before, path);
    else {
      // Each block has the old or the new contents.
      content.forEach((value, i) => assert.ok([before?.[i], after?.[i]].includes(value), path));
    }
  }
  if (!done) return;
  if (made !== undefined) assert.deepEqual(recovered(storage, made), wanted.after.get(made));
  scenario.verify?.(storage);
}

function contents(storage: SimulatedDisk, paths: readonly string[]): Map<string, Content> {
  return new Map(paths.map((path) => [path, contentOf(storage, path)]));
}

async function wantedOf(origin: SimulatedDisk, { run, images, made }: Scenario): Promise<Wanted> {
  using after = origin.copy();
  // An image with an interrupted change cannot be read before it is reverted.
  const before = contents(origin, origin.exists(JOURNAL) ? [] : images);
  await run(after);
  const found = contents(after, made === undefined ? images : [...images, made]);
  for (const [path, content] of found) if (!before.has(path)) before.set(path, content);
  return { before, after: found };
}

/** Runs with a power cut before operation `n`; returns whether the command ended before that. */
async function cutAt(storage: SimulatedDisk, n: number, { run }: Scenario): Promise<boolean> {
  let count = 0;
  storage.beforeOperation = changesOnly(() => {
    if (++count > n) storage.cutPower();
  });
  let done = true;
  try {
    await run(storage);
  } catch (error) {
    if (!(error instanceof DeadProcessError)) throw error;
    done = false;
  }
  storage.beforeOperation = null;
  if (done) storage.cutPower();
  storage.powerOn();
  return done;
}

for (const scenario of SCENARIOS) {
  const { name, make = makeFamily, choices = CHOICES } = scenario;
  Deno.test(`power cut at each operation: ${name}`, async () => {
    using origin = new SimulatedDisk({ seed: 7, powerCuts: true });
    make(origin);
    for (const path of origin.paths) {
      const file = origin.open(path, "write");
      file.sync();
      file.close();
    }
    const wanted = await wantedOf(origin, scenario);
    const repairs: string[] = [];
    let done = false;
    for (let n = 0; !done; n++) {
      for (let choice = 0; choice < choices; choice++) {
        using storage = origin.copy();
        done = await cutAt(storage, n, scenario);
        try {
          look(storage, scenario, { wanted, done, repairs });
        } catch (error) {
          throw new Error(`The power was cut at operation ${n} (${choice})`, { cause: error });
        }
      }
    }
    const { repair } = scenario;
    if (repair !== undefined) assert.ok(repairs.some((line) => repair.test(line)), repairs.join());
  });
}

/**
 * Opens an image like a tapdisk that starts after a power cut, and writes; false if it is refused.
 */
function writeIfItOpens(storage: SimulatedDisk, path: string): boolean {
  try {
    fillBlock(storage, path, 3, 99);
    return true;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    return false;
  }
}

Deno.test("what is written to an image after a power cut in a resize is there after a revert", async () => {
  for (const make of [makeFamily, makeFixed]) {
    using origin = new SimulatedDisk({ seed: 3, powerCuts: true });
    make(origin);
    const path = make === makeFixed ? "/f.vhd" : "/a.vhd";
    const run = (storage: SimulatedDisk): void =>
      resizeVhd(path, {
        storage,
        sizeBytes: path === "/f.vhd" ? 2 * DISK : 2000 * DISK,
        journal: JOURNAL,
      });
    let written = 0;
    let done = false;
    for (let n = 0; !done; n++) {
      for (let choice = 0; choice < 4; choice++) {
        using storage = origin.copy();
        done = await cutAt(storage, n, { name: "", run, images: [] });
        const wrote = writeIfItOpens(storage, path);
        if (storage.exists(JOURNAL)) revertJournal(path, { storage, journal: JOURNAL });
        const content = recovered(storage, path);
        assert.equal(content[9], wrote ? 99 : 0, `operation ${n}`);
        if (wrote) written++;
      }
    }
    assert.ok(written > 4, `${written} times`);
  }
});

Deno.test("a journal that is found again after its resize undoes nothing", () => {
  using storage = new SimulatedDisk();
  makeFamily(storage);
  let journal = new Uint8Array();
  storage.beforeOperation = ({ kind, path }) => {
    if (kind !== "write" || path !== "/a.vhd" || journal.length > 0) return;
    storage.beforeOperation = null;
    journal = getFile(storage, JOURNAL);
  };
  resizeVhd("/a.vhd", { storage, sizeBytes: 2000 * DISK, journal: JOURNAL });
  assert.ok(journal.length > 0);
  fillBlock(storage, "/a.vhd", 1000, 99);
  const wanted = getFile(storage, "/a.vhd");
  putFile(storage, JOURNAL, journal);
  revertJournal("/a.vhd", { storage, journal: JOURNAL });
  assert.ok(!storage.exists(JOURNAL));
  assert.ok(Buffer.compare(getFile(storage, "/a.vhd"), wanted) === 0);
});
