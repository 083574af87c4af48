import { pathExists, pathStatus } from "../../ffi/paths.ts";
import { Secret } from "../../ffi/secret.ts";

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

/** More than any key has, to notice one that is too long. */
const MOST_KEY_BYTES = 256;

/**
 * The bytes on standard input, a file or a pipe, as a key; at most 256. They are read straight into
 * memory for keys.
 */
export function keyFromStandardInput(): Secret {
  const input = new Secret(MOST_KEY_BYTES);
  let length = 0;
  while (length < input.bytes.length) {
    const got = Deno.stdin.readSync(input.bytes.subarray(length));
    if (got === null || got === 0) break;
    length += got;
  }
  const key = input.slice(0, length);
  input.release();
  return key;
}
