import { plainJson } from "../log/plain_text.ts";

/** How JSON is laid out. */
export interface JsonLayout {
  /** Spaces for each level, each value on a line of its own; 0 puts all on one line. */
  readonly indent?: number;
}

/**
 * A value as JSON with a line's end. Numbers of 64 bits that a double cannot hold become text; bytes
 * become hexadecimal digits. A byte of a name that is no UTF-8 becomes `\udcXX`, as in Python, and no
 * character in it is one that a terminal would act upon.
 */
export function jsonText(value: unknown, { indent = 2 }: JsonLayout = {}): string {
  const text = JSON.stringify(value, (_key, member: unknown) => {
    if (member instanceof Uint8Array) return member.toHex();
    if (typeof member !== "bigint") return member;
    return member <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(member) : `0x${member.toString(16)}`;
  }, indent);
  return `${plainJson(text)}\n`;
}
