import { Errno, messageOf } from "../../ffi/errno.ts";
import { printErrorLine } from "./print.ts";
import { readStandardInput, withStdinArguments } from "./stdin_arguments.ts";

/** The arguments of a command, with those on standard input; the exit status if they are invalid. */
export function argumentsOf(command: string, args: readonly string[]): string[] | number {
  try {
    return withStdinArguments(args, readStandardInput);
  } catch (error) {
    printErrorLine(`${command}: ${messageOf(error)}`);
    return Errno.EINVAL;
  }
}
