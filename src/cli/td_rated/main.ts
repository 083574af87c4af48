/**
 * `src/cli/td_rated`: td-rated, which lets disks share a rate of writing. The folder parses arguments,
 * runs the bridge of `src/rated`, and handles signals. It must not speak to valves itself.
 *
 * @module
 */
import { Errno, errnoOf, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import { raiseDescriptorLimit } from "../../../ffi/process.ts";
import { Bridge } from "../../rated/bridge.ts";
import { type Limiter, MemoryLimiter, type MemoryState, TokenBucket } from "../../rated/limiter.ts";
import { bridgePath, VALVE_FOLDER } from "../../rated/valve_protocol.ts";
import { describeFault } from "../../scheduler/faults.ts";
import { EpollScheduler } from "../../scheduler/epoll_scheduler.ts";
import { goToBackground, startInBackground } from "../background.ts";
import { openDaemonLog } from "../daemon_log.ts";
import { printErrorLine, printErrorText, printText } from "../print.ts";
import {
  type BucketChoice,
  type MemoryChoice,
  parseRated,
  type RatedChoices,
} from "./arguments.ts";
import { helpText, SYNOPSES } from "./texts.ts";

/** The memory of the machine. Throws `SystemError`. */
function memoryState(): MemoryState {
  let text: string;
  try {
    text = Deno.readTextFileSync("/proc/meminfo");
  } catch (error) {
    throw systemError(error, "Cannot read /proc/meminfo");
  }
  const field = (name: string): number => {
    const found = new RegExp(`^${name}: +(\\d+) kB$`, "m").exec(text);
    if (found !== null) return Number(found[1]);
    throw new SystemError(Errno.ESRCH, `Cannot find ${name} in /proc/meminfo`);
  };
  return { total: field("MemTotal"), dirty: field("Dirty") + field("Writeback") };
}

function bucketOf({ rate, capBytes }: BucketChoice): TokenBucket {
  return new TokenBucket(rate, capBytes);
}

function limiterOf(choice: BucketChoice | MemoryChoice): Limiter {
  return choice.type === "meminfo"
    ? new MemoryLimiter(choice, bucketOf(choice.bucket), memoryState)
    : bucketOf(choice);
}

/** Serves valves until a signal ends it. */
async function serve({ name, limiter, isDaemon }: RatedChoices): Promise<void> {
  if (!name.startsWith("/")) Deno.mkdirSync(VALVE_FOLDER, { recursive: true, mode: 0o700 });
  raiseDescriptorLimit();
  const log = openDaemonLog("td-rated", !isDaemon);
  const scheduler = new EpollScheduler();
  const path = bridgePath(name);
  const bridge = new Bridge(scheduler, path, { limiter: limiterOf(limiter), log });
  const logState = (): void => {
    for (const line of bridge.describe()) log.info(line);
  };
  Deno.addSignalListener("SIGUSR1", logState);
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    Deno.addSignalListener(signal, () => {
      log.info(`Ends, by ${signal}`);
      scheduler.stop();
    });
  }
  log.info(`Serves valves at ${path}, process ${Deno.pid}`);
  logState();
  if (isDaemon) {
    goToBackground();
  }
  try {
    await scheduler.run();
  } catch (error) {
    // Standard error of a daemon leads nowhere.
    log.error(`Ended by a fault: ${describeFault(error)}`);
    throw error;
  } finally {
    bridge.close();
    scheduler.close();
    log.close();
  }
}

/** Runs a command line; returns the exit status. */
async function run(args: readonly string[]): Promise<number> {
  const choices = parseRated(args);
  if (choices === null) {
    printText(helpText());
    return 0;
  }
  const { name, debug, isDaemon } = choices;
  if (debug === 0 && !isDaemon) return await startInBackground("td-rated", args);
  await serve({ ...choices, name: name.includes("/") ? absolute(name) : name });
  return 0;
}

function absolute(path: string): string {
  return path.startsWith("/") ? path : `${workingFolder()}/${path}`;
}

/**
 * Runs td-rated.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function tdRatedMain(args: readonly string[]): Promise<number> {
  try {
    return await run(args);
  } catch (error) {
    printErrorLine(`td-rated: ${messageOf(error)}`);
    const errno = errnoOf(error);
    if (errno === Errno.EINVAL) printErrorText(`Usage: ${SYNOPSES.join("\n       ")}`);
    return errno;
  }
}
