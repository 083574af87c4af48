import { pathStatus } from "../../ffi/paths.ts";

/** How long a file is, and how much room it takes; null for what is no regular file. */
export interface FileSizes {
  readonly fileBytes: number | null;
  readonly roomBytes: number | null;
}

/** The sizes of a file. */
export function fileSizes(path: string): FileSizes {
  const { kind, sizeBytes, blocksBytes } = pathStatus(path);
  if (kind !== "file") return { fileBytes: null, roomBytes: null };
  return { fileBytes: sizeBytes, roomBytes: blocksBytes };
}
