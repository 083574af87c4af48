import { Errno, SystemError } from "../../ffi/errno.ts";

/** An image's name in parts. */
export interface ImageName {
  /** A driver's name, such as `vhd`. */
  readonly type: string;
  /** What the driver makes of it: a file's path, or the whole name of another image below. */
  readonly path: string;
}

/**
 * The parts of an image's name, `type:path`: all up to the first colon names the driver, and what
 * follows is the driver's. A driver that stacks on another image has that image's name there, so
 * `log:bc:vhd:/disk.vhd` is a log of writes over a cache over a VHD.
 *
 * @throws {SystemError} EINVAL for a name without a type or a path.
 */
export function parseImageName(name: string): ImageName {
  const colon = name.indexOf(":");
  if (colon <= 0 || colon === name.length - 1) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open ${JSON.stringify(name)}: an image is named TYPE:PATH, such as vhd:/disk.vhd`,
    );
  }
  return { type: name.slice(0, colon), path: name.slice(colon + 1) };
}

/** The parts of `bc:[MIB:]TYPE:PATH` behind `bc:`; the size is null where it is left out. */
export function parseCachePath(path: string): { sizeMib: number | null; below: string } {
  const sized = /^(\d+):(.*)$/s.exec(path);
  return sized === null
    ? { sizeMib: null, below: path }
    : { sizeMib: Number(sized[1]), below: sized[2] };
}
