/**
 * `src/cli/top`: what `tap-ctl top` shows. `view.ts` says what is on the screen after which key, `table.ts` and
 * `detail.ts` make lines of samples, `screen.ts` writes them. All but `screen.ts` are pure functions. The folder
 * must not ask tapdisks itself.
 *
 * This file has texts of a given width. A terminal gives wide characters two columns, and marks that combine
 * with the character before none.
 *
 * @module
 */

/** Blocks of characters of two columns: those of East Asian scripts, and pictures. */
const WIDE: readonly (readonly [first: number, last: number])[] = [
  [0x1100, 0x115f],
  [0x2e80, 0xa4cf],
  [0xa960, 0xa97f],
  [0xac00, 0xd7a3],
  [0xf900, 0xfaff],
  [0xfe30, 0xfe6f],
  [0xff00, 0xff60],
  [0xffe0, 0xffe6],
  [0x1f300, 0x1f64f],
  [0x1f680, 0x1f6ff],
  [0x1f900, 0x1f9ff],
  [0x20000, 0x3fffd],
];

function columnsOf(character: string): number {
  const point = character.codePointAt(0) ?? 0;
  if (point < 0x300) return 1;
  if (/^[\p{Mn}\p{Me}\p{Cf}]$/u.test(character)) return 0;
  return WIDE.some(([first, last]) => point >= first && point <= last) ? 2 : 1;
}

/** The columns that a text takes. */
export function widthOf(text: string): number {
  let width = 0;
  for (const character of text) width += columnsOf(character);
  return width;
}

/** The beginning of a text, in so many columns at most. */
export function head(text: string, width: number): string {
  let kept = "";
  let left = width;
  for (const character of text) {
    left -= columnsOf(character);
    if (left < 0) break;
    kept += character;
  }
  return kept;
}

/** The end of a text, with an ellipsis where something is left out, in so many columns at most. */
export function tail(text: string, width: number): string {
  if (widthOf(text) <= width) return text;
  if (width < 1) return "";
  const kept: string[] = [];
  let left = width - 1;
  for (const character of [...text].reverse()) {
    left -= columnsOf(character);
    if (left < 0) break;
    kept.unshift(character);
  }
  return `…${kept.join("")}`;
}

/** A text at the left of so many columns. */
export function left(text: string, width: number): string {
  const kept = head(text, width);
  return kept + " ".repeat(Math.max(0, width - widthOf(kept)));
}

/** A text at the right of so many columns. */
export function right(text: string, width: number): string {
  const kept = head(text, width);
  return " ".repeat(Math.max(0, width - widthOf(kept))) + kept;
}
