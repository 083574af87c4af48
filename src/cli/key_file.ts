import { pathExists, pathStatus } from "../../ffi/paths.ts";

const OTHERS_BITS = 0o077;

/** A warning about a file with a key that others than its owner may use; null when all is well. */
export function keyFileWarning(path: string): string | null {
  if (!pathExists(path)) return null;
  const { kind, mode } = pathStatus(path);
  if (kind !== "file" || (mode & OTHERS_BITS) === 0) return null;
  const octal = mode.toString(8).padStart(4, "0");
  return `Warning: others than its owner may use the key file ${path}, whose mode is ${octal}; ` +
    "make it 0600";
}
