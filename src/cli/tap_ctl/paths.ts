import { workingFolder } from "../../../ffi/paths.ts";

/** A path from the root. A relative one is relative to the folder of this process. */
export function absolutePath(path: string): string {
  return path.startsWith("/") ? path : `${workingFolder()}/${path}`;
}
