/**
 * The log of a daemon: standard error, or the system's log when it runs in the background.
 *
 * @module
 */
import { Logger, type LogLevel } from "../log/log.ts";
import { SyslogSink } from "../log/syslog_sink.ts";
import { printErrorLine } from "./print.ts";

/** The priorities of sd-daemon(3), by which the journal knows how much a line matters. */
const PRIORITIES: Record<LogLevel, number> = { error: 3, warning: 4, info: 6 };

/** The start of a line on standard error, which may be the journal. */
function startOf(name: string, level: LogLevel): string {
  const isJournal = (Deno.env.get("JOURNAL_STREAM") ?? "") !== "";
  return isJournal ? `<${PRIORITIES[level]}>` : `${name}: ${level}: `;
}

/** Opens the log of the daemon `name`. */
export function openDaemonLog(name: string, onStandardError: boolean): Logger {
  const log = new Logger([]);
  if (onStandardError) {
    log.addSink({
      write: (level: LogLevel, message: string) =>
        printErrorLine(`${startOf(name, level)}${message}`),
      reopen(): void {},
      close(): void {},
    });
    return log;
  }
  try {
    log.addSink(new SyslogSink(name));
  } catch {
    // This machine has no syslog daemon, which is not an error.
  }
  return log;
}
