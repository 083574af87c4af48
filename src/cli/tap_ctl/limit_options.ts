import { type Command, InvalidArgumentError } from "commander";
import type { LimitChanges } from "../../control/protocol/limit.ts";
import {
  LEAST_BURST_MS,
  MOST_BURST_MS,
  MOST_RATE,
  NO_LIMITS,
  RATE_LIMIT_NAMES,
  type RateLimits,
} from "../../vbd/rate_limits.ts";
import { parseAmount } from "../sizes.ts";

function parseLimit(text: string): number {
  if (text === "none") return 0;
  const limit = parseAmount(text);
  if (limit !== null && limit <= MOST_RATE) return limit;
  throw new InvalidArgumentError(
    "It must be a whole number, such as 500, 20K, 60M or 1Gi, or none.",
  );
}

function parseBurst(text: string): number {
  const ms = Number(text);
  if (/^\d+$/.test(text) && ms >= LEAST_BURST_MS && ms <= MOST_BURST_MS) return ms;
  const range = `from ${LEAST_BURST_MS} to ${MOST_BURST_MS}`;
  throw new InvalidArgumentError(`It must be a whole number of milliseconds ${range}.`);
}

/** The options that limit a device. */
export function limitOptions(command: Command): Command {
  return command
    .option("--read-iops <limit>", "limit reads in a second; 0 or none: no limit", parseLimit)
    .option("--write-iops <limit>", "limit writes in a second", parseLimit)
    .option("--total-iops <limit>", "limit reads and writes in a second", parseLimit)
    .option("--read-bps <limit>", "limit bytes read in a second", parseLimit)
    .option("--write-bps <limit>", "limit bytes written in a second", parseLimit)
    .option("--total-bps <limit>", "limit bytes read and written in a second", parseLimit)
    .option(
      "--burst <ms>",
      `how much unused time may be caught up, ${NO_LIMITS.burstMs} ms by default`,
      parseBurst,
    );
}

/** The values of `limitOptions`, as they are parsed. */
export interface LimitChoices extends Partial<Omit<RateLimits, "burstMs">> {
  readonly burst?: number;
}

/** The limits that are given. */
export function limitChanges(choices: LimitChoices): LimitChanges {
  const changes: { -readonly [Name in keyof RateLimits]?: number } = {};
  for (const name of RATE_LIMIT_NAMES) {
    if (choices[name] !== undefined) changes[name] = choices[name];
  }
  if (choices.burst !== undefined) changes.burstMs = choices.burst;
  return changes;
}
