/**
 * The directory of an image's bitmaps: an entry for each, one behind the other.
 *
 * @module
 */

const ENTRY_BYTES = 24;
const FLAGS_AT = 12;
const NAME_BYTES_AT = 18;
const MORE_BYTES_AT = 20;
/** The bitmap was not written since the disk changed: it is inconsistent. */
const IN_USE = 1;

/**
 * Marks all bitmaps of a directory as in use.
 *
 * @returns Whether a mark was missing; null when the entries are not as long as the directory.
 */
export function markBitmapsInUse(directory: DataView, bitmaps: number): boolean | null {
  const flags: number[] = [];
  let at = 0;
  for (let i = 0; i < bitmaps; i++) {
    if (at + ENTRY_BYTES > directory.byteLength) return null;
    flags.push(at + FLAGS_AT);
    const more = directory.getUint32(at + MORE_BYTES_AT, false);
    const name = directory.getUint16(at + NAME_BYTES_AT, false);
    at += Math.ceil((ENTRY_BYTES + more + name) / 8) * 8;
  }
  if (at !== directory.byteLength) return null;
  let isChanged = false;
  for (const each of flags) {
    const value = directory.getUint32(each, false);
    if ((value & IN_USE) !== 0) continue;
    directory.setUint32(each, (value | IN_USE) >>> 0, false);
    isChanged = true;
  }
  return isChanged;
}
