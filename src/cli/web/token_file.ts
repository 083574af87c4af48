import { Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { pathStatus } from "../../../ffi/paths.ts";
import { requireTrustedFile } from "../../files/trusted_path.ts";

/** The shortest token that is taken, characters. */
const LEAST_TOKEN = 16;
const MOST_FILE_BYTES = 4096;
const OTHERS_BITS = 0o077;

/**
 * The token in a file, which only its owner may read.
 *
 * @throws {SystemError} EPERM for a file that others can read or change, EINVAL for no token.
 */
export function readTokenFile(path: string): string {
  requireTrustedFile(path);
  const { kind, mode, sizeBytes } = pathStatus(path);
  const what = `Cannot use the token in ${path}`;
  if (kind !== "file") throw new SystemError(Errno.EINVAL, `${what} (it is no file)`);
  if ((mode & OTHERS_BITS) !== 0) {
    throw new SystemError(Errno.EPERM, `${what} (other users can read it)`, {
      hint: "change its mode to 0600",
    });
  }
  if (sizeBytes > MOST_FILE_BYTES) throw new SystemError(Errno.EINVAL, `${what} (it is too long)`);
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    throw systemError(error, what);
  }
  const token = text.split("\n")[0].trim();
  if (/^[\x21-\x7e]+$/.test(token) && token.length >= LEAST_TOKEN) return token;
  const hint = "its first line must have at least 16 printable characters without a space";
  throw new SystemError(Errno.EINVAL, what, { hint });
}
