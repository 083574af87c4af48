import { Errno, SystemError } from "../../ffi/errno.ts";

/** An image's name in parts. */
export interface ImageName {
  /** A driver's name, such as `vhd`. */
  readonly type: string;
  /** All that follows the colon: a file's path, the name of another image, or what the driver knows. */
  readonly path: string;
}

/** What the text behind `TYPE:` names. */
export interface Named {
  /** A file, by its path; another image, by its name; or something that only the driver knows. */
  readonly kind: "file" | "image" | "other";
  /** Where in the text that name begins. What stands before it are settings of the driver. */
  readonly at: number;
}

/** All of the text is a file's path. */
export const NAMES_FILE: Named = { kind: "file", at: 0 };
/** All of the text is the name of another image. */
export const NAMES_IMAGE: Named = { kind: "image", at: 0 };
/** The text names no file, and no image. */
export const NAMES_OTHER: Named = { kind: "other", at: 0 };

/**
 * The parts of an image's name, `TYPE:PATH`: all up to the first colon names the driver, and what
 * follows is the driver's. A driver that stands in front of another image has that image's name
 * there, so `log:bc:vhd:/disk.vhd` is a log of writes over a cache over a VHD.
 *
 * @param example What a name would look like, for the error.
 * @throws {SystemError} EINVAL for a name without a type or a path.
 */
export function parseImageName(name: string, example = "vhd:/disk.vhd"): ImageName {
  const colon = name.indexOf(":");
  if (colon <= 0 || colon === name.length - 1) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot open ${JSON.stringify(name)}: an image is named TYPE:PATH, such as ${example}`,
    );
  }
  return { type: name.slice(0, colon), path: name.slice(colon + 1) };
}
