import { type Command, Option } from "commander";
import { CPUS, NICE, parseNiceness, parseProcessors } from "../../control/settings.ts";

/** The values of `--cpus` and `--nice`. */
export interface RunChoices {
  readonly cpus?: string;
  readonly nice?: string;
}

/** Adds `--cpus` and `--nice` to a command that may start a tapdisk. */
export function runOptions(command: Command): Command {
  return command
    .addOption(new Option("--cpus <list>", "processors of a new tapdisk, such as 0-3,8"))
    .addOption(new Option("--nice <number>", "niceness of a new tapdisk, from -20 to 19"));
}

/**
 * Sets the variables of the environment that have the same meaning, for the tapdisk that this process
 * starts, or finds. They come before the file of settings.
 *
 * @throws {SystemError} EINVAL for a value that is not possible.
 */
export function applyRunChoices({ cpus, nice }: RunChoices): void {
  if (cpus !== undefined) {
    parseProcessors(cpus, "--cpus");
    Deno.env.set(CPUS, cpus);
  }
  if (nice !== undefined) Deno.env.set(NICE, String(parseNiceness(nice, "--nice")));
}
