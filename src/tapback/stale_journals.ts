import { removePath } from "../../ffi/paths.ts";
import { controlFolder, namesIn, ringJournalPath } from "../control/paths.ts";
import type { GuestDevice } from "../control/protocol/guest_ring.ts";
import type { Nodes } from "../xenstore/store.ts";

const JOURNAL = /^ring-(\d{1,5})-(\d{1,10})$/;

/** The guests' devices of which a tapdisk left the journal of a ring. */
function leftJournals(): GuestDevice[] {
  return namesIn(controlFolder()).flatMap((name) => {
    const [, domain, device] = JOURNAL.exec(name) ?? [];
    const guest = { domain: Number(domain), device: Number(device) };
    // Numbers as tapdisk writes them.
    return domain !== undefined && ringJournalPath(guest).endsWith(`/${name}`) ? [guest] : [];
  });
}

/**
 * Removes the journals of rings whose domains are gone: no tapback saw them go. They fit no other ring,
 * so that a failure does no harm.
 *
 * @returns How many there were.
 */
export function removeStaleJournals(store: Nodes): number {
  let count = 0;
  try {
    for (const guest of leftJournals()) {
      if (store.read(`/local/domain/${guest.domain}`) !== null) continue;
      removePath(ringJournalPath(guest));
      count++;
    }
  } catch {
    // As above.
  }
  return count;
}
