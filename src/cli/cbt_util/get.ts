import { type CbtHeader, type CbtLog, changedBytes } from "../../cbt/cbt_log.ts";
import { readCbtHeader, readCbtLog } from "../../cbt/log_file.ts";
import { formatUuid } from "../../vhd/format/uuid.ts";
import { jsonText } from "../json.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";

const FIELDS = ["p", "c", "f", "s", "b", "json"] as const;

/** `cbt-util get`. */
export const getCommand: Subcommand = {
  name: "get",
  summary: "Print a field of a log",
  synopsis: "-n FILE (-p | -c | -f | -s | -b | --json)",
  usage: "cbt-util get: Read field from log file\n\n" +
    "Options:\n" +
    " -n name\tName of log file\n" +
    "[-p]\t\tPrint parent log file UUID\n" +
    "[-c]\t\tPrint child log file UUID\n" +
    "[-f]\t\tPrint consistency flag\n" +
    "[-s]\t\tPrint size of disk in bytes\n" +
    "[-b]\t\tPrint bitmap contents\n" +
    "[-h]\t\thelp",
  options: [
    { name: "n", value: "FILE", text: "the log" },
    { name: "p", text: "print the UUID of the disk whose log is before this one" },
    { name: "c", text: "print the UUID of the disk whose log is after this one" },
    { name: "f", text: "print 1 if the log is complete, 0 if it is not" },
    { name: "s", text: "print the size of the disk in bytes" },
    {
      name: "b",
      text: "write the bits as they are: one for 64 KiB, the least significant first",
    },
    { name: "json", text: "print all fields and the number of changed bytes as JSON" },
  ],
  example: `
$ cbt-util get -n disk.cbtlog -s
1073741824`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const wanted = FIELDS.filter((field) => call.has(field));
    if (wanted.length !== 1) throw new UsageError(null);
    const [field] = wanted;
    if (field === "b") call.output.printBytes(readCbtLog(path).bits);
    else if (field === "json") call.output.print(jsonOf(readCbtLog(path)));
    else call.output.printLine(textOf(readCbtHeader(path), field));
    return 0;
  },
};

function textOf(header: CbtHeader, field: "p" | "c" | "f" | "s"): string {
  switch (field) {
    case "p":
      return formatUuid(header.parent);
    case "c":
      return formatUuid(header.child);
    case "f":
      return String(header.consistent);
    case "s":
      return String(header.sizeBytes);
  }
}

function jsonOf(log: CbtLog): string {
  const { parent, child, consistent, sizeBytes } = log.header;
  return jsonText({
    parent: formatUuid(parent),
    child: formatUuid(child),
    consistent: consistent !== 0,
    sizeBytes,
    changedBytes: changedBytes(log),
  });
}
