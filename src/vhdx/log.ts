import type { StorageFile } from "../files/storage.ts";
import { crc32cWithout } from "./crc32c.ts";
import { vhdxFault } from "./errors.ts";
import { guidAt, NO_GUID, PAGE_BYTES, textAt, type VhdxHeader } from "./format.ts";

/** The longest log that is replayed. It is read as a whole. */
const MOST_LOG_BYTES = 64 << 20;
/** Pages that a log may change: 1 GiB. */
const MOST_PAGES = 1 << 18;
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
        "has a descriptor that makes no sense, or changes more than 1 GiB",
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

  constructor(bytes: Uint8Array<ArrayBuffer>, guid: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer);
    this.#guid = guid;
  }

  /** The active sequence: the whole one whose last entry is the newest. Empty without one. */
  newestSequence(): Entry[] {
    let best: Entry[] = [];
    for (let at = 0; at < this.#bytes.length; at += PAGE_BYTES) {
      const sequence = this.#sequenceFrom(at);
      const [last, known] = [sequence.at(-1), best.at(-1)];
      if (last !== undefined && (known === undefined || last.sequence > known.sequence)) {
        best = sequence;
      }
    }
    return best;
  }

  /** The longest whole sequence that begins here; empty without one. */
  #sequenceFrom(start: number): Entry[] {
    const entries: Entry[] = [];
    let whole = 0;
    let used = 0;
    for (let at = start; used < this.#bytes.length;) {
      const entry = this.#entryAt(at);
      const before = entries.at(-1);
      if (entry === null || (before !== undefined && entry.sequence !== before.sequence + 1n)) {
        break;
      }
      used += entry.lengthBytes;
      if (used > this.#bytes.length) break;
      entries.push(entry);
      // An entry names the first one that is needed with it.
      if (entry.tail === start) whole = entries.length;
      at = (at + entry.lengthBytes) % this.#bytes.length;
    }
    return entries.slice(0, whole);
  }

  #entryAt(at: number): Entry | null {
    const known = this.#known.get(at);
    if (known !== undefined) return known;
    const entry = this.#readEntry(at);
    this.#known.set(at, entry);
    return entry;
  }

  #readEntry(at: number): Entry | null {
    const view = this.#view;
    if (textAt(view, at, 4) !== "loge" || guidAt(view, at + 32) !== this.#guid) return null;
    const lengthBytes = view.getUint32(at + 8, true);
    const descriptors = view.getUint32(at + 24, true);
    const isLength = lengthBytes >= PAGE_BYTES && lengthBytes % PAGE_BYTES === 0 &&
      lengthBytes <= this.#bytes.length;
    if (!isLength || HEADER_BYTES + descriptors * DESCRIPTOR_BYTES > lengthBytes) return null;
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

  /** Does what an entry says; false when that makes no sense. */
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
        if (!putZeros(pages, offset, Number(view.getBigUint64(at + 8, true)))) return false;
      } else if (kind === "desc" && dataAt + PAGE_BYTES <= bytes.length) {
        if (!isDataSector(view, dataAt, entry.sequence)) return false;
        const page = bytes.slice(dataAt, dataAt + PAGE_BYTES);
        page.set(bytes.subarray(at + 8, at + 16), 0);
        page.set(bytes.subarray(at + 4, at + 8), PAGE_BYTES - 4);
        pages.set(offset / PAGE_BYTES, page);
        dataAt += PAGE_BYTES;
      } else return false;
    }
    return pages.size <= MOST_PAGES;
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
): boolean {
  if (lengthBytes % PAGE_BYTES !== 0 || lengthBytes / PAGE_BYTES > MOST_PAGES) return false;
  for (let i = 0; i < lengthBytes / PAGE_BYTES; i++) pages.set(offset / PAGE_BYTES + i, null);
  return true;
}
