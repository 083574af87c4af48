import { messageOf } from "../../../ffi/errno.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import { BLKTAP2_CONTROL_DIR, controlFolder } from "../../control/paths.ts";
import { FileSink } from "../../log/file_sink.ts";
import { Logger, type LogLevel, type LogSink } from "../../log/log.ts";
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
const standardError: LogSink = {
  write(level: LogLevel, message: string): void {
    printErrorLine(`${IDENT}: ${level}: ${message}`);
  },
  reopen(): void {},
  close(): void {},
};

/**
 * The log of this process: syslog where there is one, the file `tapdisk.log`, and standard error
 * if asked for. What cannot be opened is left out, with a warning to the rest.
 */
export function openLog({ onStandardError }: { onStandardError: boolean }): Logger {
  const log = new Logger(onStandardError ? [standardError] : []);
  try {
    log.addSink(new SyslogSink(IDENT));
  } catch {
    // This machine has no syslog daemon, which is not an error.
  }
  const path = `${logFolder()}/${IDENT}.log`;
  try {
    Deno.mkdirSync(logFolder(), { recursive: true, mode: 0o700 });
    log.addSink(new FileSink(path, IDENT));
  } catch (error) {
    log.warn(`Cannot log to ${path}: ${messageOf(error)}`);
  }
  return log;
}
