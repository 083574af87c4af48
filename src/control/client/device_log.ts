import { LOG_PAGE_RECORD_BYTES, LOG_PAGE_SECTORS } from "../../driver/log.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { MessageType } from "../protocol/message.ts";
import { decodeWriteLogHead, encodeWriteLogRequest } from "../protocol/write_log.ts";
import type { DeviceAddress } from "./client.ts";
import { brokenAnswer, withConnection } from "./connection.ts";
import { QUESTION_TIMEOUT_MS } from "./questions.ts";

/** The changed sectors of a device. */
export interface DeviceLog {
  /** Size of the device, sectors. */
  readonly sectors: number;
  /** Runs of changed sectors in order: the first, and how many. */
  readonly runs: readonly (readonly [sector: number, count: number])[];
}

/** Collects the runs of set bits from the pages of a log, which come in order. */
class Runs {
  readonly runs: [sector: number, count: number][] = [];
  #nextPage = 0;

  constructor(readonly sectors: number) {}

  /** Takes a record; false for one that cannot be: of a page out of order, or beyond the end. */
  add(record: Uint8Array): boolean {
    const page = new DataView(record.buffer, record.byteOffset).getUint32(0, true);
    const first = page * LOG_PAGE_SECTORS;
    if (page < this.#nextPage || first >= this.sectors) return false;
    this.#nextPage = page + 1;
    const bits = record.subarray(4, LOG_PAGE_RECORD_BYTES);
    for (let bit = 0; bit < LOG_PAGE_SECTORS;) {
      const end = runEnd(bits, bit, LOG_PAGE_SECTORS);
      if (testBit(bits, bit)) this.#addRun(first + bit, end - bit);
      bit = end;
    }
    const last = this.runs.at(-1);
    return last === undefined || last[0] + last[1] <= this.sectors;
  }

  #addRun(sector: number, count: number): void {
    const last = this.runs.at(-1);
    if (last !== undefined && last[0] + last[1] === sector) last[1] += count;
    else this.runs.push([sector, count]);
  }
}

/**
 * The sectors that changed since a device was opened as `log:…`, or since the log was cleared.
 * Throws `SystemError`, `TapdiskError`.
 */
export function deviceLog(
  { pid, minor }: DeviceAddress,
  { clear = false }: { clear?: boolean } = {},
): DeviceLog {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodeWriteLogRequest(minor, clear));
    const what = `Cannot get the log of minor ${minor} of tapdisk ${pid}`;
    const head = decodeWriteLogHead(connection.expect(MessageType.WRITE_LOG_RSP, what));
    const collected = new Runs(head.sectors);
    // One page at a time, whatever length the tapdisk announces.
    for (let left = head.lengthBytes; left > 0; left -= LOG_PAGE_RECORD_BYTES) {
      const isWhole = left >= LOG_PAGE_RECORD_BYTES;
      if (!isWhole || !collected.add(connection.receive(LOG_PAGE_RECORD_BYTES))) {
        throw brokenAnswer(what, "its pages make no sense");
      }
    }
    return { sectors: head.sectors, runs: collected.runs };
  });
}
