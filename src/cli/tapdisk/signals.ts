import type { Logger } from "../../log/log.ts";
import type { Tapdisk } from "./daemon.ts";

const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15 } as const;

/** Signals that end a tapdisk. */
export type EndSignal = keyof typeof SIGNAL_NUMBERS;

/**
 * What SIGTERM and SIGINT do. The first signal closes all disks in order. A second one during that time
 * ends the process at once. When disks stay open because they are in use, the next signal counts as a
 * first one.
 */
export function endBySignals(
  tapdisk: Pick<Tapdisk, "end">,
  log: Pick<Logger, "info" | "error">,
  exit: (status: number) => void,
): (signal: EndSignal) => void {
  let isClosing = false;
  return (signal) => {
    if (isClosing) {
      log.error(`Ended at once by a second ${signal}: disks were not closed in order`);
      return exit(128 + SIGNAL_NUMBERS[signal]);
    }
    isClosing = true;
    log.info(`Closing all disks, by ${signal}`);
    tapdisk.end(() => isClosing = false);
  };
}

/** Installs the signal handlers of the daemon. */
export function handleSignals(tapdisk: Tapdisk, log: Logger): void {
  const end = endBySignals(tapdisk, log, (status) => Deno.exit(status));
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => end(signal));
  }
  Deno.addSignalListener("SIGHUP", () => {
    log.reopen();
    log.info("Opened the log anew, by SIGHUP");
  });
  Deno.addSignalListener("SIGUSR1", () => tapdisk.logState());
  // XenServer's tools send SIGUSR2 to every tapdisk. Without a listener it would end the process.
  Deno.addSignalListener("SIGUSR2", () => log.info("Nothing to do for SIGUSR2"));
  // With a listener, a write beyond the file size limit fails with EFBIG and the process lives on.
  Deno.addSignalListener("SIGXFSZ", () => log.error("A write went past the limit of file sizes"));
}
