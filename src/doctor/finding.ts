/**
 * `src/doctor`: looks for what is wrong with a host that serves disks, and says how to mend it. Each file
 * looks at one thing: it gathers facts and judges them by pure functions. This folder must not change
 * anything, must not wait without a time limit, and must not print.
 *
 * This file has what is found, and reading with limits.
 *
 * @module
 */
import { messageOf } from "../../ffi/errno.ts";

/** How bad a finding is, the least first. A note is no fault. */
export const SEVERITIES = ["ok", "note", "warning", "error"] as const;
/** One of {@linkcode SEVERITIES}. */
export type Severity = (typeof SEVERITIES)[number];

/** What was found at one place. */
export interface Finding {
  readonly severity: Severity;
  /** What was looked at: `limits`. */
  readonly check: string;
  /** What is so, in a sentence. */
  readonly what: string;
  /** The file, disk or process; null for the whole host. */
  readonly where: string | null;
  /** A command that mends it, or what to do; null where nothing is to be done. */
  readonly how: string | null;
}

/** Makes findings of one check. */
export interface FindingMaker {
  ok(what: string, where?: string): Finding;
  note(what: string, where?: string, how?: string): Finding;
  /** Every fault says how to mend it. */
  warning(what: string, where: string, how: string): Finding;
  error(what: string, where: string, how: string): Finding;
}

/** The maker of the findings of a check. */
export function findingsOf(check: string): FindingMaker {
  const make = (severity: Severity) => (what: string, where?: string, how?: string): Finding => ({
    severity,
    check,
    what,
    where: where ?? null,
    how: how ?? null,
  });
  return {
    ok: make("ok"),
    note: make("note"),
    warning: make("warning"),
    error: make("error"),
  };
}

/** Whether a finding is a fault. */
export function isFault({ severity }: Finding): boolean {
  return severity === "warning" || severity === "error";
}

/** The text of a small file; null when it cannot be read. Only for files of /proc, /sys and /etc. */
export function textOf(path: string): string | null {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch {
    return null;
  }
}

/** The number that a file of the kernel has; null when there is none. */
export function numberIn(path: string): number | null {
  const text = textOf(path);
  return text === null || !/^\d+$/.test(text) ? null : Number(text);
}

/** The names in a folder, sorted; none when it cannot be read. Only for local folders. */
export function namesOf(folder: string): string[] {
  try {
    return Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
  } catch {
    return [];
  }
}

/** A word for a shell. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** What a program printed; null when it is not there, failed, or took too long. */
export async function outputOf(
  program: string,
  args: readonly string[],
  timeoutMs = 5000,
): Promise<string | null> {
  try {
    const signal = AbortSignal.timeout(timeoutMs);
    const output = await new Deno.Command(program, {
      args: [...args],
      stdin: "null",
      stdout: "piped",
      stderr: "null",
      signal,
    }).output();
    return output.success ? new TextDecoder().decode(output.stdout) : null;
  } catch {
    return null;
  }
}

/** A check: what it is called, and what it finds. */
export interface Check {
  readonly name: string;
  readonly run: () => Finding[] | Promise<Finding[]>;
}

/** Runs a check. That it failed, or took too long, is a finding. */
export async function runCheck({ name, run }: Check, timeoutMs: number): Promise<Finding[]> {
  const make = findingsOf(name);
  let timer: number | undefined;
  const late = new Promise<Finding[]>((resolve) => {
    timer = setTimeout(() => {
      const what = `This could not be checked within ${timeoutMs / 1000} s`;
      resolve([make.note(what)]);
    }, timeoutMs);
  });
  try {
    return await Promise.race([Promise.resolve().then(run), late]);
  } catch (error) {
    return [make.note(`This could not be checked: ${messageOf(error)}`)];
  } finally {
    clearTimeout(timer);
  }
}
