import type { Command } from "commander";
import { listeningAddresses } from "../../../ffi/addresses.ts";
import { type DeviceAddress, unserveDevice } from "../../control/client/client.ts";
import { listenText } from "../../frontend/nbd/listen_text.ts";
import { deviceOptions } from "./options.ts";
import type { ListenChoice } from "../../control/client/serve_choices.ts";
import { listenOption } from "./serve_options.ts";

interface UnserveChoices extends DeviceAddress {
  readonly listen?: ListenChoice;
  readonly exportName?: string;
}

/** `tap-ctl unserve`. */
export function defineUnserve(command: Command): Command {
  return deviceOptions(command)
    .addOption(listenOption("only on this address and port, as they were given to 'serve'"))
    .option("--export-name <name>", "only under this name")
    .addHelpText(
      "after",
      "\nEnds what 'tap-ctl serve' and --listen began: no more clients are taken. Those that are connected\n" +
        "stay until they leave.",
    )
    .action(({ pid, minor, listen, exportName }: UnserveChoices) => {
      const addresses = listen?.host === null || listen === undefined
        ? []
        : [...new Set(listeningAddresses(listen.host))];
      unserveDevice({ pid, minor }, {
        ...(listen === undefined ? {} : { at: listenText(addresses, listen.port) }),
        ...(exportName === undefined ? {} : { name: exportName }),
      });
    });
}
