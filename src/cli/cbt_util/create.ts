import { createCbtLog } from "../../cbt/log_file.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";

/** `cbt-util create`. */
export const createCommand: Subcommand = {
  name: "create",
  summary: "Make a log in which no block is changed",
  synopsis: "-n FILE -s BYTES",
  usage: "cbt-util create: Create new CBT metadata log with default values\n\n" +
    "Options:\n\t-n Log file name\n\t-s Num blocks in bitmap\n\t[-h help]",
  options: [
    { name: "n", value: "FILE", text: "the log; an existing file is replaced" },
    { name: "s", value: "BYTES", text: "the size of the disk" },
  ],
  example: `
$ cbt-util create -n disk.cbtlog -s 1073741824
$ cbt-util get -n disk.cbtlog -s
1073741824`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const sizeBytes = call.number("s") ?? 0;
    if (sizeBytes === 0) throw new UsageError(null);
    createCbtLog(path, { sizeBytes });
    return 0;
  },
};
