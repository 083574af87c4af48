/**
 * Printing for tap-ctl, tapdisk and blktap. Control characters are escaped, so a file name cannot act
 * on the terminal or look like a line of its own.
 *
 * @module
 */
import { plainLines, plainText } from "../log/plain_text.ts";
import { type JsonLayout, jsonText } from "./json.ts";

/** Prints a line to standard output. */
export function printLine(line: string): void {
  console.log(plainText(line));
}

/** Prints text of several lines, none of them from outside, to standard output. */
export function printText(text: string): void {
  console.log(plainLines(text));
}

/** Prints JSON to standard output. */
export function printJson(value: unknown, layout?: JsonLayout): void {
  console.log(jsonText(value, layout).trimEnd());
}

/** Prints a line to standard error. */
export function printErrorLine(line: string): void {
  console.error(plainText(line));
}

/** Prints text of several lines, none of them from outside, to standard error. */
export function printErrorText(text: string): void {
  console.error(plainLines(text));
}

/** The `outputError` of commander: its messages quote words of the command line. */
export function writeError(text: string, write: (text: string) => void): void {
  write(`${plainText(text.replace(/\n$/, ""))}\n`);
}
