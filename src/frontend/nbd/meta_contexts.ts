import {
  BASE_ALLOCATION,
  BASE_ALLOCATION_ID,
  BLKTAP_CBT,
  QEMU_DIRTY_BITMAP,
} from "../../nbd/protocol.ts";

/** What block status tells: which parts of the disk hold data, or which have changed. */
export interface MetaContext {
  readonly name: string;
  /** Its number in replies. */
  readonly id: number;
  /** Whether it is of the disk's log of changed blocks. */
  readonly isOfLog: boolean;
}

const ALLOCATION: MetaContext = {
  name: BASE_ALLOCATION,
  id: BASE_ALLOCATION_ID,
  isOfLog: false,
};

/** Both have the bit 1 for a changed block; programs that know qemu's bitmaps ask for the second. */
const OF_LOG: readonly MetaContext[] = [
  { name: BLKTAP_CBT, id: 2, isOfLog: true },
  { name: `${QEMU_DIRTY_BITMAP}cbt`, id: 3, isOfLog: true },
];

const WITHOUT_LOG: readonly MetaContext[] = [ALLOCATION];
const WITH_LOG: readonly MetaContext[] = [ALLOCATION, ...OF_LOG];

/** The most contexts of a disk. */
export const MOST_CONTEXTS = WITH_LOG.length;

/** The contexts of a disk, with a log of changed blocks or without one. */
export function contextsOf(hasLog: boolean): readonly MetaContext[] {
  return hasLog ? WITH_LOG : WITHOUT_LOG;
}

/**
 * Whether a query of LIST_META_CONTEXT or SET_META_CONTEXT names a context. LIST may name a namespace
 * with its colon, and, of qemu's bitmaps, `qemu:dirty-bitmap:`.
 */
export function isAskedFor({ name }: MetaContext, query: Uint8Array, listing: boolean): boolean {
  if (isText(query, name)) return true;
  if (!listing) return false;
  if (isText(query, name.slice(0, name.indexOf(":") + 1))) return true;
  return name.startsWith(QEMU_DIRTY_BITMAP) && isText(query, QEMU_DIRTY_BITMAP);
}

function isText(bytes: Uint8Array, text: string): boolean {
  if (bytes.length !== text.length) return false;
  return bytes.every((byte, i) => byte === text.charCodeAt(i));
}
