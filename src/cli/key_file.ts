import { pathExists, pathStatus } from "../../ffi/paths.ts";

const OTHERS_BITS = 0o077;

/** A warning about a key file that users other than its owner can access, or null. */
export function keyFileWarning(path: string): string | null {
  if (!pathExists(path)) return null;
  const { kind, mode } = pathStatus(path);
  if (kind !== "file" || (mode & OTHERS_BITS) === 0) return null;
  const octal = mode.toString(8).padStart(4, "0");
  return `Warning: the key file ${path} has mode ${octal}, which gives access to other users; ` +
    "change the mode to 0600";
}
