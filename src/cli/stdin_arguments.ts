/**
 * Arguments that the command line cannot carry. The runtime ends the program, with status 101 and
 * before its first line, when an argument is not UTF-8. Names of files can be any bytes, so the programs
 * take arguments from standard input, too.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";
import { decodeName } from "../../ffi/names.ts";

/** Stands for the arguments on standard input, in the place where it is given. */
export const STDIN_ARGUMENTS = "--stdin-args";

/** What `--help` says of it, in short. */
export const STDIN_ARGUMENTS_SUMMARY =
  "in its place come arguments from standard input, each ended by a NUL";

/** What manuals and overviews say of it. */
export const STDIN_ARGUMENTS_NOTE =
  `An argument that is not UTF-8 ends the program with status 101 before it starts. Where the name of a
file is not, give ${STDIN_ARGUMENTS} in its place, and the name on standard input, ended by a NUL`;

/** The arguments in bytes of which each is ended by a NUL; the last one need not be. */
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
 * Puts the arguments of standard input in the place of {@linkcode STDIN_ARGUMENTS}; behind `--` that is
 * an ordinary word.
 *
 * @param read Reads standard input to its end; not called where nothing asks for it.
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
      `Cannot read the arguments: ${STDIN_ARGUMENTS} comes twice`,
    );
  }
  return [...args.slice(0, at), ...splitArguments(read()), ...args.slice(at + 1)];
}

/** All of standard input. */
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
