/**
 * Where tap-ctl, tapdisk and blktap print. Everything passes here, so that no name of a file and no
 * message that holds one can act upon the terminal or look like a line of its own.
 *
 * @module
 */
import { plainLines, plainText } from "../log/plain_text.ts";
import { type JsonLayout, jsonText } from "./json.ts";

/** A line for standard output. */
export function printLine(line: string): void {
  console.log(plainText(line));
}

/** Text of several lines that is our own, for standard output; the last line's end is added. */
export function printText(text: string): void {
  console.log(plainLines(text));
}

/** JSON for standard output. */
export function printJson(value: unknown, layout?: JsonLayout): void {
  console.log(jsonText(value, layout).trimEnd());
}

/** A line for standard error. */
export function printErrorLine(line: string): void {
  console.error(plainText(line));
}

/** Text of several lines that is our own, for standard error. */
export function printErrorText(text: string): void {
  console.error(plainLines(text));
}

/** Writes an error that commander found, for its `outputError`: the words in it are the caller's. */
export function writeError(text: string, write: (text: string) => void): void {
  write(`${plainText(text.replace(/\n$/, ""))}\n`);
}
