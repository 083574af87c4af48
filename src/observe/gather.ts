import { Errno, messageOf, SystemError } from "../../ffi/errno.ts";
import { pathExists } from "../../ffi/paths.ts";
import { isAlive } from "../../ffi/process.ts";
import { brokenAnswer } from "../control/client/connection.ts";
import {
  type ControlFolder,
  listQuestion,
  readControlFolder,
} from "../control/client/inventory.ts";
import { MOST_TEXT_BYTES } from "../control/client/questions.ts";
import { askPatiently, type Outcome, type TextQuestion } from "../control/client/survey.ts";
import { readMinorRecord } from "../control/minors/minor_record.ts";
import { minorHolders } from "../control/minors/holders.ts";
import { controlSocketPath } from "../control/paths.ts";
import { ALL_MINORS, encodePlain, MessageType } from "../control/protocol/message.ts";
import type { ListEntry } from "../control/protocol/list.ts";
import { decodeStatisticsLength } from "../control/protocol/statistics.ts";
import { type Asked, decodeDisk, type ListedDisk, namesMinor } from "./decode.ts";
import type { DiskSample, HostSample, SilentTapdisk, UnservedMinor } from "./sample.ts";

/** How long a tapdisk may take to answer, unless the caller says otherwise. */
const SAMPLE_TIMEOUT_MS = 1_000;
/** How many tapdisks are asked at a time. */
const AT_ONCE = 128;
/** After how long a tapdisk that did not answer is asked again. */
const SILENCE_MS = 5_000;
/** The most disks of a tapdisk; there are no more minors. */
const MOST_DISKS = 16_384;

/** How samples are taken. */
export interface GatherOptions {
  readonly timeoutMs?: number;
  /** The clock, milliseconds; never goes back. */
  readonly nowMs?: () => number;
}

/** What one tapdisk answered. */
type Answers = ReadonlyMap<number, Outcome<DiskSample[]>>;

/**
 * Takes samples of all disks of this host, one after another. It remembers which tapdisks did not answer:
 * those are asked again only after some seconds, so that they do not gather questions, nor delay each sample.
 */
export class Gatherer {
  readonly #timeoutMs: number;
  readonly #nowMs: () => number;
  /** Of tapdisks that did not answer: why, and when they were asked. */
  readonly #silent = new Map<number, { why: string; sinceMs: number }>();
  /** Tapdisks whose statistics do not say of which minor they are. */
  readonly #older = new Set<number>();

  constructor(
    { timeoutMs = SAMPLE_TIMEOUT_MS, nowMs = () => performance.now() }: GatherOptions = {},
  ) {
    this.#timeoutMs = timeoutMs;
    this.#nowMs = nowMs;
  }

  /** A sample of all disks. Throws `SystemError` when the control folder cannot be read. */
  async gather(): Promise<HostSample> {
    const atMs = this.#nowMs();
    const timeMs = Date.now();
    const folder = readControlFolder();
    this.#forgetAllBut(folder.pids);
    const asked = folder.pids.filter((pid) => !this.#isSilent(pid, atMs));
    const answers = await this.#ask(asked);
    const silent: SilentTapdisk[] = [];
    const dead: number[] = [];
    const pids: number[] = [];
    const disks: DiskSample[] = [];
    for (const pid of folder.pids) {
      const outcome = answers.get(pid) ?? { error: new Error(this.#silent.get(pid)?.why) };
      if ("answer" in outcome) {
        pids.push(pid);
        disks.push(...outcome.answer);
      } else if (hasEnded(pid, outcome.error)) {
        // One that ended in order, after the folder was read, has taken its socket away.
        if (pathExists(controlSocketPath(pid), { link: true })) dead.push(pid);
      } else {
        const why = messageOf(outcome.error);
        if (answers.has(pid)) this.#silent.set(pid, { why, sinceMs: atMs });
        silent.push({ pid, minors: folder.minorsOf(pid), why });
      }
    }
    const unserved = unservedMinors(folder, { disks, silent });
    const tookMs = this.#nowMs() - atMs;
    return { atMs, timeMs, tookMs, disks: oneOfEach(disks), pids, silent, dead, unserved };
  }

  #isSilent(pid: number, nowMs: number): boolean {
    const silent = this.#silent.get(pid);
    if (silent === undefined) return false;
    if (nowMs - silent.sinceMs < SILENCE_MS) return true;
    this.#silent.delete(pid);
    return false;
  }

  #forgetAllBut(pids: readonly number[]): void {
    const present = new Set(pids);
    for (const pid of this.#silent.keys()) if (!present.has(pid)) this.#silent.delete(pid);
    for (const pid of this.#older) if (!present.has(pid)) this.#older.delete(pid);
  }

  async #ask(pids: readonly number[]): Promise<Answers> {
    const answers = new Map<number, Outcome<DiskSample[]>>();
    const current = pids.filter((pid) => !this.#older.has(pid));
    const outcomes = await this.#askAll(current.map((pid) => allQuestion(pid, this.#nowMs)));
    current.forEach((pid, index) => {
      const outcome = outcomes[index];
      if ("error" in outcome) answers.set(pid, outcome);
      else if (outcome.answer === OLDER) this.#older.add(pid);
      else answers.set(pid, { answer: outcome.answer });
    });
    const older = pids.filter((pid) => this.#older.has(pid));
    for (const [pid, outcome] of await this.#askDiskByDisk(older)) answers.set(pid, outcome);
    return answers;
  }

  #askAll<Answer>(questions: readonly TextQuestion<Answer>[]): Promise<Outcome<Answer>[]> {
    return askPatiently(questions, { timeoutMs: this.#timeoutMs, atOnce: AT_ONCE });
  }

  /** Of tapdisks that do not say which disk is which: lists their disks, and asks for each. */
  async #askDiskByDisk(pids: readonly number[]): Promise<Answers> {
    const answers = new Map<number, Outcome<DiskSample[]>>();
    const limits = { timeoutMs: this.#timeoutMs, atOnce: AT_ONCE };
    const lists = await askPatiently(pids.map(listQuestion), limits);
    const listed = lists.flatMap((outcome, index) =>
      "answer" in outcome ? outcome.answer.map((entry) => ({ ...entry, pid: pids[index] })) : []
    );
    const samples = await this.#askAll(listed.map((disk) => diskQuestion(disk, this.#nowMs)));
    pids.forEach((pid, index) => answers.set(pid, listOutcome(lists[index])));
    samples.forEach((outcome, index) => {
      const of = answers.get(listed[index].pid);
      // A disk that was detached meanwhile is left out.
      if (of !== undefined && "answer" in of && "answer" in outcome) of.answer.push(outcome.answer);
      else if ("error" in outcome && !isGone(outcome.error)) {
        answers.set(listed[index].pid, { error: outcome.error });
      }
    });
    return answers;
  }
}

/**
 * One sample of each minor, in ascending order. Tapdisks are not asked at the same moment, so that two may say that
 * they have a disk which goes from one to the other.
 */
function oneOfEach(disks: readonly DiskSample[]): DiskSample[] {
  const byMinor = new Map<number, DiskSample>();
  for (const disk of disks) {
    // The one with an image is right, or the one that was started later.
    if (disk.path !== "" || !byMinor.has(disk.minor)) byMinor.set(disk.minor, disk);
  }
  return [...byMinor.values()].sort((a, b) => a.minor - b.minor);
}

function listOutcome(list: Outcome<ListEntry[]>): Outcome<DiskSample[]> {
  return "error" in list ? list : { answer: [] };
}

/** What `allQuestion` answers for a tapdisk that does not say which disk is which. */
const OLDER = "older";

function parsed(text: Uint8Array<ArrayBuffer>, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(text));
  } catch {
    throw brokenAnswer(what, "they are no JSON");
  }
}

function statisticsQuestion<Answer>(
  { pid, cookie, what, take }: {
    readonly pid: number;
    readonly cookie: number;
    readonly what: string;
    readonly take: (statistics: unknown) => Answer;
  },
): TextQuestion<Answer> {
  return {
    pid,
    request: encodePlain(MessageType.STATS, cookie),
    response: MessageType.STATS_RSP,
    what,
    length(message): number {
      const lengthBytes = decodeStatisticsLength(message);
      if (lengthBytes <= MOST_TEXT_BYTES) return lengthBytes;
      throw brokenAnswer(what, `they have ${lengthBytes} bytes`);
    },
    takeText: (text) => take(parsed(text, what)),
  };
}

/** Asks a tapdisk for the statistics of all its disks at once. */
function allQuestion(
  pid: number,
  nowMs: () => number,
): TextQuestion<DiskSample[] | typeof OLDER> {
  const what = `Cannot get the statistics of tapdisk ${pid}`;
  return statisticsQuestion({
    pid,
    cookie: ALL_MINORS,
    what,
    take(all): DiskSample[] | typeof OLDER {
      if (!Array.isArray(all)) throw brokenAnswer(what, "they are no list");
      if (all.length > MOST_DISKS) throw brokenAnswer(what, `they are of ${all.length} disks`);
      if (!all.every(namesMinor)) return OLDER;
      const asked: Asked = { pid, nowMs: nowMs() };
      return all.map((each) => decodeDisk(each, asked));
    },
  });
}

function diskQuestion(
  disk: ListedDisk,
  nowMs: () => number,
): TextQuestion<DiskSample> {
  const { pid, minor } = disk;
  return statisticsQuestion({
    pid,
    cookie: minor,
    what: `Cannot get the statistics of minor ${minor} of tapdisk ${pid}`,
    take: (value) => decodeDisk(value, { pid, nowMs: nowMs() }, disk),
  });
}

/** Whether an error says that the tapdisk has no such disk any more. */
function isGone(error: Error): boolean {
  return error instanceof SystemError && error.errno === Errno.ENODEV;
}

/** Errors of sockets whose process has ended, or ends just now. */
const ENDED: readonly number[] = [Errno.ECONNREFUSED, Errno.ECONNRESET, Errno.ENOENT];

/** Whether an error is that of a process that is not there any more. */
function hasEnded(pid: number, error: Error): boolean {
  return error instanceof SystemError && ENDED.includes(error.errno) && !isAlive(pid);
}

/** The minors that neither a tapdisk which answered has, nor one that is silent or not visible here. */
function unservedMinors(
  folder: ControlFolder,
  { disks, silent }: Pick<HostSample, "disks" | "silent">,
): UnservedMinor[] {
  const served = new Set(disks.map(({ minor }) => minor));
  for (const { minors } of silent) for (const minor of minors) served.add(minor);
  const left = folder.minors.filter((minor) => !served.has(minor));
  if (left.length === 0) return [];
  const holders = minorHolders(left);
  return left.filter((minor) => holders?.has(minor) !== true).map((minor) => ({
    minor,
    image: readMinorRecord(minor)?.image ?? null,
  }));
}
