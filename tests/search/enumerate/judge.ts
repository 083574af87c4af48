/**
 * What a user does after a power cut or an error, and what must be true then.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SystemError } from "../../../ffi/errno.ts";
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";
import { checkQcow2 } from "../../../src/qcow2/check.ts";
import { repairQcow2 } from "../../../src/qcow2/repair.ts";
import { openQcow2 } from "../../../src/qcow2/image/image.ts";
import { checkImage } from "../../../src/vhd/check/check.ts";
import { repairImage } from "../../../src/vhd/repair.ts";
import { revertJournal } from "../../../src/vhd/resize/journal_revert.ts";
import { isAllocated } from "../../../src/vhd/image/block.ts";
import { openVhd } from "../../../src/vhd/image/image.ts";
import { writeRange } from "../../../src/vhd/write.ts";
import { stampedSectors } from "../../support/sim.ts";
import { BLOCK, BLOCKS, SECTOR } from "./images.ts";
import type { Operation } from "./operation.ts";
import { isQcow2, isRaw, type Range, readDisk, requireVersion } from "./versions.ts";

/** A missing footer is no error of an image: it opens by its backup. */
const FOOTER_LINE = /^wrote the footer from the/;
/** A batmap has several sectors, which a power cut may tear. It is a hint. */
const BATMAP_LINE = /^rebuilt the batmap from the bitmaps/;
/**
 * In a block that is in the table, data comes before its bits, and there is no sync between the two.
 * So a sector may have data, and no bit yet.
 */
const EARLY_DATA = /^sector \S+ of block \S+ has data where bitmap is clear$/;

/** What is known of a disk that is judged. */
export interface Moment extends Range {
  /** Whether the operation has ended well. Then all is in order without any recovery. */
  readonly done: boolean;
}

/** Recovers the images, and judges them. Returns what `repair` did. */
export function judge(disk: SimulatedDisk, operation: Operation, moment: Moment): string[] {
  const { images, made } = operation;
  revertIfThere(disk, operation, moment.done);
  const paths = made !== undefined && moment.done ? [...images, made] : images;
  const repairs: string[] = [];
  for (const path of paths) {
    if (isQcow2(path)) {
      // What was damaged before may still be.
      if (operation.damage !== undefined && !moment.done) repairQcow2(path, { storage: disk });
      requireSound(disk, path);
    }
    if (!isQcow2(path) && !isRaw(path)) {
      repairs.push(...putInOrder(disk, path, { operation, moment }));
    }
    requireVersion(disk, operation, { path, range: moment });
  }
  if (moment.done) operation.verify?.(disk);
  return repairs;
}

/** A QCOW2 needs no repair: at most clusters are lost that nothing refers to. */
function requireSound(disk: SimulatedDisk, path: string): void {
  const image = openQcow2(path, { storage: disk });
  const { errors } = checkQcow2(image);
  image.close();
  assert.deepEqual(errors, [], path);
}

/**
 * Writes to the image before a journal is reverted, as a tapdisk does that starts after a power cut,
 * and requires that a revert undoes nothing of it. An image that a change has put out of use is
 * refused.
 */
export function writeBeforeRevert(photo: SimulatedDisk, operation: Operation): boolean {
  const { journal } = operation;
  if (journal === undefined || !photo.exists(journal.path)) return false;
  using disk = photo.copy();
  const blocks: number[] = [];
  const stamped = (block: number): Uint8Array<ArrayBuffer> =>
    new Uint8Array(stampedSectors(block * BLOCK, 1, 0x99));
  try {
    const image = openVhd(journal.image, { storage: disk, readOnly: false });
    // In blocks that are there: no footer is written for them.
    for (let block = 0; block < BLOCKS; block++) {
      if (image.type !== "fixed" && !isAllocated(image, block)) continue;
      writeRange(image, stamped(block), block * BLOCK * SECTOR);
      blocks.push(block);
    }
    image.file.sync();
    image.close();
  } catch (error) {
    if (error instanceof SystemError) return false;
    throw error;
  }
  revertIfThere(disk, operation, false);
  const bytes = readDisk(disk, journal.image);
  for (const block of blocks) {
    const at = block * BLOCK * SECTOR;
    const what = "A revert undid a write that came after the power cut";
    assert.deepEqual(bytes.subarray(at, at + SECTOR), stamped(block), what);
  }
  return true;
}

/** Requires that an image passes all checks, after a repair that the promises allow for. */
function putInOrder(
  disk: SimulatedDisk,
  path: string,
  { operation, moment }: { operation: Operation; moment: Moment },
): string[] {
  const { repairs, damage } = operation;
  if (errorsOf(disk, path, { moment }).length === 0) return [];
  const errors = errorsOf(disk, path, { moment, ignoreFooter: !moment.done });
  assert.ok(!moment.done, `The operation has ended, and ${errors.join()}`);
  if (errors.length === 0) requireVersion(disk, operation, { path, range: moment });
  const lines = repairImage(path, { storage: disk });
  for (const line of lines) {
    const isExpected = damage !== undefined || FOOTER_LINE.test(line) || repairs?.test(line) ||
      (moment.cut && BATMAP_LINE.test(line));
    assert.ok(isExpected, `An unexpected repair of ${path}, which has "${errors}": ${line}`);
  }
  const left = errorsOf(disk, path, { moment });
  assert.deepEqual(left, [], `after the repair of ${path}, which had "${errors}"`);
  return lines;
}

function errorsOf(
  disk: SimulatedDisk,
  path: string,
  { moment, ignoreFooter = false }: { moment: Moment; ignoreFooter?: boolean },
): string[] {
  const options = { storage: disk, ignoreTimestamps: true, checkData: true, ignoreFooter };
  return checkImage(path, options).findings
    .filter(({ severity, message }) =>
      severity === "error" && (moment.done || !EARLY_DATA.test(message))
    )
    .map(({ message }) => message);
}

function revertIfThere(disk: SimulatedDisk, { journal }: Operation, done: boolean): void {
  if (journal === undefined || !disk.exists(journal.path)) return;
  assert.ok(!done, "The operation has ended, and its journal is there");
  revertJournal(journal.image, { storage: disk, journal: journal.path });
}
