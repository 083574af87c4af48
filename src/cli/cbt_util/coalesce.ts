import { coalesceCbtLogs } from "../../cbt/log_file.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";

/** `cbt-util coalesce`. */
export const coalesceCommand: Subcommand = {
  name: "coalesce",
  summary: "Add the changed blocks of a log to the log after it",
  synopsis: "-p PARENT -c CHILD",
  usage: "cbt-util coalesce: Coalesce contents of parent bitmap on to child bitmap\n\n" +
    "Options:\n\t-p Parent log file name\n\t-c Child log file name\n\t[-h help]",
  options: [
    { name: "p", value: "PARENT", text: "the log whose changed blocks are added" },
    { name: "c", value: "CHILD", text: "the log that gets them" },
  ],
  example: `
$ cbt-util coalesce -p snapshot.cbtlog -c disk.cbtlog`,

  run(call: CommandCall): number {
    coalesceCbtLogs({ parent: call.required("p"), child: call.required("c") });
    return 0;
  },
};
