import { subcommandMain } from "../subcommands/program.ts";
import { convertCommand } from "../td_util/convert.ts";

export function run(args: readonly string[]): Promise<number | null> {
  return subcommandMain("td-util", convertCommand, args);
}
