import { freeBytes } from "../../../ffi/free_bytes.ts";

/** The room of the filesystem that a file is on. */
export interface Room {
  /** Where it is mounted; the file itself for a block device, which is all of its room. */
  readonly mount: string;
  readonly freeBytes: number | null;
}

/** The room that there is for a file. */
export function roomFor(path: string): Room {
  try {
    if (Deno.statSync(path).isBlockDevice) return { mount: path, freeBytes: null };
    return { mount: mountOf(path), freeBytes: freeBytes(path) };
  } catch {
    return { mount: path, freeBytes: null };
  }
}

/** The topmost folder above a file that is on the same filesystem. */
function mountOf(path: string): string {
  let at = Deno.realPathSync(path);
  const { dev } = Deno.statSync(at);
  while (at !== "/") {
    const above = at.slice(0, at.lastIndexOf("/")) || "/";
    if (Deno.statSync(above).dev !== dev) return at;
    at = above;
  }
  return at;
}
