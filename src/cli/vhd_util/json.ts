/**
 * A value as JSON, indented, with a line's end. Numbers of 64 bits that a double cannot hold become
 * text; bytes become hexadecimal digits.
 */
export function jsonText(value: unknown): string {
  const text = JSON.stringify(value, (_key, member: unknown) => {
    if (member instanceof Uint8Array) return member.toHex();
    if (typeof member !== "bigint") return member;
    return member <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(member) : `0x${member.toString(16)}`;
  }, 2);
  return `${text}\n`;
}
