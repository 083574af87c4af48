/**
 * `src/cli/tapback`: tapback, which connects Xen guests to tapdisks. The folder parses arguments, runs
 * the backend of `src/tapback`, and handles signals. It must not read xenstore itself.
 *
 * @module
 */
import { Errno, errnoOf, messageOf, systemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { raiseDescriptorLimit } from "../../../ffi/process.ts";
import type { Log } from "../../log/log.ts";
import { describeFault } from "../../scheduler/faults.ts";
import { EpollScheduler } from "../../scheduler/epoll_scheduler.ts";
import { Backend, isKnownStore } from "../../tapback/backend.ts";
import { lockInstance } from "../../tapback/instance.ts";
import { LocalTapdisks } from "../../tapback/tapdisks.ts";
import { removeStaleJournals } from "../../tapback/stale_journals.ts";
import { Xenstore } from "../../xenstore/store.ts";
import { goToBackground, startInBackground } from "../background.ts";
import { openDaemonLog } from "../daemon_log.ts";
import { printErrorLine, printErrorText, printText } from "../print.ts";
import { parseTapback, type TapbackChoices } from "./arguments.ts";
import { helpText, SYNOPSIS } from "./texts.ts";

/** The log of devices: their ordinary changes only with `--verbose`. */
function deviceLog(log: Log, isVerbose: boolean): Log {
  return {
    info: (message) => isVerbose ? log.info(message) : undefined,
    warn: (message) => log.warn(message),
    error: (message) => log.error(message),
  };
}

function writePidFile(path: string): void {
  try {
    Deno.writeTextFileSync(path, `${Deno.pid}\n`, { mode: 0o644 });
  } catch (error) {
    throw systemError(error, `Cannot write the number of the process to ${path}`);
  }
}

function removePidFile(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // Another one has removed it.
  }
}

/** Serves until a signal ends it. */
async function serve(choices: TapbackChoices): Promise<void> {
  const { type, domain, pidFile, barrier, isDaemon, isVerbose } = choices;
  raiseDescriptorLimit();
  const lock = lockInstance({ type, domain });
  const log = openDaemonLog("tapback", !isDaemon);
  const scheduler = new EpollScheduler({
    lastResort: {
      unowned: (error) => log.error(`A fault: ${describeFault(error)}`),
      fatal(error): void {
        throw error;
      },
    },
  });
  let hasLooked = false;
  const backend = new Backend({
    scheduler,
    openStore(): Xenstore {
      const store = new Xenstore();
      // A xenstored that lost its nodes does not know the guests that run.
      const knowsGuests = !hasLooked && isKnownStore(store, type);
      const stale = knowsGuests ? removeStaleJournals(store) : 0;
      hasLooked = true;
      if (stale > 0) log.info(`Removed the journals of ${stale} rings of domains that are gone`);
      return store;
    },
    tapdisks: new LocalTapdisks(scheduler),
    log: deviceLog(log, isVerbose),
    type,
    domain,
    options: { barrier },
    ended(): void {
      log.info(`Ends: domain ${domain} has no devices any more`);
      scheduler.stop();
    },
  });
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => {
      log.info(`Ends, by ${signal}`);
      scheduler.stop();
    });
  }
  // A terminal that goes is no reason to end.
  Deno.addSignalListener("SIGHUP", () => {
    log.reopen();
    log.info("Opened the log anew, by SIGHUP");
  });
  if (pidFile !== null) writePidFile(pidFile);
  log.info(`Serves devices of type ${type}, process ${Deno.pid}`);
  if (isDaemon) goToBackground();
  try {
    await scheduler.run();
  } catch (error) {
    // Standard error of a daemon leads nowhere.
    log.error(`Ended by a fault: ${describeFault(error)}`);
    throw error;
  } finally {
    backend.close();
    scheduler.close();
    if (pidFile !== null) removePidFile(pidFile);
    log.close();
    closeFile(lock);
  }
}

/** Runs a command line; returns the exit status. */
async function run(args: readonly string[]): Promise<number> {
  const choices = parseTapback(args);
  if (choices === null) {
    printText(helpText());
    return 0;
  }
  if (!choices.isDebug && !choices.isDaemon) return await startInBackground("tapback", args);
  const { pidFile } = choices;
  const isRelative = pidFile !== null && !pidFile.startsWith("/");
  await serve({ ...choices, pidFile: isRelative ? `${Deno.cwd()}/${pidFile}` : pidFile });
  return 0;
}

/**
 * Runs tapback.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function tapbackMain(args: readonly string[]): Promise<number> {
  try {
    return await run(args);
  } catch (error) {
    printErrorLine(`tapback: ${messageOf(error)}`);
    const errno = errnoOf(error);
    if (errno === Errno.EINVAL) printErrorText(`Usage: ${SYNOPSIS}`);
    return errno;
  }
}
