import type { Logger } from "../../log/log.ts";
import type { Tapdisk } from "./engine.ts";

const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15 } as const;

/** Makes signals do what an administrator expects of a daemon. */
export function handleSignals(tapdisk: Tapdisk, log: Logger): void {
  let ending = false;
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => {
      if (ending) {
        log.error(`Ended at once by a second ${signal}: disks were not closed in order`);
        Deno.exit(128 + SIGNAL_NUMBERS[signal]);
      }
      ending = true;
      log.info(`Closing all disks, by ${signal}`);
      tapdisk.end();
    });
  }
  Deno.addSignalListener("SIGHUP", () => {
    log.reopen();
    log.info("Opened the log anew, by SIGHUP");
  });
  Deno.addSignalListener("SIGUSR1", () => tapdisk.logState());
  // XenServer's tools send it to every tapdisk; without a listener it would end this one.
  Deno.addSignalListener("SIGUSR2", () => log.info("Nothing to do for SIGUSR2"));
  // The write that went past a file size limit then ends with EFBIG, instead of the process.
  Deno.addSignalListener("SIGXFSZ", () => log.error("A write went past the limit of file sizes"));
}
