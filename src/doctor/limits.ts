import { type Finding, findingsOf, namesOf, textOf } from "./finding.ts";

/** What a process may use, and what it uses. */
export interface LimitFacts {
  /** The process; null for this one, whose limits a tapdisk that it starts inherits. */
  readonly pid: number | null;
  /** The hard limit of open files. A tapdisk raises its soft limit to it. */
  readonly mostFiles: number;
  /** Files that are open; null where that cannot be seen. */
  readonly openFiles: number | null;
  /** The soft limit of locked memory, bytes. */
  readonly mostLockedBytes: number;
}

/** Reads /proc/PID/limits; null for text that is none. */
export function parseLimits(
  text: string,
): Pick<LimitFacts, "mostFiles" | "mostLockedBytes"> | null {
  const files = /^Max open files +(\S+) +(\S+)/m.exec(text);
  const locked = /^Max locked memory +(\S+) +(\S+)/m.exec(text);
  if (files === null || locked === null) return null;
  const number = (word: string): number => word === "unlimited" ? Infinity : Number(word);
  return { mostFiles: number(files[2]), mostLockedBytes: number(locked[1]) };
}

function factsOf(pid: number | null): LimitFacts | null {
  const folder = `/proc/${pid ?? "self"}`;
  const limits = parseLimits(textOf(`${folder}/limits`) ?? "");
  if (limits === null) return null;
  const open = namesOf(`${folder}/fd`).length;
  return { pid, ...limits, openFiles: pid === null || open === 0 ? null : open };
}

/** The limits of this process and of tapdisks. */
export function limitFacts(pids: readonly number[]): LimitFacts[] {
  return [null, ...pids].map(factsOf).filter((facts) => facts !== null);
}

/** A disk takes some ten descriptors, with clients and a chain. */
const FEW_FILES = 4096;
const ENOUGH_FILES = 65_536;
/** Of a process that serves: from this share on, its next disk or client may be refused. */
const NEARLY_ALL = 0.8;
/** Keys and the memory of requests are locked in RAM. */
const FEW_LOCKED_BYTES = 65_536;

const limits = findingsOf("limits");

function judgeOne({ pid, mostFiles, openFiles, mostLockedBytes }: LimitFacts): Finding[] {
  const where = pid === null ? "new tapdisks" : `tapdisk ${pid}`;
  const raise = pid === null
    ? `ulimit -Hn ${ENOUGH_FILES}   # or LimitNOFILE=${ENOUGH_FILES} in the unit that starts them`
    : `prlimit --pid ${pid} --nofile=${ENOUGH_FILES}:${ENOUGH_FILES}`;
  const found: Finding[] = [];
  if (openFiles !== null && openFiles >= NEARLY_ALL * mostFiles) {
    const what = `${openFiles} of at most ${mostFiles} files are open: disks and clients to come ` +
      "may be refused";
    found.push(limits.error(what, where, raise));
  } else if (mostFiles < FEW_FILES) {
    const what = `At most ${mostFiles} files can be open: each disk, each image of its chain and ` +
      "each client takes some";
    found.push(limits.warning(what, where, raise));
  }
  if (mostLockedBytes < FEW_LOCKED_BYTES) {
    const what =
      `Only ${mostLockedBytes} bytes of memory can be locked: keys of encrypted images ` +
      "may be written to swap";
    const how = pid === null
      ? `ulimit -l ${FEW_LOCKED_BYTES / 1024}   # or LimitMEMLOCK=64K in the unit that starts them`
      : `prlimit --pid ${pid} --memlock=${FEW_LOCKED_BYTES}:${FEW_LOCKED_BYTES}`;
    found.push(limits.warning(what, where, how));
  }
  return found;
}

/** Judges limits of processes. */
export function judgeLimits(facts: readonly LimitFacts[]): Finding[] {
  const found = facts.flatMap(judgeOne);
  if (found.length > 0) return found;
  return [limits.ok(`Open files and locked memory suffice (${facts.length} processes)`)];
}
