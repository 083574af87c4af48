/**
 * Copies and merges of whole images.
 *
 * @module
 */
import { SystemError } from "../../../../ffi/errno.ts";
import type { InContext } from "../../../../src/bulk/bulk_context.ts";
import { coalesce, type CoalesceOptions } from "../../../../src/bulk/coalesce.ts";
import { copyImage } from "../../../../src/bulk/copy.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { hold, refusalOf } from "./finding.ts";
import { pick } from "./mutations.ts";
import { readOffline, requireSame } from "./readings.ts";
import type { Subject } from "./subject.ts";
import { FOLDER } from "./worlds.ts";

const NEW = `${FOLDER}/new.vhd`;
/** Disks beyond this size are not moved. */
const MOST_MOVED_BYTES = 64 * 1024 * 1024;
/** Room in the queue, which is enough for blocks of 64 KiB. */
const OPERATIONS = 16_384;

async function attemptLater<T>(work: Promise<T>): Promise<T | SystemError> {
  try {
    return await work;
  } catch (error) {
    return refusalOf(error);
  }
}

/** A context on the simulated disk, with a smaller queue than for blocks of 64 MiB. */
function contextOf({ disk }: Subject): InContext {
  const make = disk.bulkContext();
  return { makeContext: (operations) => make(Math.min(OPERATIONS, operations)) };
}

/** Whether moving the data of this image is quick. */
function isSmall({ content }: Subject): boolean {
  return content === null || content.sizeBytes <= MOST_MOVED_BYTES;
}

/** `copy`: the copy reads as the image does. */
export async function copy(subject: Subject): Promise<void> {
  const { path, stage, disk, content } = subject;
  if (!isSmall(subject)) return;
  const end = await attemptLater(copyImage(path, NEW, contextOf(subject)));
  requireOnlyNew(subject);
  if (end instanceof SystemError) {
    hold(!disk.exists(NEW), "A copy that failed leaves a file");
    if (content !== null && !content.isEncrypted) {
      hold(false, () => `It is read, but not copied: ${end.message}`);
    }
  } else if (content !== null) {
    const made = readOffline(disk, NEW, content.sizeBytes);
    if (made instanceof SystemError) hold(false, `A copy is refused: ${made.message}`);
    requireSame(made.bytes, content.bytes, "A copy");
    subject.requireNoNewFault("copy, of the copy", NEW);
  } else hold(false, `It is copied, but not read: ${subject.verdict}`);
  stage.watch.start();
}

/** A copy is written under a name of its own first. */
function requireOnlyNew({ stage, disk, paths }: Subject): void {
  stage.watch.requireNotWritten(...paths);
  const left = disk.paths.find((path) => path.endsWith(".part"));
  hold(left === undefined, () => `${left} is left`);
}

/** `coalesce`: the image reads as before, and so does its parent, as the image. */
export async function merge(subject: Subject, random: Random): Promise<void> {
  const { path, paths, stage, disk, content } = subject;
  if (!isSmall(subject)) return;
  const options: CoalesceOptions = pick(random, [
    {},
    { sparse: true },
    { ancestor: pick(random, paths) },
    { output: NEW },
    { output: NEW, oldest: pick(random, paths) },
  ]);
  const end = await attemptLater(coalesce(path, { ...options, ...contextOf(subject) }));
  if (options.output !== undefined) requireOnlyNew(subject);
  else stage.watch.requireNotWritten(path);
  subject.requireKept("coalesce");
  if (end instanceof SystemError || content === null) return;
  const target = options.output ?? options.ancestor;
  if (target === undefined) return;
  const made = readOffline(disk, target, content.sizeBytes);
  if (made instanceof SystemError) return;
  if (options.output !== undefined) requireSame(made.bytes, content.bytes, "A merged image");
}
