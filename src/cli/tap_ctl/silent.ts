import {
  ANSWER_TIMEOUT_MS,
  type InventoryEntry,
  silentTapdisks,
} from "../../control/client/inventory.ts";
import { printErrorLine } from "../print.ts";

/** Prints on standard error which tapdisks did not answer. */
export function warnOfSilent(command: string, entries: readonly InventoryEntry[]): void {
  for (const pid of silentTapdisks(entries)) {
    printErrorLine(
      `tap-ctl ${command}: tapdisk ${pid} did not answer within ${ANSWER_TIMEOUT_MS / 1000} s: ` +
        "its images are not known, only its minors",
    );
  }
}
