import type { Line, Size } from "./view.ts";

/** What a terminal without a size, such as a serial line, is taken for. */
const DEFAULT_SIZE: Size = { columns: 80, rows: 24 };

// ECMA-48 and xterm: the other screen, the cursor, and whether long lines go on in the next one.
const ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE = "\x1b[?7h\x1b[0m\x1b[?25h\x1b[?1049l";
const HOME = "\x1b[H";
const CLEAR_LINE = "\x1b[K";
const CLEAR_BELOW = "\x1b[J";
const PLAIN = "\x1b[0m";

const STYLES: Readonly<Record<Line["style"], string>> = {
  plain: "",
  bold: "\x1b[1m",
  reverse: "\x1b[7m",
  bad: "\x1b[31m",
};

/** Whether a terminal can show more than lines one after the other. */
export function canDraw(): boolean {
  const type = Deno.env.get("TERM") ?? "";
  return Deno.stdout.isTerminal() && type !== "" && type !== "dumb";
}

/** The terminal's other screen. While it is there, keys come one by one and are not shown. */
export class Screen {
  /** No colours where NO_COLOR is set (https://no-color.org); bold and reverse text stays. */
  readonly #hasColours = (Deno.env.get("NO_COLOR") ?? "") === "";
  readonly #hasKeys = Deno.stdin.isTerminal();
  #isThere = false;

  /** The size that the terminal has now. */
  get size(): Size {
    try {
      const { columns, rows } = Deno.consoleSize();
      return columns > 0 && rows > 0 ? { columns, rows } : DEFAULT_SIZE;
    } catch {
      return DEFAULT_SIZE;
    }
  }

  /** Goes to the other screen. */
  enter(): void {
    if (this.#isThere) return;
    this.#isThere = true;
    // With `cbreak`, Ctrl-C and Ctrl-Z are still signals.
    if (this.#hasKeys) Deno.stdin.setRaw(true, { cbreak: true });
    write(ENTER);
  }

  /** Goes back, and leaves the terminal as it was. The terminal may be gone. */
  leave(): void {
    if (!this.#isThere) return;
    this.#isThere = false;
    try {
      write(LEAVE);
    } catch {
      // It has been hung up.
    }
    try {
      if (this.#hasKeys) Deno.stdin.setRaw(false);
    } catch {
      // Likewise.
    }
  }

  /** Draws lines, none of which has control characters or is wider than the terminal. */
  draw(lines: readonly Line[]): void {
    if (!this.#isThere) return;
    const drawn = lines.map(({ text, style }) => {
      const start = style === "bad" && !this.#hasColours ? STYLES.bold : STYLES[style];
      // First: behind a text that is as wide as the terminal it would take the last character away.
      return `${CLEAR_LINE}${start}${text}${start === "" ? "" : PLAIN}`;
    });
    write(HOME + CLEAR_BELOW + drawn.join("\r\n"));
  }
}

function write(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += Deno.stdout.writeSync(bytes.subarray(at));
}
