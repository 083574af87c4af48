const ESCAPE = "\x1b";

/** Keys that are no characters, by what a terminal sends for them. */
const SEQUENCES: ReadonlyMap<string, string> = new Map([
  ["\x1b[A", "up"],
  ["\x1bOA", "up"],
  ["\x1b[B", "down"],
  ["\x1bOB", "down"],
  ["\x1b[5~", "page up"],
  ["\x1b[6~", "page down"],
  ["\x1b[H", "home"],
  ["\x1bOH", "home"],
  ["\x1b[1~", "home"],
  ["\x1b[F", "end"],
  ["\x1bOF", "end"],
  ["\x1b[4~", "end"],
  ["\r", "enter"],
  ["\n", "enter"],
  ["\x7f", "backspace"],
  ["\b", "backspace"],
  ["\x1b", "escape"],
]);

/** A sequence, a control character, or a character. */
const KEY = new RegExp(`${ESCAPE}(?:\\[[0-9;]*[A-Za-z~]|O[A-Z])?|[^]`, "gu");

/** The keys in what a terminal sent: characters as they are, others by name; unknown ones are left out. */
export function keysIn(text: string): string[] {
  return [...text.matchAll(KEY)].flatMap(([sent]) => {
    const name = SEQUENCES.get(sent);
    if (name !== undefined) return [name];
    return /^\P{Cc}$/u.test(sent) ? [sent] : [];
  });
}
