import { Command, CommanderError } from "commander";
import { Errno, errnoOf, messageOf } from "../../../ffi/errno.ts";
import { NotPlain } from "../plain_command.ts";
import { printErrorLine, writeError } from "../print.ts";

/** Defines a command's options and its action. */
export type Define = (command: Command) => Command;

/** A command of tap-ctl without options and action. */
export function bareCommand(name: string, summary: string): Command {
  return new Command(`tap-ctl ${name}`)
    .description(summary)
    .helpOption("-h, --help", "show this help")
    .allowExcessArguments(false)
    .showHelpAfterError()
    .configureOutput({ outputError: writeError })
    .exitOverride();
}

/** Runs a command of tap-ctl. Returns the exit status, or null for a line that commander has to read. */
export async function runCommand(
  name: string,
  command: () => Command,
  args: readonly string[],
): Promise<number | null> {
  try {
    await command().parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof NotPlain) return null;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : Errno.EINVAL;
    if (error instanceof Deno.errors.BrokenPipe) throw error;
    printErrorLine(`tap-ctl ${name}: ${messageOf(error)}`);
    return errnoOf(error);
  }
}
