import { Errno, messageOf, SystemError, systemError } from "../../ffi/errno.ts";
import type { RbdPlace } from "../../ffi/rbd_client.ts";
import {
  createRbd,
  type RbdMaking,
  removeLeftRbd,
  removeRbd,
  renameRbd,
  sizeOfRbd,
} from "../../ffi/rbd_images.ts";
import { firstLayer } from "../driver/layers.ts";
import { rbdClones } from "../driver/rbd/clones.ts";
import { parseRbdName } from "../driver/rbd/rbd_name.ts";

/** An image on Ceph that is to be written. */
interface ImageToWrite {
  /** As tapdisk names it. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly making?: RbdMaking;
}

/** What a process that was killed leaves is removed when it is so old. */
const LEFT_SECONDS = 60;

/**
 * Writes an image on Ceph. A new one has a name of its own until it is whole and durable, and is removed
 * when that fails; one that exists is written in place. What processes before have left of an image of the
 * same name, and nobody has open, is removed.
 *
 * @param write Writes to the image of this name; whether it is new.
 * @param leftSeconds How old what is left must be.
 * @throws {SystemError} EEXIST when another image got the name meanwhile; EINVAL for one that exists and
 * is to have something other than the defaults.
 */
export async function writeOnCeph<Result>(
  { name, sizeBytes, making }: ImageToWrite,
  write: (target: string, isNew: boolean) => Promise<Result>,
  leftSeconds = LEFT_SECONDS,
): Promise<Result> {
  const { path } = firstLayer(name);
  const place = parseRbdName(path, { readOnly: false });
  if (place.snapshot !== null) {
    throw new SystemError(Errno.EROFS, `Cannot write to ${name} (it is a snapshot)`);
  }
  if (sizeOfRbd(place) !== null) {
    if (making === undefined) return await write(name, false);
    const what = `Cannot write to ${name} (it exists, and its objects and its data pool stay)`;
    throw new SystemError(Errno.EEXIST, what);
  }
  const image = draftOf(place.image);
  const draft = { ...place, image, title: `rbd:${rbdClones.nameOf(path, image)}` };
  createRbd(draft, sizeBytes, making);
  try {
    removeLeft(draft, place.image, leftSeconds);
    const result = await write(draft.title, true);
    renameRbd(draft, place.image);
    return result;
  } catch (error) {
    throw removed(draft, error);
  }
}

/** The name of an image until it is whole. */
function draftOf(image: string): string {
  return `${image}.${crypto.getRandomValues(new Uint8Array(8)).toHex()}.part`;
}

function isDraftOf(name: string, image: string): boolean {
  return name.startsWith(image) && /^\.[0-9a-f]{16}\.part$/.test(name.slice(image.length));
}

/** Removes what earlier processes left. A user who may not do that makes an image all the same. */
function removeLeft(draft: RbdPlace, image: string, olderSeconds: number): void {
  const isOne = (name: string): boolean => name !== draft.image && isDraftOf(name, image);
  try {
    removeLeftRbd(draft, { isOne, olderSeconds });
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}

/** Removes what is not whole; returns the error, with what stays. */
function removed(draft: RbdPlace, error: unknown): unknown {
  try {
    removeRbd(draft);
    return error;
  } catch (failure) {
    const { errno, message } = systemError(error, `Cannot write to ${draft.title}`);
    const both = `${message}; ${messageOf(failure)}`;
    return new SystemError(errno, both, { message: both, cause: error });
  }
}
