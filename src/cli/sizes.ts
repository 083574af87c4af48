const MULTIPLES: ReadonlyMap<string, number> = new Map([
  ["", 1],
  ["k", 1e3],
  ["m", 1e6],
  ["g", 1e9],
  ["t", 1e12],
  ["ki", 2 ** 10],
  ["mi", 2 ** 20],
  ["gi", 2 ** 30],
  ["ti", 2 ** 40],
]);

/**
 * Parses a whole number of units: `500`, `0x1000`, `60M` (60,000,000), `128Mi`. Null for what is none,
 * or is beyond 2^53.
 */
export function parseAmount(text: string): number | null {
  const [, digits, unit] = /^(0x[0-9a-f]+|\d+)([kmgt]i?)?$/i.exec(text) ?? [];
  if (digits === undefined) return null;
  const amount = Number(digits) * (MULTIPLES.get((unit ?? "").toLowerCase()) ?? NaN);
  return Number.isSafeInteger(amount) ? amount : null;
}

/**
 * Parses the size of a disk: whole sectors, a number with a unit or not, such as `10Gi`. `10G` is the
 * same: sizes of disks are in powers of 1024, as for qemu-img, truncate and LVM. Null for what is none.
 */
export function parseDiskSize(text: string): number | null {
  const bytes = parseAmount(text.replace(/[kmgt]$/i, "$&i"));
  return bytes !== null && bytes > 0 && bytes % 512 === 0 ? bytes : null;
}
