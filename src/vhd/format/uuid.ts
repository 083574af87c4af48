/** A new random UUID (version 4) as 16 bytes. */
export function generateUuid(): Uint8Array {
  const uuid = crypto.getRandomValues(new Uint8Array(16));
  uuid[6] = (uuid[6] & 0x0f) | 0x40;
  uuid[8] = (uuid[8] & 0x3f) | 0x80;
  return uuid;
}

/** 16 bytes as text: `00112233-4455-6677-8899-aabbccddeeff`. */
export function formatUuid(uuid: Uint8Array): string {
  let text = "";
  for (let i = 0; i < 16; i++) {
    if (i === 4 || i === 6 || i === 8 || i === 10) text += "-";
    text += uuid[i].toString(16).padStart(2, "0");
  }
  return text;
}

/**
 * Whether all 16 bytes are zero. In a child's header, this means that the parent is a raw image.
 */
export function isNullUuid(uuid: Uint8Array): boolean {
  return uuid.every((byte) => byte === 0);
}

/** Whether two UUIDs are equal. */
export function equalUuids(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
