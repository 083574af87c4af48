/**
 * `blktap` called without one of its commands: prints help, the version, or an error.
 *
 * @module
 */

import config from "../../deno.json" with { type: "json" };
import { Errno } from "../../ffi/errno.ts";
import { type Call, COMMAND_NAMES, OWN_NAMES } from "./dispatch.ts";
import { printErrorLine, printErrorText, printLine, printText } from "./print.ts";

const HELP = `Usage: blktap COMMAND [ARGUMENT…]
       blktap --help | --version

Serves virtual disks from user space.

Commands (a link to blktap that has the name of a command runs that command):
  tapdisk    serve disks, any number in one process
  tap-ctl    start, control and query the tapdisks of this machine
  vhd-util   make, inspect, change and repair VHD images
  td-util    make, inspect, convert and compare images of every type
             (img2qcow, qcow2raw, qcow-create, tapdisk-diff and tapdisk-stream do
             parts of that with the arguments that they had in the first blktap)
  cbt-util   make, read and change logs of changed blocks
  td-rated   share a rate of writing between disks
  tapback    connect Xen guests to the disks of tapdisks

Commands without a link of their own:
  web        show the disks of this machine in a browser
  exporter   serve metrics of all disks for Prometheus
  doctor     look for what is wrong with this host, and say how to mend it

'blktap COMMAND --help' describes a command.`;

/**
 * Runs a call that is for no command.
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
      printErrorText(`blktap: No command given\n\n${HELP}`);
      return Errno.EINVAL;
    case "unknown":
      printErrorLine(
        `blktap: Unknown command '${call.name}'; the commands are ` +
          [...COMMAND_NAMES, ...OWN_NAMES].join(", "),
      );
      return Errno.EINVAL;
  }
}
