import { isEscapedByte } from "../../ffi/names.ts";

/**
 * Characters that must be escaped for a terminal or a log: control characters (C0, DEL, C1), which
 * control the terminal and start new lines; line and paragraph separators; Unicode's Bidi_Control
 * characters, which change the order of the text on the screen; and lone surrogates, which stand for
 * bytes that are not UTF-8 (see `ffi/names.ts`).
 *
 * That is \p{Cc}, \p{Zl}, \p{Zp}, \p{Bidi_Control} and \p{Cs}. By these names, the runtime would look
 * the characters up when it reads this file, which takes a millisecond of every run of tap-ctl.
 */
const UNPRINTABLE =
  // deno-lint-ignore no-control-regex
  /[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu;

const SHORT_ESCAPES: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

function escapeOf(character: string): string {
  const unit = character.charCodeAt(0);
  const short = SHORT_ESCAPES[character];
  if (short !== undefined) return short;
  if (isEscapedByte(unit)) return `\\x${hex(unit & 0xff, 2)}`;
  return unit < 0x80 ? `\\x${hex(unit, 2)}` : `\\u${hex(unit, 4)}`;
}

/**
 * Text as one line of printable characters, for people. Names of files come from images, folders and
 * other processes, and may have any bytes. Ordinary text is not changed, nor is a backslash; JSON
 * output has names exactly.
 *
 * - `\n`, `\r`, `\t`, `\x1b`: a control character
 * - `\xe4`: a byte that is not UTF-8
 * - `\u202e`: a control character beyond ASCII
 */
export function plainText(text: string): string {
  return text.replace(UNPRINTABLE, escapeOf);
}

/** Text of several lines, each as {@linkcode plainText} makes it. */
export function plainLines(text: string): string {
  return text.split("\n").map(plainText).join("\n");
}

/**
 * JSON without unprintable characters: within strings they become escapes with the same meaning.
 * Spaces and line ends between the parts stay.
 */
export function plainJson(json: string): string {
  return json.replace(
    UNPRINTABLE,
    (character) => isSpace(character) ? character : `\\u${hex(character.charCodeAt(0), 4)}`,
  );
}

/** Space between the parts of JSON; within a string it is always escaped. */
function isSpace(character: string): boolean {
  return character === "\n" || character === "\r" || character === "\t";
}
