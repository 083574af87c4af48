import { errnoName } from "../../ffi/errno.ts";
import type { LogFields, LogLevel } from "./log_fields.ts";
import { plainJson } from "./plain_text.ts";

/** One entry as JSON on one line, without its end. What is not known has no field. */
export function jsonLine(
  level: LogLevel,
  message: string,
  { ident, time, fields }: { ident: string; time: Date; fields: LogFields },
): string {
  const { errno, pid, command, durationMs, ...same } = fields;
  return plainJson(JSON.stringify({
    time: time.toISOString(),
    program: ident,
    pid: Deno.pid,
    level,
    message,
    ...same,
    ...(errno === undefined ? {} : { errno, error: errnoName(errno) }),
    ...(pid === undefined ? {} : { by_pid: pid }),
    ...(command === undefined ? {} : { by_command: command }),
    ...(durationMs === undefined ? {} : { duration_ms: Math.round(durationMs * 1000) / 1000 }),
  }));
}
