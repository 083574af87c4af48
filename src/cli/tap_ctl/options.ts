import { type Command, InvalidArgumentError, Option } from "commander";
import type { TimeLimit } from "../../control/client/client.ts";
import { ALL_MINORS } from "../../control/protocol/message.ts";

function integer(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

/** A minor, as an option's value. */
export const parseMinor = integer(0, ALL_MINORS - 1);
/** A process number, as an option's value. */
export const parsePid = integer(1, 0x7fff_ffff);
/** A number of seconds, as the value of an option. */
export const parseSeconds = integer(0, 0xffff);

/** How often something is done, as the value of an option. */
export const parseCount = integer(1, 1_000_000);

/** `-m`. */
export function minorOption(command: Command): Command {
  return command.requiredOption("-m, --minor <minor>", "number of the device", parseMinor);
}

/** `-p` and `-m`, as filters of a list. */
export function filterOptions(command: Command): Command {
  return command
    .option("-p, --pid <pid>", "only devices of this tapdisk", parsePid)
    .option("-m, --minor <minor>", "only this device", parseMinor);
}

/** `-p` and `-m`: which device of which tapdisk. */
export function deviceOptions(command: Command): Command {
  return minorOption(
    command.requiredOption("-p, --pid <pid>", "process number of the tapdisk", parsePid),
  );
}

/** `-t`: the time limit of the operation. */
export function timeLimitOption(command: Command): Command {
  return command.option("-t, --timeout <seconds>", "fail when it takes longer", parseSeconds);
}

/** The time limit from `-t`. */
export function timeLimit({ timeout }: { timeout?: number }): TimeLimit {
  return timeout === undefined ? {} : { timeoutMs: timeout * 1000 };
}

/** An option that help does not show. */
export function hiddenOption(flags: string, why: string): Option {
  return new Option(flags, why).hideHelp();
}
