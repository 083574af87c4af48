/**
 * The list of tapdisks, devices and minors. For a tapdisk that does not answer, the list has what its
 * sockets and the locks of the minors show.
 *
 * @module
 */
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { pathExists } from "../../../ffi/paths.ts";
import { minorHolders, UNKNOWN_HOLDER } from "../minors/holders.ts";
import { readMinorRecord } from "../minors/minor_record.ts";
import { listMinors, MAX_ID } from "../minors/minors.ts";
import { controlFolder, namesIn, nbdSocketPath, numberAfter } from "../paths.ts";
import { singleNames, type SocketName } from "../single_names.ts";
import { type RateLimitsSummary, summaryOfLimits } from "../../vbd/rate_limits.ts";
import { decodeNode, type NodeAnswer } from "../protocol/answers.ts";
import { decodeLimitReply, encodeLimit } from "../protocol/limit.ts";
import { decodeListEntry, type ListEntry } from "../protocol/list.ts";
import { ALL_MINORS, encodePlain, MessageType } from "../protocol/message.ts";
import type { ServedExport } from "../../frontend/nbd/ports.ts";
import type { DeviceAddress } from "./client.ts";
import { brokenAnswer } from "./connection.ts";
import { deviceStatistics } from "./questions.ts";
import { askAll, type Outcome, type Question } from "./survey.ts";

/** How long all tapdisks together may take to answer. */
export const ANSWER_TIMEOUT_MS = 3_000;

/** A tapdisk, a device of one, or an allocated minor; what does not apply is null. */
export interface InventoryEntry {
  readonly pid: number | null;
  readonly minor: number | null;
  /** A union of TD_VBD_* bits. */
  readonly state: number | null;
  readonly type: string | null;
  readonly path: string | null;
  /** `type:/path` */
  readonly args: string | null;
  /** The socket on which the disk is served by NBD. */
  readonly nbd: string | null;
  /** The block device of the disk. For a device with a tapdisk, `withNodes` asks for it. */
  readonly device: string | null;
  /** The file of its log of changed blocks; null without one. `withNodes` asks for it. */
  readonly changedBlocks: string | null;
  /** What the disk does in a second at most; null without limits. `withLimits` asks for it. */
  readonly limits: RateLimitsSummary | null;
  /** Where the disk is served over TCP; null where that is not known. `withExports` asks for it. */
  readonly exports: readonly ServedExport[] | null;
  /** Set when the tapdisk does not answer; what only the tapdisk knows is null. */
  readonly silent?: true;
}

/** Which part of the list is wanted. */
export interface InventoryFilter {
  /** Only of this tapdisk. */
  readonly pid?: number;
  /** Only this minor. */
  readonly minor?: number;
}

const NOTHING: InventoryEntry = {
  pid: null,
  minor: null,
  state: null,
  type: null,
  path: null,
  args: null,
  nbd: null,
  device: null,
  changedBlocks: null,
  limits: null,
  exports: null,
};

function deviceEntry(
  pid: number,
  { minor, state, path: args }: ListEntry,
  folder: Folder,
): InventoryEntry {
  const entry = { ...NOTHING, pid, minor, state };
  const colon = args.indexOf(":");
  if (colon < 0) return entry;
  const nbd = nbdSocketPath(pid, minor);
  return {
    ...entry,
    type: args.slice(0, colon),
    path: args.slice(colon + 1),
    args,
    // The socket may have been made after the names were read.
    nbd: folder.serves(pid, minor) || pathExists(nbd) ? nbd : null,
  };
}

/** The entries with their block devices and logs of changed blocks, which the tapdisks are asked for. */
export function withNodes(entries: readonly InventoryEntry[]): InventoryEntry[] {
  const asked = entries.filter(({ args }) => args !== null);
  const nodes = new Map<InventoryEntry, NodeAnswer>();
  askAll(asked.map(nodeQuestion), ANSWER_TIMEOUT_MS).forEach((outcome, index) => {
    // Another implementation of tapdisk does not know the question.
    if ("answer" in outcome) nodes.set(asked[index], outcome.answer);
  });
  return entries.map((entry) => {
    const { node = null, changedBlocks = null } = nodes.get(entry) ?? {};
    return { ...entry, device: node ?? entry.device, changedBlocks };
  });
}

/** The entries with their limits, which the tapdisks are asked for. */
export function withLimits(entries: readonly InventoryEntry[]): InventoryEntry[] {
  const asked = entries.filter(({ args }) => args !== null);
  const limits = new Map<InventoryEntry, RateLimitsSummary | null>();
  askAll(asked.map(limitQuestion), ANSWER_TIMEOUT_MS).forEach((outcome, index) => {
    limits.set(asked[index], "answer" in outcome ? outcome.answer.limits : null);
  });
  return entries.map((entry) => ({ ...entry, limits: limits.get(entry) ?? null }));
}

/**
 * The entries with where they are served over TCP, which the tapdisks are asked for one after another:
 * the answer is longer than a message. Only such disks are asked for as have a tapdisk that answers.
 */
export function withExports(entries: readonly InventoryEntry[]): InventoryEntry[] {
  return entries.map((entry) => {
    const { pid, minor, args } = entry;
    if (pid === null || minor === null || args === null) return entry;
    return { ...entry, exports: exportsOf({ pid, minor }) };
  });
}

function exportsOf(device: DeviceAddress): readonly ServedExport[] | null {
  try {
    const { exports }: { exports?: ServedExport[] } = JSON.parse(deviceStatistics(device));
    return exports ?? null;
  } catch {
    // Another implementation of tapdisk, or a disk that has been closed meanwhile.
    return null;
  }
}

function limitQuestion(
  { pid, minor }: InventoryEntry,
): Question<{ limits: RateLimitsSummary | null }> {
  return {
    pid: pid ?? 0,
    request: encodeLimit(minor ?? 0, {}),
    response: MessageType.LIMIT_RSP,
    what: `Cannot get the limits of minor ${minor} of tapdisk ${pid}`,
    take: (message) => ({ limits: summaryOfLimits(decodeLimitReply(message)) }),
  };
}

function nodeQuestion({ pid, minor }: InventoryEntry): Question<NodeAnswer> {
  return {
    pid: pid ?? 0,
    request: encodePlain(MessageType.NODE, minor ?? 0),
    response: MessageType.NODE_RSP,
    what: `Cannot get the block device of minor ${minor} of tapdisk ${pid}`,
    take: decodeNode,
  };
}

/** Asks a tapdisk for the list of its devices. */
export function listQuestion(pid: number): Question<ListEntry[]> {
  const entries: ListEntry[] = [];
  const what = `Cannot list the devices of tapdisk ${pid}`;
  return {
    pid,
    request: encodePlain(MessageType.LIST, ALL_MINORS),
    response: MessageType.LIST_RSP,
    what,
    take(message): ListEntry[] | null {
      const entry = decodeListEntry(message);
      if (entry.count <= 0) return entries;
      const { minor, state } = entry;
      if (minor < 0 || minor >= MAX_ID || state < 0) {
        throw brokenAnswer(what, `it has minor ${minor} in state ${state}`);
      }
      if (entries.length === MAX_ID) throw brokenAnswer(what, "it lists more than there can be");
      entries.push(entry);
      return null;
    },
  };
}

/** A minor without a tapdisk, and the block device that a tapdisk which died left there. */
function orphan(minor: number): InventoryEntry {
  const record = readMinorRecord(minor);
  return { ...NOTHING, minor, device: record?.device === "none" ? null : record?.node ?? null };
}

/** What the control folder shows without a question to any tapdisk. */
export interface ControlFolder {
  /** The tapdisks that have a control socket, in ascending order. */
  readonly pids: readonly number[];
  /** The minors that are allocated. */
  readonly minors: readonly number[];
  /** The minors that a tapdisk has, as far as sockets and locks show. */
  minorsOf(pid: number): number[];
}

class Folder implements ControlFolder {
  /** The tapdisks that have a control socket, in ascending order. */
  readonly pids: readonly number[];
  /** The minors that are allocated. */
  readonly minors: readonly number[];
  #holders: Map<number, number> | null = null;
  /** The NBD sockets: which processes serve which minor. */
  readonly #serving = new Map<number, number[]>();

  constructor() {
    const sockets: SocketName[] = [];
    for (const name of namesIn(controlFolder())) {
      const pid = numberAfter(name, "ctl");
      if (pid !== undefined) sockets.push({ name, pid });
      const served = /^nbd(\d+)\.(\d+)$/.exec(name);
      if (served === null) continue;
      const [, by, minor] = served.map(Number);
      this.#serving.set(minor, [...this.#serving.get(minor) ?? [], by]);
    }
    this.pids = singleNames(sockets).map(({ pid }) => pid).sort((a, b) => a - b);
    this.minors = listMinors();
  }

  /** The minors that a tapdisk has, as far as sockets and locks show. */
  minorsOf(pid: number): number[] {
    const found = new Set<number>();
    for (const minor of this.#serving.keys()) if (this.serves(pid, minor)) found.add(minor);
    // Read when it is needed: the table of locks is one of the whole machine.
    this.#holders ??= minorHolders(this.minors) ?? new Map();
    for (const [minor, holder] of this.#holders) if (holder === pid) found.add(minor);
    return [...found].sort((a, b) => a - b);
  }

  /** The tapdisks that may have a minor, and so must be asked. */
  candidates(minor: number): readonly number[] {
    const holders = minorHolders([minor]);
    const holder = holders?.get(minor);
    // A lock that was handed over is noted for the process that took it, whose number another may have.
    const isTapdisk = holder === undefined || this.pids.includes(holder);
    const unclear = holders === null || holder === UNKNOWN_HOLDER || !isTapdisk;
    if (unclear && this.minors.includes(minor)) return this.pids;
    return this.pids.filter((pid) => pid === holder || this.serves(pid, minor));
  }

  /** Whether a process has an NBD socket for a minor. */
  serves(pid: number, minor: number): boolean {
    return this.#serving.get(minor)?.includes(pid) ?? false;
  }
}

/** Reads the control folder. Throws `SystemError`. */
export function readControlFolder(): ControlFolder {
  return new Folder();
}

/** The tapdisks that have a control socket, in ascending order. Throws `SystemError`. */
export function listTapdisks(): readonly number[] {
  return new Folder().pids;
}

/** Asks tapdisks, each of them once, and the folder about those that do not answer. */
class Survey {
  readonly folder = new Folder();
  readonly #outcomes = new Map<number, Outcome<ListEntry[]>>();
  readonly #minor: number | undefined;

  /** @param minor The only one that is wanted. */
  constructor(minor: number | undefined) {
    this.#minor = minor;
  }

  wants(minor: number | null): boolean {
    return this.#minor === undefined || minor === this.#minor;
  }

  /** The entries of these tapdisks. */
  ask(pids: readonly number[]): InventoryEntry[] {
    const asked = pids.filter((pid) => !this.#outcomes.has(pid));
    askAll(asked.map(listQuestion), ANSWER_TIMEOUT_MS)
      .forEach((outcome, index) => this.#outcomes.set(asked[index], outcome));
    return pids.flatMap((pid) => this.#entriesOf(pid));
  }

  /** The entries of one tapdisk: one when it has no device, none when it does not exist. */
  #entriesOf(pid: number): InventoryEntry[] {
    const outcome = this.#outcomes.get(pid);
    if (outcome === undefined) return [];
    if ("answer" in outcome) {
      const devices = outcome.answer.sort((a, b) => a.minor - b.minor);
      return devices.length === 0 ? [{ ...NOTHING, pid }] : devices
        .filter(({ minor }) => this.wants(minor))
        .map((device) => deviceEntry(pid, device, this.folder));
    }
    if (!isSilence(outcome.error)) return [];
    const silent = { ...NOTHING, pid, silent: true as const };
    const minors = this.folder.minorsOf(pid);
    return minors.length === 0 ? [silent] : minors.map((minor) => {
      const nbd = nbdSocketPath(pid, minor);
      return { ...silent, minor, nbd: pathExists(nbd) ? nbd : null };
    });
  }
}

/** Whether the error is that of a tapdisk that exists and does not answer. */
function isSilence(error: Error): boolean {
  return error instanceof SystemError && error.errno === Errno.ETIMEDOUT;
}

/**
 * The whole list, or the part that is wanted: the devices of each tapdisk in ascending order of
 * minors, tapdisks without a device, and minors without a tapdisk. Only tapdisks that may have what is
 * wanted are asked, all at once; those that do not answer within {@linkcode ANSWER_TIMEOUT_MS} are
 * `silent`. Throws `SystemError` when the folders cannot be read.
 */
export function inventory({ pid, minor }: InventoryFilter = {}): InventoryEntry[] {
  const survey = new Survey(minor);
  const { folder } = survey;
  const these = (pids: readonly number[]): readonly number[] =>
    pid === undefined ? pids : pids.filter((each) => each === pid);
  let asked = folder.pids;
  if (minor !== undefined) {
    // The socket of a disk tells which tapdisk has it. To read the table of locks, the kernel waits for
    // all processors, which takes some 10 ms.
    const serving = survey.ask(these(folder.pids.filter((each) => folder.serves(each, minor))));
    const found = serving.filter((entry) => entry.minor === minor && !entry.silent);
    if (found.length > 0) return found;
    asked = folder.candidates(minor);
  }
  const entries = survey.ask(these(asked));
  const taken = new Set(entries.map((entry) => entry.minor));
  const unused = pid === undefined ? folder.minors.filter((each) => !taken.has(each)) : [];
  return [
    ...entries.filter((entry) => survey.wants(entry.minor) || mayHave(entry)),
    ...unused.filter((each) => survey.wants(each)).map(orphan),
  ];
}

/** Whether an entry is a silent tapdisk of which no minor is known: it may have any. */
function mayHave({ silent, minor }: InventoryEntry): boolean {
  return silent === true && minor === null;
}

/** The tapdisks among these entries that did not answer. */
export function silentTapdisks(entries: readonly InventoryEntry[]): number[] {
  return [...new Set(entries.filter(({ silent }) => silent).map(({ pid }) => pid ?? 0))];
}
