import type { Logger } from "../../log/log.ts";
import type { Tapdisk } from "./daemon.ts";

const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15 } as const;

/** Signals that end a tapdisk. */
export type EndSignal = keyof typeof SIGNAL_NUMBERS;

/**
 * What SIGTERM and SIGINT do: the first closes all disks in order; another that comes while that
 * goes on ends the process at once. When disks stay, since they are in use, that is over, and the
 * next signal closes them in order again.
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

/** Makes signals do what an administrator expects of a daemon. */
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
  // XenServer's tools send it to every tapdisk; without a listener it would end this one.
  Deno.addSignalListener("SIGUSR2", () => log.info("Nothing to do for SIGUSR2"));
  // The write that went past a file size limit then ends with EFBIG, instead of the process.
  Deno.addSignalListener("SIGXFSZ", () => log.error("A write went past the limit of file sizes"));
}
