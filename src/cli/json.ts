import { plainJson } from "../log/plain_text.ts";

/** The layout of JSON. */
export interface JsonLayout {
  /** Spaces for each level, each value on a line of its own; 0 puts all on one line. */
  readonly indent?: number;
}

/**
 * Formats a value as JSON with a line's end. 64-bit numbers that a double cannot hold become text. Bytes
 * become hexadecimal digits. A byte that is not UTF-8 becomes `\udcXX`, as in Python. Characters that
 * would act on a terminal are escaped.
 */
export function jsonText(value: unknown, { indent = 2 }: JsonLayout = {}): string {
  const text = JSON.stringify(value, (_key, member: unknown) => {
    if (member instanceof Uint8Array) return member.toHex();
    if (typeof member !== "bigint") return member;
    return member <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(member) : `0x${member.toString(16)}`;
  }, indent);
  return `${plainJson(text)}\n`;
}
