import { changedExtents } from "../../cbt/cbt_log.ts";
import { readCbtLog } from "../../cbt/log_file.ts";
import { jsonText } from "../json.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";

/** `cbt-util extents`. */
export const extentsCommand: Subcommand = {
  name: "extents",
  summary: "Print which ranges of the disk have changed",
  synopsis: "-n FILE [--json]",
  usage: "cbt-util extents: Print the changed ranges of the disk\n\n" +
    "Options:\n -n name\tName of log file\n[--json]\tPrint a JSON array\n[-h]\t\thelp",
  options: [
    { name: "n", value: "FILE", text: "the log" },
    { name: "json", text: "print an array of objects with 'offsetBytes' and 'lengthBytes'" },
  ],
  example: `
$ cbt-util extents -n disk.cbtlog
0 131072
1048576 65536`,

  run(call: CommandCall): number {
    const log = readCbtLog(call.required("n"));
    if (call.has("json")) {
      call.output.print(jsonText([...changedExtents(log)]));
      return 0;
    }
    for (const { offsetBytes, lengthBytes } of changedExtents(log)) {
      call.output.printLine(`${offsetBytes} ${lengthBytes}`);
    }
    return 0;
  },
};
