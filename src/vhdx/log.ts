import type { StorageFile } from "../files/storage.ts";
import { crc32cWithout } from "./crc32c.ts";
import { vhdxFault } from "./errors.ts";
import { guidAt, NO_GUID, PAGE_BYTES, textAt, type VhdxHeader } from "./format.ts";

/** The longest log that is replayed. It is read as a whole. */
const MOST_LOG_BYTES = 64 << 20;
/** Pages that a log may set to zero: 1 GiB. Those with data lie in the log. */
const MOST_PAGES = 1 << 18;
/**
 * Limits of the work on a log. Entries of a program lie side by side, and the newest ones need each
 * other; those of a hostile image may overlap, and need any other.
 */
const MOST_SUMMED_FACTOR = 4;
const MOST_WALKED = 1 << 20;
const HEADER_BYTES = 64;
const DESCRIPTOR_BYTES = 32;

/** What a log changes: pages of 4 KiB of the file by their number; null for a page of zeros. */
export type LogPages = ReadonlyMap<number, Uint8Array<ArrayBuffer> | null>;

/** An entry of the log that is whole. */
interface Entry {
  readonly at: number;
  readonly lengthBytes: number;
  readonly tail: number;
  readonly sequence: bigint;
  readonly descriptors: number;
  readonly flushedBytes: number;
}

/**
 * Replays the log of an image in memory: what a program that died had changed, and had not written to
 * its place.
 *
 * @throws {ImageFormatError} for a log without a whole sequence of entries, or a file that was cut.
 */
export function readLog(file: StorageFile, header: VhdxHeader): LogPages {
  const { logGuid, logLengthBytes, logOffsetBytes } = header;
  if (logGuid === NO_GUID) return new Map();
  const wrong = (field: string, offsetBytes: number, value: string, problem: string): never => {
    throw vhdxFault(file.path, { field, offsetBytes, value, problem });
  };
  if (header.logVersion !== 0) {
    wrong("header.LogVersion", 64, `${header.logVersion}`, "is not version 0");
  }
  if (
    logLengthBytes === 0 || logLengthBytes % PAGE_BYTES !== 0 || logLengthBytes > MOST_LOG_BYTES
  ) {
    wrong("header.LogLength", 68, `${logLengthBytes}`, "is no length of a log, up to 64 MiB");
  }
  const bytes = new Uint8Array(logLengthBytes);
  if (file.readAt(bytes, logOffsetBytes) < bytes.length) {
    wrong("header.LogOffset", 72, `${logOffsetBytes}`, "puts the log past the end of the file");
  }
  const log = new Log(bytes, logGuid);
  const sequence = log.newestSequence();
  const last = sequence.at(-1);
  if (last === undefined) {
    return wrong("header.LogGuid", 48, logGuid, "is that of no whole sequence of log entries");
  }
  if (last.flushedBytes > file.sizeBytes()) {
    wrong(
      "log.FlushedFileOffset",
      logOffsetBytes + last.at + 48,
      `${last.flushedBytes}`,
      "is past the end of the file, which was cut",
    );
  }
  const pages = new Map<number, Uint8Array<ArrayBuffer> | null>();
  for (const entry of sequence) {
    if (!log.replay(entry, pages)) {
      wrong(
        `log[${entry.at}]`,
        logOffsetBytes + entry.at,
        `${entry.sequence}`,
        "has a descriptor that makes no sense, or sets more than 1 GiB to zero",
      );
    }
  }
  return pages;
}

class Log {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView<ArrayBuffer>;
  readonly #guid: string;
  /** Entries by their offset; null for a place without one. */
  readonly #known = new Map<number, Entry | null>();
  /** Entries that were followed, and bytes whose checksum was computed. */
  #walked = 0;
  #summed = 0;
  /** Pages that descriptors have set to zero, also those that were set before. */
  #changed = 0;

  constructor(bytes: Uint8Array<ArrayBuffer>, guid: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer);
    this.#guid = guid;
  }

  /** The active sequence: the whole one whose last entry is the newest. Empty without one. */
  newestSequence(): Entry[] {
    const entries: Entry[] = [];
    for (let at = 0; at < this.#bytes.length; at += PAGE_BYTES) {
      const entry = this.#readEntry(at);
      this.#known.set(at, entry);
      if (entry !== null) entries.push(entry);
    }
    entries.sort((a, b) => a.sequence > b.sequence ? -1 : a.sequence < b.sequence ? 1 : 0);
    for (const last of entries) {
      const sequence = this.#sequenceTo(last);
      if (sequence.length > 0) return sequence;
    }
    return [];
  }

  /** The sequence that ends with an entry, from the first one that it needs; empty when one is missing. */
  #sequenceTo(last: Entry): Entry[] {
    const entries: Entry[] = [];
    let used = 0;
    for (let at = last.tail;;) {
      // A place that is not known is none at which an entry can begin.
      const entry = this.#known.get(at) ?? null;
      const before = entries.at(-1);
      if (entry === null || (before !== undefined && entry.sequence !== before.sequence + 1n)) {
        return [];
      }
      this.#walked++;
      used += entry.lengthBytes;
      if (used > this.#bytes.length || this.#walked > MOST_WALKED) return [];
      entries.push(entry);
      if (entry === last) return entries;
      at = (at + entry.lengthBytes) % this.#bytes.length;
    }
  }

  #readEntry(at: number): Entry | null {
    const view = this.#view;
    if (textAt(view, at, 4) !== "loge" || guidAt(view, at + 32) !== this.#guid) return null;
    const lengthBytes = view.getUint32(at + 8, true);
    const descriptors = view.getUint32(at + 24, true);
    const isLength = lengthBytes >= PAGE_BYTES && lengthBytes % PAGE_BYTES === 0 &&
      lengthBytes <= this.#bytes.length;
    if (!isLength || HEADER_BYTES + descriptors * DESCRIPTOR_BYTES > lengthBytes) return null;
    this.#summed += lengthBytes;
    if (this.#summed > MOST_SUMMED_FACTOR * this.#bytes.length) return null;
    if (crc32cWithout(this.#span(at, lengthBytes), 4) !== view.getUint32(at + 4, true)) return null;
    return {
      at,
      lengthBytes,
      tail: view.getUint32(at + 12, true),
      sequence: view.getBigUint64(at + 16, true),
      descriptors,
      flushedBytes: Number(view.getBigUint64(at + 48, true)),
    };
  }

  /** Bytes of the log, which go on at its start. */
  #span(at: number, length: number): Uint8Array<ArrayBuffer> {
    const first = this.#bytes.subarray(at, Math.min(at + length, this.#bytes.length));
    if (first.length === length) return first;
    const whole = new Uint8Array(length);
    whole.set(first);
    whole.set(this.#bytes.subarray(0, length - first.length), first.length);
    return whole;
  }

  /** Does what an entry says; false when that makes no sense, or all entries change too much. */
  replay(entry: Entry, pages: Map<number, Uint8Array<ArrayBuffer> | null>): boolean {
    const bytes = this.#span(entry.at, entry.lengthBytes);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const listBytes = HEADER_BYTES + entry.descriptors * DESCRIPTOR_BYTES;
    let dataAt = Math.ceil(listBytes / PAGE_BYTES) * PAGE_BYTES;
    for (let i = 0; i < entry.descriptors; i++) {
      const at = HEADER_BYTES + i * DESCRIPTOR_BYTES;
      const offset = Number(view.getBigUint64(at + 16, true));
      const isOurs = view.getBigUint64(at + 24, true) === entry.sequence;
      if (!isOurs || offset % PAGE_BYTES !== 0) return false;
      const kind = textAt(view, at, 4);
      if (kind === "zero") {
        const lengthBytes = Number(view.getBigUint64(at + 8, true));
        this.#changed += lengthBytes / PAGE_BYTES;
        if (lengthBytes % PAGE_BYTES !== 0 || this.#changed > MOST_PAGES) return false;
        putZeros(pages, offset, lengthBytes);
      } else if (kind === "desc" && dataAt + PAGE_BYTES <= bytes.length) {
        if (!isDataSector(view, dataAt, entry.sequence)) return false;
        const page = bytes.slice(dataAt, dataAt + PAGE_BYTES);
        page.set(bytes.subarray(at + 8, at + 16), 0);
        page.set(bytes.subarray(at + 4, at + 8), PAGE_BYTES - 4);
        pages.set(offset / PAGE_BYTES, page);
        dataAt += PAGE_BYTES;
      } else return false;
    }
    return true;
  }
}

function isDataSector(view: DataView, at: number, sequence: bigint): boolean {
  const high = view.getUint32(at + 4, true);
  const low = view.getUint32(at + PAGE_BYTES - 4, true);
  return textAt(view, at, 4) === "data" && (BigInt(high) << 32n | BigInt(low)) === sequence;
}

function putZeros(
  pages: Map<number, Uint8Array<ArrayBuffer> | null>,
  offset: number,
  lengthBytes: number,
): void {
  for (let i = 0; i < lengthBytes / PAGE_BYTES; i++) pages.set(offset / PAGE_BYTES + i, null);
}
