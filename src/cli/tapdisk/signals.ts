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
  tapdisk: Pick<Tapdisk, "end" | "outlivesSigterm" | "passOn">,
  log: Pick<Logger, "info" | "error">,
  exit: (status: number) => void,
): (signal: EndSignal) => void {
  let isClosing = false;
  return (signal) => {
    if (tapdisk.passOn(signal)) return;
    if (signal === "SIGTERM" && tapdisk.outlivesSigterm()) {
      return log.info("Ignored SIGTERM: it may be for one disk of several; SIGINT ends them all");
    }
    if (isClosing) {
      log.error(`Ended at once by a second ${signal}: disks were not closed in order`);
      return exit(128 + SIGNAL_NUMBERS[signal]);
    }
    isClosing = true;
    log.info(`Closing all disks, by ${signal}`);
    tapdisk.end(() => isClosing = false);
  };
}

/** The longest time between the two signals of a service manager. */
const TOGETHER_MS = 2_000;

/**
 * Tells the SIGTERM of a service manager, which ends all that runs, from that of a storage manager, which
 * ends one disk: a service manager sends SIGCONT with it. The signals may be handled in either order.
 */
export function serviceManagerSignals(
  end: () => void,
  nowMs: () => number,
): (signal: "SIGTERM" | "SIGCONT") => void {
  const seenMs = { SIGTERM: -Infinity, SIGCONT: -Infinity };
  return (signal) => {
    seenMs[signal] = nowMs();
    if (Math.abs(seenMs.SIGTERM - seenMs.SIGCONT) > TOGETHER_MS) return;
    seenMs.SIGTERM = seenMs.SIGCONT = -Infinity;
    end();
  };
}

/** Installs the signal handlers of the daemon. */
export function handleSignals(tapdisk: Tapdisk, log: Logger): void {
  const end = endBySignals(tapdisk, log, (status) => Deno.exit(status));
  const together = serviceManagerSignals(
    () => tapdisk.outlivesSigterm() && end("SIGINT"),
    () => performance.now(),
  );
  Deno.addSignalListener("SIGINT", () => end("SIGINT"));
  Deno.addSignalListener("SIGTERM", () => {
    end("SIGTERM");
    if (!tapdisk.hasSuccessor) together("SIGTERM");
  });
  Deno.addSignalListener("SIGCONT", () => {
    if (!tapdisk.passOn("SIGCONT")) together("SIGCONT");
  });
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
