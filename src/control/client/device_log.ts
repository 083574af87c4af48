import { LOG_PAGE_RECORD_BYTES, LOG_PAGE_SECTORS } from "../../driver/log.ts";
import { runEnd, testBit } from "../../vhd/format/bitmap.ts";
import { MessageType } from "../protocol/message.ts";
import { decodeWriteLogHead, encodeWriteLogRequest } from "../protocol/write_log.ts";
import type { DeviceAddress } from "./client.ts";
import { withConnection } from "./connection.ts";
import { QUESTION_TIMEOUT_MS } from "./questions.ts";

/** The changed sectors of a device. */
export interface DeviceLog {
  /** Size of the device, sectors. */
  readonly sectors: number;
  /** Runs of changed sectors in order: the first, and how many. */
  readonly runs: readonly (readonly [sector: number, count: number])[];
}

/** The runs of set bits in the pages of a log. */
function runsOf(pages: Uint8Array): [number, number][] {
  const runs: [number, number][] = [];
  const view = new DataView(pages.buffer, pages.byteOffset);
  for (let at = 0; at < pages.length; at += LOG_PAGE_RECORD_BYTES) {
    const bits = pages.subarray(at + 4, at + LOG_PAGE_RECORD_BYTES);
    const first = view.getUint32(at, true) * LOG_PAGE_SECTORS;
    for (let bit = 0; bit < LOG_PAGE_SECTORS;) {
      const end = runEnd(bits, bit, LOG_PAGE_SECTORS);
      const last = runs.at(-1);
      if (testBit(bits, bit)) {
        if (last !== undefined && last[0] + last[1] === first + bit) last[1] += end - bit;
        else runs.push([first + bit, end - bit]);
      }
      bit = end;
    }
  }
  return runs;
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
    return { sectors: head.sectors, runs: runsOf(connection.receive(head.lengthBytes)) };
  });
}
