/**
 * Operations of vhd-util and the library.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../../../ffi/errno.ts";
import { coalesce } from "../../../../src/bulk/coalesce.ts";
import { copyImage } from "../../../../src/bulk/copy.ts";
import { changesOnly, type SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { compactVhd } from "../../../../src/vhd/compact.ts";
import { createDynamic, createFixed } from "../../../../src/vhd/create.ts";
import { fillImage, preallocate } from "../../../../src/vhd/fill.ts";
import { HD_FOOTER_SIZE } from "../../../../src/vhd/format/footer.ts";
import { openVhd, type VhdImage } from "../../../../src/vhd/image/image.ts";
import { KEYHASH_BYTES, readKeyhash, storeKeyhash } from "../../../../src/vhd/key.ts";
import { changeParent, killData, setPhysicalSize } from "../../../../src/vhd/modify.ts";
import { repairImage } from "../../../../src/vhd/repair.ts";
import { revertJournal } from "../../../../src/vhd/resize/journal_revert.ts";
import { growWithinMetadata, resizeVhd } from "../../../../src/vhd/resize/resize.ts";
import { setField } from "../../../../src/vhd/set_fields.ts";
import { snapshot } from "../../../../src/vhd/snapshot.ts";
import { finishWriting, writeRange } from "../../../../src/vhd/write.ts";
import { putForeignImage } from "../../../support/foreign_vhd.ts";
import {
  BLOCK,
  BLOCKS,
  DISK_BYTES,
  IN_FILES,
  makeBases,
  makeChain,
  makeFixed,
  makeRawChain,
  makeSmall,
  namesIn,
  type Place,
  put,
  SECTOR,
} from "../images.ts";
import type { Operation } from "../operation.ts";

/** A line of `repair` for footers of which only the one at the end was changed, or only the other. */
const BACKUP_LINE = /^wrote the backup footer from the footer at the end/;
/** A line of `repair` for a header whose change was broken off. */
const HEADER_LINE = /^completed a change of the header/;

function look<Result>(disk: SimulatedDisk, path: string, see: (image: VhdImage) => Result): Result {
  const image = openVhd(path, { storage: disk });
  image.close();
  return see(image);
}

function requireSize(path: string, sizeBytes: number): (disk: SimulatedDisk) => void {
  return (disk) => assert.equal(look(disk, path, (image) => image.sizeBytes), sizeBytes);
}

function requireParent(path: string, parent: string): (disk: SimulatedDisk) => void {
  const name = parent.slice(parent.lastIndexOf("/") + 1);
  return (disk) => assert.equal(look(disk, path, (image) => image.parent?.name), name);
}

/** Writes zeros to a disk. */
function clear(disk: SimulatedDisk, path: string, sector: number, count: number): void {
  const image = openVhd(path, { storage: disk, readOnly: false });
  writeRange(image, new Uint8Array(count * SECTOR), sector * SECTOR);
  finishWriting(image);
  image.close();
}

/** The last sector at which the first block of an image may lie. */
function endOfFront({ endOfHeadersBytes }: VhdImage): number {
  return endOfHeadersBytes / SECTOR + BLOCK;
}

/** Overwrites a part of an image. */
function spoil(disk: SimulatedDisk, path: string, offset: (sizeBytes: number) => number): void {
  const file = disk.open(path, "write");
  file.writeAt(new Uint8Array(SECTOR).fill(9), offset(file.sizeBytes()));
  file.close();
}

/** Cuts an operation off at a call, at which it reports an error that it cannot undo. */
function breakOff(disk: SimulatedDisk, path: string, work: () => void, changes: number): void {
  let count = 0;
  disk.beforeOperation = changesOnly((call) => call.path === path && ++count > changes ? 5 : 0);
  try {
    work();
    assert.fail("It was not broken off");
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
  disk.beforeOperation = null;
}

/** A size whose table needs more sectors, so that blocks move. */
const GROWN_BYTES = 300 * BLOCK * SECTOR;

/** Operations that work on the chain of `makeChain`, in files and on block devices alike. */
function onChain(place: Place): Operation[] {
  const { base, other, child, made, journal } = namesIn(place);
  const chain = {
    make: (disk: SimulatedDisk): void => makeChain(disk, place),
    images: [base, child],
  };
  const family = { ...chain, images: [base, other, child] };
  const resized = { path: journal, image: base };
  const operations: Operation[] = [
    {
      name: "create",
      ...chain,
      run: (storage) => createDynamic(made, { storage, sizeBytes: 4 << 20 }),
      made,
    },
    {
      name: "snapshot",
      ...chain,
      run: (storage) => snapshot(made, { storage, parent: child }),
      made,
    },
    {
      name: "coalesce",
      ...chain,
      run: (disk) => coalesce(child, { makeContext: disk.bulkContext() }),
    },
    {
      name: "coalesce into a new image",
      ...family,
      run: (disk) => coalesce(child, { output: made, makeContext: disk.bulkContext() }),
      made,
    },
    {
      name: "copy",
      ...family,
      run: (disk) => copyImage(child, made, { makeContext: disk.bulkContext() }),
      made,
    },
    {
      name: "resize with a journal",
      ...chain,
      run: (storage) => resizeVhd(base, { storage, sizeBytes: GROWN_BYTES, journal }),
      journal: resized,
      verify: requireSize(base, GROWN_BYTES),
    },
    {
      name: "revert",
      ...chain,
      damage: (storage) => {
        const options = { storage, sizeBytes: GROWN_BYTES, journal };
        breakOff(storage, base, () => resizeVhd(base, options), 9);
        assert.ok(storage.exists(journal));
      },
      run: (storage) => revertJournal(base, { storage, journal }),
      again: (storage) => {
        if (storage.exists(journal)) revertJournal(base, { storage, journal });
      },
      journal: resized,
      verify: requireSize(base, DISK_BYTES),
    },
    {
      name: "modify -p",
      ...family,
      run: (storage) => changeParent(child, { storage, parent: other }),
      repairs: HEADER_LINE,
      verify: requireParent(child, other),
    },
    {
      name: "set hidden",
      ...chain,
      run: (storage) => setField(base, { storage, field: "hidden", value: 1 }),
      repairs: BACKUP_LINE,
      // On a full disk hidden goes into the backup alone.
      leavesOut: [Errno.ENOSPC],
      verify: (disk) => assert.equal(look(disk, base, ({ hidden }) => hidden), true),
    },
    {
      name: "set marker",
      ...chain,
      run: (storage) => setField(base, { storage, field: "marker", value: 3 }),
      verify: (disk) => assert.equal(look(disk, base, ({ batmap }) => batmap?.header.marker), 3),
    },
    {
      name: "kill data",
      ...chain,
      run: (storage) => killData(child, { storage }),
      verify: (disk) =>
        assert.ok(look(disk, child, ({ bat }) => bat.every((entry) => entry === 0xffff_ffff))),
    },
    {
      name: "compact",
      images: chain.images,
      make: (disk) => {
        makeChain(disk, place);
        clear(disk, base, 0, 2 * BLOCK);
      },
      run: (storage) => compactVhd(base, { storage }),
      // The first two blocks are gone, and the last one has taken their place.
      verify: (disk) =>
        assert.deepEqual(
          look(disk, base, (image) =>
            [...image.bat].map((entry) =>
              entry === 0xffff_ffff ? 0 : entry > endOfFront(image) ? 2 : 1
            )),
          [0, 0, 0, 1, 0, 0],
        ),
    },
    {
      name: "fill",
      ...chain,
      run: (storage) => fillImage(child, { storage }),
    },
    {
      name: "fill -b",
      ...chain,
      run: (storage) => preallocate(child, { storage }),
    },
    {
      name: "repair of a footer",
      ...chain,
      damage: (disk) => spoil(disk, base, (sizeBytes) => sizeBytes - HD_FOOTER_SIZE),
      run: (storage) => repairImage(base, { storage }),
    },
    {
      name: "repair of a batmap",
      ...chain,
      damage: (disk) =>
        spoil(disk, base, () => look(disk, base, ({ batmap }) => batmap?.offsetBytes ?? 0)),
      run: (storage) => repairImage(base, { storage }),
    },
  ];
  return operations.map((operation) => ({ ...operation, name: `${operation.name}, ${place}` }));
}

/** Opens files as if a tapdisk served them. */
function besideTapdisk<Result>(disk: SimulatedDisk, work: () => Result): Result {
  const open = disk.open.bind(disk);
  Object.defineProperty(disk, "open", {
    configurable: true,
    value: (...args: Parameters<typeof open>) =>
      Object.defineProperty(open(...args), "isShared", { value: true }),
  });
  try {
    return work();
  } finally {
    Reflect.deleteProperty(disk, "open");
  }
}

const { base, other, child, made, journal } = IN_FILES;
const inFiles = (disk: SimulatedDisk): void => makeChain(disk, "files");
const LONG = `/${"folder/".repeat(60)}b.vhd`;
const LONG_BLOCKS = 3;

function makeLong(disk: SimulatedDisk): void {
  inFiles(disk);
  createDynamic(LONG, { storage: disk, sizeBytes: DISK_BYTES });
  makeSmall(disk, LONG);
  put(disk, LONG, { sector: 0, count: LONG_BLOCKS * BLOCK, stamp: 0x60 });
}

/** A child as another program leaves it: no locators, and blocks right behind the metadata. */
function makeForeignChild(disk: SimulatedDisk): void {
  makeBases(disk, "files");
  const uuid = look(disk, base, ({ footer }) => footer.uuid);
  putForeignImage(disk, child, {
    sizeBytes: DISK_BYTES,
    blockSizeBytes: BLOCK * SECTOR,
    blocks: { 1: "q", 3: "r", 5: "s" },
    parent: { uuid, name: "a.vhd" },
  });
}

const AROUND: readonly Operation[] = [
  {
    name: "create a fixed image",
    make: inFiles,
    run: (storage) => createFixed(made, { storage, sizeBytes: DISK_BYTES, sparse: true }),
    images: [base],
    made,
  },
  {
    name: "coalesce into a raw parent",
    make: makeRawChain,
    run: (disk) => coalesce(child, { makeContext: disk.bulkContext() }),
    images: ["/raw", child],
  },
  {
    name: "modify -p beside a tapdisk",
    make: inFiles,
    run: (storage) => besideTapdisk(storage, () => changeParent(child, { storage, parent: other })),
    // One that was cut may have left a single locator. New ones get room only while no tapdisk has
    // the image (EBUSY).
    again: (storage) => void changeParent(child, { storage, parent: other }),
    images: [base, other, child],
    repairs: HEADER_LINE,
    verify: requireParent(child, other),
  },
  {
    name: "modify -p of an image without blocks",
    make: (storage) => {
      inFiles(storage);
      snapshot("/e.vhd", { storage, parent: base });
    },
    run: (storage) => changeParent("/e.vhd", { storage, parent: other }),
    images: [base, other, "/e.vhd"],
    repairs: HEADER_LINE,
    verify: requireParent("/e.vhd", other),
  },
  {
    name: "modify -p with moved blocks",
    make: makeForeignChild,
    run: (storage) => changeParent(child, { storage, parent: other }),
    images: [base, other, child],
    repairs: HEADER_LINE,
    verify: requireParent(child, other),
  },
  {
    name: "modify -p with a journal",
    make: makeLong,
    run: (storage) => changeParent(child, { storage, parent: LONG, journal }),
    images: [base, LONG, child],
    journal: { path: journal, image: child },
    verify: requireParent(child, LONG),
  },
  {
    name: "resize within the metadata",
    make: (storage) => {
      createDynamic("/r.vhd", { storage, sizeBytes: DISK_BYTES });
      makeSmall(storage, "/r.vhd", { reserve: 2 * BLOCKS });
      put(storage, "/r.vhd", { sector: BLOCK, count: 3, stamp: 0x70 });
    },
    run: (storage) => growWithinMetadata("/r.vhd", { storage, sizeBytes: 2 * DISK_BYTES }),
    images: ["/r.vhd"],
    repairs: BACKUP_LINE,
    verify: requireSize("/r.vhd", 2 * DISK_BYTES),
  },
  {
    name: "resize of a fixed image",
    make: makeFixed,
    run: (storage) => resizeVhd("/f.vhd", { storage, sizeBytes: 2 * DISK_BYTES, journal }),
    images: ["/f.vhd"],
    journal: { path: journal, image: "/f.vhd" },
    verify: requireSize("/f.vhd", 2 * DISK_BYTES),
  },
  {
    name: "repair of a torn header",
    make: inFiles,
    // The change is broken off at the header, of which one sector is new.
    damage: (storage) => {
      let writes = 0;
      storage.beforeOperation = changesOnly(({ kind, offsetBytes }) => {
        if (kind !== "write" || offsetBytes !== SECTOR) return 0;
        return ++writes === 1 ? { does: "shorten", lengthBytes: SECTOR } : 5;
      });
      assert.throws(() => changeParent(child, { storage, parent: other }), SystemError);
      storage.beforeOperation = null;
    },
    run: (storage) => repairImage(child, { storage }),
    images: [base, other, child],
  },
  {
    name: "modify -s",
    make: inFiles,
    run: (storage) => setPhysicalSize(child, { storage, sizeBytes: 64 * 1024 }),
    images: [base, child],
  },
  {
    name: "key",
    make: (storage) => createDynamic(base, { storage, sizeBytes: DISK_BYTES }),
    run: (storage) =>
      storeKeyhash(base, {
        storage,
        nonce: new Uint8Array(KEYHASH_BYTES).fill(3),
        hash: new Uint8Array(KEYHASH_BYTES).fill(4),
      }),
    images: [base],
    verify: (storage) => assert.ok(readKeyhash(base, { storage }) !== null),
  },
];

/** The operations of vhd-util and the library. */
export const OFFLINE: readonly Operation[] = [
  ...onChain("files"),
  ...onChain("devices"),
  ...AROUND,
];
