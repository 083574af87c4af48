/**
 * Arguments from standard input. The runtime ends the program with status 101, before its first line
 * runs, when an argument is not UTF-8. File names can be any bytes, so the programs accept arguments on
 * standard input too.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { decodeName } from "../../ffi/names.ts";

/** The option that the arguments on standard input replace. */
export const STDIN_ARGUMENTS = "--stdin-args";

/** The description in `--help`. */
export const STDIN_ARGUMENTS_SUMMARY =
  "insert the arguments on standard input, each ended by a NUL byte";

/** The description in manual pages and overviews. */
export const STDIN_ARGUMENTS_NOTE =
  `An argument that is not UTF-8 ends the program with status 101. For a file name
that is not UTF-8, give ${STDIN_ARGUMENTS} in its place and the name on standard
input, ended by a NUL byte`;

/** Splits arguments that each end with a NUL byte. The last one may end without it. */
export function splitArguments(bytes: Uint8Array): string[] {
  const found: string[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(0, at);
    const stop = end < 0 ? bytes.length : end;
    found.push(decodeName(bytes.subarray(at, stop)));
    at = stop + 1;
  }
  return found;
}

/**
 * Replaces {@linkcode STDIN_ARGUMENTS} by the arguments on standard input. After `--` it is an ordinary
 * word.
 *
 * @param read Reads standard input to its end. Called only if the option is given.
 * @throws {SystemError} EINVAL when it is given twice.
 */
export function withStdinArguments(args: readonly string[], read: () => Uint8Array): string[] {
  const end = args.indexOf("--");
  const options = end < 0 ? args : args.slice(0, end);
  const at = options.indexOf(STDIN_ARGUMENTS);
  if (at < 0) return [...args];
  if (options.includes(STDIN_ARGUMENTS, at + 1)) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot read the arguments: ${STDIN_ARGUMENTS} is given twice`,
    );
  }
  return [...args.slice(0, at), ...splitArguments(read()), ...args.slice(at + 1)];
}

/** Reads standard input to its end. */
export function readStandardInput(): Uint8Array {
  const parts: Uint8Array[] = [];
  for (;;) {
    const part = new Uint8Array(65536);
    const length = Deno.stdin.readSync(part);
    if (length === null) break;
    parts.push(part.subarray(0, length));
  }
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
