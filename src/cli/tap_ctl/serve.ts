import type { Command } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type DeviceAddress, serveDevice } from "../../control/client/client.ts";
import { deviceOptions } from "./options.ts";
import type { ServeChoices } from "../../control/client/serve_choices.ts";
import { requestOf, serveOptions } from "./serve_options.ts";
import { printLine } from "../print.ts";

const NOTES = `
Serves a running disk by NBD over TCP, and prints the address and port. A disk may be served on several
ports, and under several names; the disks of a tapdisk may share a port. Without a host, all addresses
of the machine are used, of IPv4 and IPv6. With port 0 the kernel chooses one.

A client that names no export gets the only one of the port. TLS is a setting of the port. PSK and
certificates exclude each other. Clients stay when the disk is paused; 'tap-ctl close' ends the exports.
'tap-ctl stats' and 'tap-ctl list --json' show where a disk is served, and to how many clients.

  tap-ctl serve -p PID -m MINOR --listen :10809 --export-name disk --tls-certificates /etc/pki/nbdkit
  nbdinfo nbds://host/disk`;

/** `tap-ctl serve`. */
export function defineServe(command: Command): Command {
  return serveOptions(deviceOptions(command))
    .addHelpText("after", NOTES)
    .action((choices: DeviceAddress & ServeChoices) => {
      const request = requestOf(choices);
      if (request === null) {
        throw new SystemError(Errno.EINVAL, "Cannot serve the disk without --listen");
      }
      printLine(serveDevice(choices, request));
    });
}
