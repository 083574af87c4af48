import { isAlive } from "../../ffi/process.ts";
import { disksEndedByFaults } from "../control/client/lifecycle.ts";
import type { InventoryEntry } from "../control/client/inventory.ts";
import { deadSockets } from "../control/client/stale_sockets.ts";
import { minorHolders } from "../control/minors/holders.ts";
import { readMinorRecord } from "../control/minors/minor_record.ts";
import { controlFolder, minorPath } from "../control/paths.ts";
import { staleMetrics } from "../metrics/metrics_folder.ts";
import { type Finding, findingsOf, shellWord } from "./finding.ts";

const leftovers = findingsOf("leftovers");
const waiting = findingsOf("disks to recover");

/** A minor younger than that may belong to a program that is just opening a disk on it. */
const YOUNG_MS = 60_000;

/** How old a minor is, milliseconds; null when it has gone. */
function ageOf(minor: number): number | null {
  try {
    const { mtime } = Deno.statSync(minorPath(minor));
    return mtime === null ? null : Date.now() - mtime.getTime();
  } catch {
    return null;
  }
}

/** The minors that nobody has. Their locks are looked up, and not tried: a tapdisk may be taking one now. */
function minorsOfNobody(present: readonly InventoryEntry[]): number[] {
  const left = present.flatMap(({ pid, minor }) => pid === null && minor !== null ? [minor] : []);
  const holders = minorHolders(left);
  return left.filter((minor) => holders?.has(minor) !== true);
}

/** Sockets and folders of tapdisks that died, and minors that nobody has. */
export function leftoverFindings(present: readonly InventoryEntry[]): Finding[] {
  const minors = minorsOfNobody(present).flatMap((minor) => {
    const ageMs = readMinorRecord(minor) === null ? ageOf(minor) : null;
    if (ageMs === null) return [];
    const where = minorPath(minor);
    const how = `tap-ctl free -m ${minor}`;
    return ageMs < YOUNG_MS
      ? [leftovers.note(`Minor ${minor} is allocated, and no tapdisk has it yet`, where)]
      : [leftovers.warning(`Minor ${minor} is allocated, and no tapdisk has it`, where, how)];
  });
  const sockets = deadSockets().map((name) => {
    const path = `${controlFolder()}/${name}`;
    const what = "A tapdisk that died has left this socket; the next one that starts removes it";
    return leftovers.warning(what, path, `rm ${shellWord(path)}`);
  });
  const folders = staleMetrics().map((path) => {
    const what =
      "A tapdisk that died has left these counters; the next one that starts removes them";
    return leftovers.warning(what, path, `rm -r ${shellWord(path)}`);
  });
  const found = [...minors, ...sockets, ...folders];
  return found.length > 0 ? found : [leftovers.ok("Nothing is left of tapdisks that died")];
}

/** Disks whose users wait until somebody brings them back. */
export function recoverFindings(present: readonly InventoryEntry[]): Finding[] {
  const orphans = minorsOfNobody(present).flatMap((minor) => {
    const record = readMinorRecord(minor);
    if (record === null) return [];
    const what =
      `The tapdisk of minor ${minor} died; the users of ${record.node} wait for a new one`;
    return [waiting.error(what, record.image, `tap-ctl recover -m ${minor}`)];
  });
  const ended = disksEndedByFaults(present).map(({ pid, minor }) => {
    const name = present.find((entry) => entry.minor === minor)?.args ?? `minor ${minor}`;
    const what = `A fault has ended minor ${minor} of tapdisk ${pid}: its requests fail`;
    return waiting.error(what, name, `tap-ctl recover -m ${minor}`);
  });
  const found = [...orphans, ...ended];
  return found.length > 0 ? found : [waiting.ok("No disk waits to be recovered")];
}

/** Tapdisks that do not answer. */
export function silentFindings(present: readonly InventoryEntry[]): Finding[] {
  const tapdisks = findingsOf("tapdisks");
  const pids = new Set(present.flatMap(({ pid }) => pid === null ? [] : [pid]));
  const silent = new Set(present.filter((entry) => entry.silent).map(({ pid }) => pid ?? 0));
  if (silent.size === 0) return [tapdisks.ok(`${pids.size} tapdisks answer`)];
  return [...silent].map((pid) => {
    const minors = present.filter((entry) => entry.pid === pid && entry.minor !== null)
      .map(({ minor }) => minor);
    const disks = minors.length === 0 ? "" : `; it has minors ${minors.join(", ")}`;
    const isThere = isAlive(pid) ? "" : " and is not visible here (another container)";
    return tapdisks.error(
      `Tapdisk ${pid} does not answer within 3 s${isThere}${disks}`,
      `tapdisk ${pid}`,
      `cat /proc/${pid}/wchan /proc/${pid}/stack   # what it waits for; see docs/failures.md`,
    );
  });
}
