import { SECTOR_BYTES } from "../../ffi/memory.ts";

/** How long a file is, and how much room it takes; null for what is no regular file. */
export interface FileSizes {
  readonly fileBytes: number | null;
  readonly roomBytes: number | null;
}

/** The sizes of a file. */
export function fileSizes(path: string): FileSizes {
  const { isFile, size, blocks } = Deno.statSync(path);
  if (!isFile) return { fileBytes: null, roomBytes: null };
  return { fileBytes: size, roomBytes: blocks === null ? null : blocks * SECTOR_BYTES };
}
