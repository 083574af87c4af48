import { isEscapedByte } from "../../ffi/names.ts";

/**
 * What must not reach a terminal or a log as it is: control characters (C0, DEL, C1), which move the
 * cursor, begin lines and command the terminal; line and paragraph separators; Unicode's Bidi_Control
 * characters, which show text in another order than it has; and lone surrogates, which stand for bytes
 * that are no UTF-8 (see `ffi/names.ts`).
 */
const UNPRINTABLE = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Cs}]/gu;

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
 * Text as one line of printable characters, for people: names of files come from images, folders and
 * other processes, and hold anything. All ordinary text stays as it is, a backslash too; JSON is the
 * output for those who need names exactly.
 *
 * - `\n`, `\r`, `\t`, `\x1b`: a control character
 * - `\xe4`: a byte that is no UTF-8
 * - `\u202e`: a control character beyond ASCII
 */
export function plainText(text: string): string {
  return text.replace(UNPRINTABLE, escapeOf);
}

/** Text of several lines, each of which becomes plain; for texts whose line ends are our own. */
export function plainLines(text: string): string {
  return text.split("\n").map(plainText).join("\n");
}

/**
 * JSON without unprintable characters: within its strings they are written as escapes, which mean the
 * same. Spaces and line ends between its parts stay.
 */
export function plainJson(json: string): string {
  return json.replace(
    UNPRINTABLE,
    (character) => isSpace(character) ? character : `\\u${hex(character.charCodeAt(0), 4)}`,
  );
}

/** Space between the parts of JSON; within a string it is always an escape. */
function isSpace(character: string): boolean {
  return character === "\n" || character === "\r" || character === "\t";
}
