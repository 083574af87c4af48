import { Errno, SystemError } from "../../ffi/errno.ts";
import { type FileInName, fileInName, firstLayer } from "../driver/layers.ts";
import type { ImageKind } from "./kind.ts";
import { kindNames, kindOf } from "./kinds.ts";

/** An image whose file is known, and what can be done with images of its type. */
export interface KnownImage extends FileInName {
  readonly kind: ImageKind;
}

/** The name of an image as tapdisk has it. `raw:` stands for `aio:`. */
export function imageName(name: string): string {
  return name.startsWith("raw:") ? `aio:${name.slice(4)}` : name;
}

/**
 * Takes the name of an image apart, which must be a file of a type that work is done on.
 *
 * @param work The work, for the error: `make`, `check`.
 * @throws {SystemError} EINVAL for another type, or a filter in front of an image.
 */
export function knownImage(name: string, work: string): KnownImage {
  const file = fileInName(name);
  const kind = kindOf(firstLayer(name).type);
  if (file !== null && kind !== null && file.above === "") return { ...file, kind };
  const what = `Cannot ${work} an image named ${name}`;
  throw new SystemError(Errno.EINVAL, `${what} (it must be a file of a type of ${kindNames()})`);
}
