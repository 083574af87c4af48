import { workingFolder } from "../../../ffi/paths.ts";
import { describeTypes, fileInName } from "../../driver/layers.ts";

/** What `--help` says of images' names. */
export function imagesHelp(): string {
  return `Images, of which IMAGE is any:\n\n  ${describeTypes().join("\n  ")}`;
}

/**
 * An image with an absolute path. A relative path is relative to the folder of this process; a tapdisk
 * runs in the root folder.
 */
export function absoluteImage(args: string): string {
  const file = fileInName(args);
  if (file === null || file.path.startsWith("/")) return args;
  return `${file.head}${workingFolder()}/${file.path}`;
}
