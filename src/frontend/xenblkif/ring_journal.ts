import type { BlkifRing } from "../../../ffi/blkif_ring.ts";
import {
  allocateRange,
  closeFile,
  fileStatus,
  O_CREAT,
  O_EXCL,
  O_NOFOLLOW,
  O_RDWR,
  openFile,
  writeAt,
} from "../../../ffi/files.ts";
import { MappedFile } from "../../../ffi/mapped_file.ts";
import { removePath } from "../../../ffi/paths.ts";
import type { GuestRing } from "./guest.ts";

/** "blkj". */
const MAGIC = 0x626c_6b6a;
// Words of 32 bits: magic, entries, protocol, port, pages, references[8] @5, requests taken @13,
// requests answered @14, mark of the ring @15; from word 32 on, 32 words for each number of a request.
const HEAD_AT = 0;
const TAKEN_AT = 13;
const ANSWERED_AT = 14;
const MARK_AT = 15;
const RECORDS_AT = 32;
const RECORD_WORDS = 32;
// Words of a record: its state, the index of the request, the entry @2, the index of the answer @30.
const STATE = 0;
const REQUEST_INDEX = 1;
const ENTRY = 2;
const ANSWER_INDEX = 30;
/** States of a record. One store takes a record from one to the next. */
const State = { Free: 0, Taken: 1, Answered: 2 } as const;

/**
 * The requests that were taken from a ring, in a file in memory that outlives this process. A ring alone
 * does not tell which of its requests have no answer, because answers come in any order, and each
 * overwrites the entry of some request. With its journal, another tapdisk can go on with a ring whose
 * tapdisk was killed: it carries out again what has no answer.
 *
 * The order of stores is that in which a kill may leave them: the entry before the state that says it is
 * there, the answer in the ring before the state that says so, and either before the counters.
 *
 * A ring and its journal have the same mark, a random number. So a journal that was left of a guest that
 * is gone fits no ring of a later guest with the same number, nor a ring that its guest began anew.
 */
export class RingJournal {
  readonly #file: MappedFile;
  readonly #words: Int32Array;
  readonly #path: string;
  readonly #entries: number;

  /** @param entries The number of entries of the ring. */
  private constructor(path: string, file: MappedFile, entries: number) {
    this.#path = path;
    this.#file = file;
    this.#entries = entries;
    this.#words = new Int32Array(file.bytes.buffer);
  }

  /** Makes the journal of a ring that has no requests under way. Throws `SystemError`. */
  static make(path: string, guest: GuestRing, ring: BlkifRing): RingJournal {
    const sizeBytes = sizeOf(ring.entries);
    remove(path);
    const fd = openFile(path, O_RDWR | O_CREAT | O_EXCL, 0o600);
    try {
      // A store to a hole ends the process when the filesystem is full, so there must be none.
      allocateRange(fd, 0, sizeBytes);
      writeAt(fd, new Uint8Array(sizeBytes), 0);
      const journal = new RingJournal(path, new MappedFile(fd, sizeBytes), ring.entries);
      const words = journal.#words;
      words.set(headOf(guest, ring), HEAD_AT);
      words.fill(ring.answered(), TAKEN_AT, ANSWERED_AT + 1);
      words.set(crypto.getRandomValues(new Int32Array(2)), MARK_AT);
      ring.mark(words[MARK_AT], words[MARK_AT + 1]);
      return journal;
    } catch (error) {
      remove(path);
      throw error;
    } finally {
      closeFile(fd);
    }
  }

  /** The journal that another tapdisk left of a ring; null without one that fits. */
  static find(path: string, guest: GuestRing, ring: BlkifRing): RingJournal | null {
    return RingJournal.#open(
      path,
      ring,
      (journal) => journal.#isOf(guest, ring) && journal.#restore(ring),
    );
  }

  static #open(
    path: string,
    ring: BlkifRing,
    fits: (journal: RingJournal) => boolean,
  ): RingJournal | null {
    let fd: number;
    try {
      fd = openFile(path, O_RDWR | O_NOFOLLOW);
    } catch {
      return null;
    }
    try {
      const sizeBytes = sizeOf(ring.entries);
      if (fileStatus(fd).sizeBytes !== sizeBytes) return null;
      const journal = new RingJournal(path, new MappedFile(fd, sizeBytes), ring.entries);
      if (fits(journal)) return journal;
      journal.#file.unmap();
      return null;
    } finally {
      closeFile(fd);
    }
  }

  /**
   * The journal of a ring that another process still has, and in which all requests have ended: nothing
   * is written. Null without one that fits; another tapdisk then could not go on with the ring.
   *
   * @param taken How many requests were taken and answered.
   */
  static share(
    path: string,
    guest: GuestRing,
    { ring, taken }: { readonly ring: BlkifRing; readonly taken: number },
  ): RingJournal | null {
    const isEnded = ({ taken: own, answered }: RingJournal): boolean =>
      own === taken && answered === taken;
    return RingJournal.#open(
      path,
      ring,
      (journal) => journal.#isOf(guest, ring) && isEnded(journal),
    );
  }

  #isOf(guest: GuestRing, ring: BlkifRing): boolean {
    const words = this.#words;
    const isMarked = words[MARK_AT] === ring.markLow && words[MARK_AT + 1] === ring.markHigh;
    return isMarked && headOf(guest, ring).every((word, at) => words[HEAD_AT + at] === word);
  }

  /** Completes the counters after a kill; false when they do not go with the ring. */
  #restore(ring: BlkifRing): boolean {
    const words = this.#words;
    // A counter lacks one request at most, as it is stored next. Numbers may not have been used for
    // billions of requests, so that it is not told from an index which of two counts is ahead.
    const [taken, answered] = [words[TAKEN_AT], words[ANSWERED_AT]];
    for (let number = 0; number < this.#entries; number++) {
      const at = RECORDS_AT + number * RECORD_WORDS;
      const state = words[at + STATE];
      if (state === State.Taken && words[at + REQUEST_INDEX] === taken) {
        words[TAKEN_AT] = taken + 1;
      }
      if (state === State.Answered && words[at + ANSWER_INDEX] === answered) {
        words[ANSWERED_AT] = answered + 1;
      }
    }
    const isIn = (count: number): boolean => count >= 0 && count <= this.#entries;
    return isIn(this.answered - ring.answered() | 0) && isIn(ring.produced() - this.taken | 0) &&
      isIn(ring.produced() - ring.answered() | 0) &&
      (this.taken - this.answered | 0) === this.unanswered().length;
  }

  /** How many requests were taken in all, modulo 2^32. */
  get taken(): number {
    return this.#words[TAKEN_AT];
  }

  /** How many were answered. */
  get answered(): number {
    return this.#words[ANSWERED_AT];
  }

  /** The numbers of the requests without an answer, in their order. */
  unanswered(): number[] {
    const words = this.#words;
    const at = (number: number): number => RECORDS_AT + number * RECORD_WORDS;
    const age = (number: number): number => words[TAKEN_AT] - words[at(number) + REQUEST_INDEX] | 0;
    return Array.from({ length: this.#entries }, (_, number) => number)
      .filter((number) => words[at(number) + STATE] === State.Taken)
      .sort((a, b) => age(b) - age(a));
  }

  /** Notes the request that was taken last from the ring, which has this index there. */
  noteTaken(number: number, index: number, ring: BlkifRing): void {
    const words = this.#words;
    const at = RECORDS_AT + number * RECORD_WORDS;
    ring.save(words, at + ENTRY);
    words[at + REQUEST_INDEX] = index;
    Atomics.store(words, at + STATE, State.Taken);
    Atomics.store(words, TAKEN_AT, index + 1 | 0);
  }

  /** Makes a request of the journal the one that was taken last. */
  load(number: number, ring: BlkifRing): void {
    ring.load(this.#words, RECORDS_AT + number * RECORD_WORDS + ENTRY);
  }

  /** Notes that the ring has the answer to a request, which has this index there. */
  noteAnswered(number: number, index: number): void {
    const words = this.#words;
    const at = RECORDS_AT + number * RECORD_WORDS;
    words[at + ANSWER_INDEX] = index;
    Atomics.store(words, at + STATE, State.Answered);
    Atomics.store(words, ANSWERED_AT, index + 1 | 0);
  }

  /** Leaves the file to the next one who serves the ring. */
  leave(): void {
    this.#file.unmap();
  }

  /** Removes the file: the ring was left, and nothing is left to do. */
  close(): void {
    this.#file.unmap();
    remove(this.#path);
  }
}

/** Removes a file, if it is there. One that is left fits no other ring. */
function remove(path: string): void {
  try {
    removePath(path);
  } catch {
    // As above.
  }
}

function sizeOf(entries: number): number {
  return 4 * (RECORDS_AT + entries * RECORD_WORDS);
}

function headOf(guest: GuestRing, ring: BlkifRing): number[] {
  const { protocol, port, references } = guest;
  const words = [MAGIC, ring.entries, protocol, port, references.length, ...references];
  return words.map((word) => word | 0);
}
