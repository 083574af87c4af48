import { messageOf } from "../../../ffi/errno.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import { BLKTAP2_CONTROL_DIR, controlFolder } from "../../control/paths.ts";
import { logFormat } from "../../control/settings.ts";
import { FileSink } from "../../log/file_sink.ts";
import { JournalSink } from "../../log/journal_sink.ts";
import { jsonLine } from "../../log/json_line.ts";
import { type LogFields, Logger, type LogLevel, type LogSink } from "../../log/log.ts";
import { SyslogSink } from "../../log/syslog_sink.ts";
import { printErrorLine } from "../print.ts";

const IDENT = "tapdisk";
const DEFAULT_LOG_FOLDER = "/var/log/blktap";

/** The folder of the log file. */
function logFolder(): string {
  const chosen = Deno.env.get("BLKTAP_LOG_DIR") ?? "";
  if (chosen !== "") return chosen.startsWith("/") ? chosen : `${workingFolder()}/${chosen}`;
  const folder = controlFolder();
  return folder === BLKTAP2_CONTROL_DIR ? DEFAULT_LOG_FOLDER : `${folder}/log`;
}

/** Entries on standard error, for a tapdisk in the foreground. */
function standardError(asJson: boolean): LogSink {
  return {
    write(level: LogLevel, message: string, fields: LogFields = {}): void {
      if (!asJson) printErrorLine(`${IDENT}: ${level}: ${message}`);
      else printErrorLine(jsonLine(level, message, { ident: IDENT, time: new Date(), fields }));
    },
    reopen(): void {},
    close(): void {},
  };
}

/** Where the log of this machine is: the journal if that is asked for, or syslog; null without one. */
function systemLog(log: Logger, forJournal: boolean): LogSink | null {
  if (forJournal) {
    try {
      return new JournalSink(IDENT);
    } catch (error) {
      log.warn(`Cannot log to the journal: ${messageOf(error)}`);
    }
  }
  try {
    return new SyslogSink(IDENT);
  } catch {
    // This machine has no syslog daemon, which is not an error.
    return null;
  }
}

/**
 * The log of this process: syslog where there is one, the file `tapdisk.log`, and standard error
 * if asked for. What cannot be opened is left out, with a warning to the rest.
 *
 * @throws {SystemError} EINVAL for a format that there is not.
 */
export function openLog({ onStandardError }: { onStandardError: boolean }): Logger {
  const format = logFormat();
  const asJson = format === "json";
  const log = new Logger(onStandardError ? [standardError(asJson)] : []);
  const path = `${logFolder()}/${IDENT}.log`;
  try {
    Deno.mkdirSync(logFolder(), { recursive: true, mode: 0o700 });
    log.addSink(new FileSink(path, IDENT, asJson));
  } catch (error) {
    log.warn(`Cannot log to ${path}: ${messageOf(error)}`);
  }
  // Last, so that the others have a warning about it.
  const system = systemLog(log, format === "journal");
  if (system !== null) log.addSink(system);
  return log;
}
