/**
 * What `blktap` answers when the call is for none of its commands: help, version, or an error.
 *
 * @module
 */

import config from "../../deno.json" with { type: "json" };
import { Errno } from "../../ffi/errno.ts";
import { type Call, COMMAND_NAMES } from "./dispatch.ts";
import { printErrorLine, printErrorText, printLine, printText } from "./print.ts";

const HELP = `Usage: blktap COMMAND [ARGUMENT…]
       blktap --help | --version

Serves virtual disks from user space.

Commands, each also by its own name where a link of that name leads here:
  tapdisk    serve disks: one process, any number of them
  tap-ctl    start, stop and ask the tapdisks of this machine
  vhd-util   make, look into and mend VHD images

'blktap COMMAND --help' tells of each.`;

/**
 * Answers a call that is for no command.
 *
 * @returns The exit status: 0, or EINVAL where there is no such command.
 */
export function blktapMain(call: Exclude<Call, { kind: "command" }>): number {
  switch (call.kind) {
    case "help":
      printText(HELP);
      return 0;
    case "version":
      printLine(`blktap ${config.version} (Deno ${Deno.version.deno}, V8 ${Deno.version.v8})`);
      return 0;
    case "missing":
      printErrorText(`blktap: No command was given\n\n${HELP}`);
      return Errno.EINVAL;
    case "unknown":
      printErrorLine(
        `blktap: Unknown command '${call.name}': use ${COMMAND_NAMES.join(", ")}, or --help`,
      );
      return Errno.EINVAL;
  }
}
