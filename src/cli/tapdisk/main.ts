/**
 * tapdisk: serves disks until its last device is detached or a signal ends it. Parses, puts the
 * engine together, and turns signals into orders; the work is done below.
 *
 * @module
 */
import { Command, CommanderError, Option } from "commander";
import { Errno } from "../../../ffi/errno.ts";
import { detachStandardStreams } from "../../../ffi/process.ts";
import { DAEMON_ARGUMENT, spawnTapdisk } from "../../control/spawn.ts";
import { controlSocketPath } from "../../control/paths.ts";
import { errnoOf } from "../../queue/disk_files.ts";
import { openLog } from "./logging.ts";
import { startTapdisk } from "./engine.ts";
import { handleSignals } from "./signals.ts";

interface TapdiskOptions {
  /** False for `-D`. */
  readonly daemon: boolean;
  /** True in the process that a daemon becomes. */
  readonly daemonChild?: boolean;
}

const NOTES = `
Without -D it goes on in the background, in a session of its own. Either way it prints the path of
its control socket once that takes connections; tap-ctl gives it devices and images, and it ends
when its last device is detached.

Signals: SIGTERM and SIGINT close all disks in order and end it, at once when they come a second
time; SIGHUP opens the log anew; SIGUSR1 logs all disks, every request that has not ended, and the
statistics.

Environment: BLKTAP_CONTROL_DIR is the folder of the sockets (/run/blktap-control), BLKTAP_LOG_DIR
that of the log (/var/log/blktap, or log in BLKTAP_CONTROL_DIR).`;

function parse(args: string[]): TapdiskOptions {
  return new Command("tapdisk")
    .description("Serve virtual disks.")
    .option("-D, --no-daemon", "stay in the foreground, with the log on standard error")
    .addOption(new Option(DAEMON_ARGUMENT).hideHelp())
    .helpOption("-h, --help", "show this help")
    .addHelpText("after", NOTES)
    .allowExcessArguments(false)
    .showHelpAfterError()
    .exitOverride()
    .parse(args, { from: "user" })
    .opts<TapdiskOptions>();
}

/** Serves in this process until it is told to end; returns the exit status. */
async function serve({ inForeground }: { inForeground: boolean }): Promise<number> {
  const log = openLog({ onStandardError: inForeground });
  try {
    const tapdisk = startTapdisk(log);
    handleSignals(tapdisk, log);
    log.info(`Ready on ${tapdisk.socketPath}`);
    console.log(tapdisk.socketPath);
    if (!inForeground) {
      detachStandardStreams();
      Deno.chdir("/");
    }
    await tapdisk.run();
    log.info("Ended");
    return 0;
  } finally {
    log.close();
  }
}

/**
 * Runs tapdisk.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function tapdiskMain(args: string[]): Promise<number> {
  try {
    const { daemon, daemonChild = false } = parse(args);
    if (!daemon || daemonChild) return await serve({ inForeground: !daemonChild });
    console.log(controlSocketPath(await spawnTapdisk()));
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : Errno.EINVAL;
    console.error(`tapdisk: ${error instanceof Error ? error.message : String(error)}`);
    return errnoOf(error);
  }
}
