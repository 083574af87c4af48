import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DeviceAddress } from "../control/client/client.ts";
import { brokenAnswer } from "../control/client/connection.ts";
import { askPatiently } from "../control/client/survey.ts";
import { encodePlain, MessageType } from "../control/protocol/message.ts";
import { decodeStatisticsLength } from "../control/protocol/statistics.ts";

/** How long a tapdisk may take to answer. */
const TIMEOUT_MS = 800;
/** The longest answer: 128 requests of 400 bytes. */
const MOST_BYTES = 128 * 400;
/** Requests that are shown: the oldest. */
const MOST_SHOWN = 16;

function linesIn(text: Uint8Array<ArrayBuffer>, what: string): string[] {
  let lines: unknown;
  try {
    lines = JSON.parse(new TextDecoder().decode(text));
  } catch {
    lines = null;
  }
  if (Array.isArray(lines) && lines.every((line) => typeof line === "string")) {
    // The first line is the state of the disk.
    return lines.slice(1, 1 + MOST_SHOWN);
  }
  throw brokenAnswer(what, "they are no list of texts");
}

/**
 * The oldest open requests of a disk, a line each, as SIGUSR1 has tapdisk log them. Throws `SystemError`,
 * `TapdiskError`: a tapdisk of before does not know the question.
 */
export async function askOpenRequests({ pid, minor }: DeviceAddress): Promise<readonly string[]> {
  const what = `Cannot get the requests of minor ${minor} of tapdisk ${pid}`;
  const [outcome] = await askPatiently([{
    pid,
    request: encodePlain(MessageType.REQUESTS, minor),
    response: MessageType.REQUESTS_RSP,
    what,
    length(message): number {
      const lengthBytes = decodeStatisticsLength(message);
      if (lengthBytes <= MOST_BYTES) return lengthBytes;
      throw new SystemError(Errno.EPROTO, `${what} (they have ${lengthBytes} bytes)`);
    },
    takeText: (text) => linesIn(text, what),
  }], { timeoutMs: TIMEOUT_MS, atOnce: 1 });
  if ("error" in outcome) throw outcome.error;
  return outcome.answer;
}
