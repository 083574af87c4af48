import { subcommandMain } from "../subcommands/program.ts";
import { queryCommand } from "../vhd_util/query.ts";

export function run(args: readonly string[]): Promise<number | null> {
  return subcommandMain("vhd-util", queryCommand, args);
}
