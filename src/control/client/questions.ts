import { decodeNode, decodePid } from "../protocol/answers.ts";
import { decodeFacts, explainedLength, type ToldFacts } from "../protocol/explain.ts";
import { decodeLimitReply, encodeLimit, type LimitChanges } from "../protocol/limit.ts";
import type { RateLimits } from "../../vbd/rate_limits.ts";
import { encodePlain, MessageType } from "../protocol/message.ts";
import { decodeStatisticsLength } from "../protocol/statistics.ts";
import type { DeviceAddress } from "./client.ts";
import { brokenAnswer, withConnection } from "./connection.ts";

/** How long a tapdisk may take to answer a question, which it does at once. */
export const QUESTION_TIMEOUT_MS = 10_000;

/** The longest statistics: those of 16384 devices take 40 MiB. */
export const MOST_TEXT_BYTES = 64 << 20;

/** The process that answers at a control socket. Throws `SystemError`. */
export function askPid(pid: number): number {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    const what = `Cannot ask tapdisk ${pid}`;
    connection.send(encodePlain(MessageType.PID, 0));
    const answered = decodePid(connection.expect(MessageType.PID_RSP, what));
    if (answered <= 0) throw brokenAnswer(what, `it says that it is process ${answered}`);
    return answered;
  });
}

/** A device's statistics, as the JSON text that the tapdisk made. */
export function deviceStatistics({ pid, minor }: DeviceAddress): string {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.STATS, minor));
    const what = `Cannot get the statistics of minor ${minor} of tapdisk ${pid}`;
    const head = connection.expect(MessageType.STATS_RSP, what);
    const lengthBytes = decodeStatisticsLength(head);
    if (lengthBytes > MOST_TEXT_BYTES) throw brokenAnswer(what, `they have ${lengthBytes} bytes`);
    return new TextDecoder().decode(connection.receive(lengthBytes));
  });
}

/** What is known of a device just now. Throws `SystemError`, `TapdiskError`. */
export function deviceFacts({ pid, minor }: DeviceAddress): ToldFacts {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.EXPLAIN, minor));
    const what = `Cannot explain minor ${minor} of tapdisk ${pid}`;
    const head = connection.expect(MessageType.EXPLAIN_RSP, what);
    return decodeFacts(connection.receive(explainedLength(head)));
  });
}

/**
 * Changes limits of a device; those that are not given stay. Throws `SystemError`, `TapdiskError`.
 *
 * @returns The limits that it has from now on.
 */
export function limitDevice({ pid, minor }: DeviceAddress, changes: LimitChanges): RateLimits {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodeLimit(minor, changes));
    const what = `Cannot limit minor ${minor} of tapdisk ${pid}`;
    return decodeLimitReply(connection.expect(MessageType.LIMIT_RSP, what));
  });
}

/**
 * The node of the block device that a minor's disk is; null without one. Throws `SystemError`,
 * `TapdiskError`.
 */
export function askNode({ pid, minor }: DeviceAddress): string | null {
  return withConnection(pid, QUESTION_TIMEOUT_MS, (connection) => {
    connection.send(encodePlain(MessageType.NODE, minor));
    const what = `Cannot get the block device of minor ${minor} of tapdisk ${pid}`;
    return decodeNode(connection.expect(MessageType.NODE_RSP, what)).node;
  });
}
