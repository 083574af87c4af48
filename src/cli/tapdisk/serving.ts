import { errnoOf, messageOf } from "../../../ffi/errno.ts";
import { detachStandardStreams, raiseDescriptorLimit } from "../../../ffi/process.ts";
import {
  DAEMON_ARGUMENT,
  settingsNotInEffect,
  SHARED_ARGUMENT,
} from "../../control/client/spawn.ts";
import { TAKE_OVER_ARGUMENT } from "../../control/handover/successor.ts";
import { requireOwnFolder } from "../../control/paths.ts";
import type { Logger } from "../../log/log.ts";
import { describeFault } from "../../scheduler/faults.ts";
import { printErrorLine, printLine } from "../print.ts";
import { type StartOptions, startTapdisk } from "./daemon.ts";
import { openLog } from "./logging.ts";
import { handleSignals } from "./signals.ts";

/** Raises the limit of descriptors. tapdisk starts without it, too, and then serves fewer clients. */
function raiseLimits(log: Logger): void {
  try {
    raiseDescriptorLimit();
  } catch (error) {
    log.warn(messageOf(error));
  }
}

/** Serves in this process until the daemon ends; returns the exit status. */
export async function serve({ inForeground, shared, takeOver }: StartOptions): Promise<number> {
  // The log may be in it.
  requireOwnFolder();
  const log = openLog({ onStandardError: inForeground });
  try {
    raiseLimits(log);
    const tapdisk = startTapdisk(log, { inForeground, shared, takeOver });
    handleSignals(tapdisk, log);
    if (!inForeground) { for (const line of settingsNotInEffect()) log.warn(line); }
    if (takeOver === undefined) {
      log.info(`Ready on ${tapdisk.socketPath}`);
      printLine(tapdisk.socketPath);
    } else log.info(`Asks process ${takeOver} for its disks`);
    if (!inForeground) {
      // A process that takes over says there why it cannot.
      if (takeOver === undefined) detachStandardStreams();
      Deno.chdir("/");
    }
    await tapdisk.run();
    log.info("Ended");
    return 0;
  } catch (error) {
    // Standard error of a daemon leads nowhere.
    log.error(`Ended: ${describeFault(error)}`);
    throw error;
  } finally {
    log.close();
  }
}

/** The options in a command line as this program makes it for a tapdisk in the background; null for others. */
function childOptions(args: readonly string[]): StartOptions | null {
  const left = [...args];
  const takes = (word: string): boolean => left[0] === word && left.shift() !== undefined;
  if (!takes(DAEMON_ARGUMENT)) return null;
  const shared = takes(SHARED_ARGUMENT);
  const takeOver = takes(TAKE_OVER_ARGUMENT) ? Number(left.shift()) : undefined;
  if (left.length > 0 || Number.isNaN(takeOver)) return null;
  return { inForeground: false, shared, takeOver };
}

/**
 * Runs a tapdisk in the background. It needs neither commander nor what else `main.ts` loads, and so starts sooner.
 *
 * @returns The exit status; null for a command line that `main.ts` has to read.
 */
export async function childMain(args: readonly string[]): Promise<number | null> {
  const options = childOptions(args);
  if (options === null) return null;
  try {
    return await serve(options);
  } catch (error) {
    printErrorLine(`tapdisk: ${messageOf(error)}`);
    return errnoOf(error);
  }
}
