import { Errno, SystemError } from "../../../ffi/errno.ts";
import { changeCbtLog } from "../../cbt/log_file.ts";
import { type CommandCall, type Subcommand, UsageError } from "../subcommands/command.ts";

/** `cbt-util set`. */
export const setCommand: Subcommand = {
  name: "set",
  summary: "Change fields of a log",
  synopsis: "-n FILE [-p UUID] [-c UUID] [-f 0|1] [-s BYTES]",
  usage: "cbt-util set: Set field in log file\n\n" +
    "Options:\n" +
    " -n name\tName of log file\n" +
    "[-p parent]\tParent log file UUID\n" +
    "[-c child]\tChild log file UUID\n" +
    "[-f 0|1]\tConsistency flag\n" +
    "[-s size]\tSize of the disk in bytes\n" +
    "[-h]\t\thelp",
  options: [
    { name: "n", value: "FILE", text: "the log" },
    { name: "p", value: "UUID", text: "the disk whose log is before this one" },
    { name: "c", value: "UUID", text: "the disk whose log is after this one" },
    { name: "f", value: "NUMBER", text: "1 if the log is complete, 0 if it is not" },
    { name: "s", value: "BYTES", text: "the size to which the disk has grown" },
  ],
  example: `
$ cbt-util set -n disk.cbtlog -f 1
$ cbt-util get -n disk.cbtlog -f
1`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const [parent, child] = [uuidOf(call, "p"), uuidOf(call, "c")];
    const consistent = call.number("f") ?? undefined;
    const sizeBytes = call.number("s") || undefined;
    const changes = { parent, child, consistent, sizeBytes };
    const given = Object.entries(changes).filter(([, value]) => value !== undefined);
    if (given.length === 0) throw new UsageError(null);
    changeCbtLog(path, Object.fromEntries(given));
    return 0;
  },
};

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

function uuidOf(call: CommandCall, name: string): Uint8Array<ArrayBuffer> | undefined {
  const text = call.value(name);
  if (text === null) return undefined;
  if (UUID.test(text)) return Uint8Array.fromHex(text.replaceAll("-", ""));
  throw new SystemError(Errno.EINVAL, `Cannot read '${text}', the value of -${name}, as a UUID`);
}
