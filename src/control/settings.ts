import { Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { pathExists } from "../../ffi/paths.ts";
import { requireTrustedFile } from "../files/trusted_path.ts";
import { MAX_ID } from "./minors/minors.ts";

/** The settings of all tapdisks, a `NAME=VALUE` a line. The same names in the environment come first. */
const SETTINGS_FILE = "/etc/blktap/blktap.conf";
/** Another file, for tests and for programs with a control folder of their own. */
const FILE_VARIABLE = "BLKTAP_CONFIG";

const DISKS_PER_PROCESS = "BLKTAP_DISKS_PER_PROCESS";
const IDLE_SECONDS = "BLKTAP_IDLE_SECONDS";
/** The processors of new tapdisks. */
export const CPUS = "BLKTAP_CPUS";
/** The niceness of new tapdisks. */
export const NICE = "BLKTAP_NICE";
/** The format of the log. */
const LOG_FORMAT = "BLKTAP_LOG_FORMAT";
/** The names of the settings. */
export const NAMES: readonly string[] = [DISKS_PER_PROCESS, IDLE_SECONDS, CPUS, NICE, LOG_FORMAT];

/** How tapdisks are started, and when they end. */
export interface TapdiskSettings {
  /** The most disks of a process that `spawn` answers with; 1 starts a process for each disk. */
  readonly disksPerProcess: number;
  /** How long a process of several disks lives on without a disk. */
  readonly idleSeconds: number;
  /** The processors that a new tapdisk may run on; null for those of its caller. */
  readonly processors: readonly number[] | null;
  /** The niceness of a new tapdisk; null for that of its caller. */
  readonly niceness: number | null;
}

/** Processors that a mask of the kernel has room for (CONFIG_NR_CPUS is at most 8192). */
const MOST_PROCESSORS = 8192;

/** The values in a file of settings. Throws `SystemError`: EINVAL for a line that is no setting. */
export function parseSettings(text: string, path: string): Map<string, string> {
  const values = new Map<string, string>();
  text.split("\n").forEach((line, index) => {
    const setting = line.replace(/#.*/, "").trim();
    if (setting === "") return;
    const [, name, value] = /^(\w+) *= *(.*)$/.exec(setting) ?? [];
    if (name === undefined || !NAMES.includes(name)) {
      const hint = `it has no NAME=VALUE with a name of ${NAMES.join(", ")}`;
      throw new SystemError(Errno.EINVAL, `Cannot use line ${index + 1} of ${path}`, {
        file: path,
        hint,
      });
    }
    values.set(name, value.replace(/^"(.*)"$/, "$1"));
  });
  return values;
}

function fileValues(): Map<string, string> {
  const path = Deno.env.get(FILE_VARIABLE) || SETTINGS_FILE;
  if (!pathExists(path)) return new Map();
  requireTrustedFile(path);
  try {
    return parseSettings(Deno.readTextFileSync(path), path);
  } catch (error) {
    throw systemError(error, `Cannot read ${path}`);
  }
}

function wholeNumber(name: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (/^-?\d+$/.test(text) && value >= least && value <= most) return value;
  const what = `Cannot use ${name}=${text} (it must be a whole number from ${least} to ${most})`;
  throw new SystemError(Errno.EINVAL, what);
}

/**
 * A niceness.
 *
 * @param name What has this value, for the error.
 * @throws {SystemError} EINVAL
 */
export function parseNiceness(text: string, name: string = NICE): number {
  return wholeNumber(name, text, -20, 19);
}

/**
 * The numbers of a list such as `0-3,8`.
 *
 * @param name What has this value, for the error.
 * @throws {SystemError} EINVAL
 */
export function parseProcessors(text: string, name: string = CPUS): number[] {
  const chosen = new Set<number>();
  for (const part of text.split(",")) {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part.trim()) ?? [];
    if (first === undefined || Number(last) < Number(first) || Number(last) >= MOST_PROCESSORS) {
      const hint = `a list of processors is like 0-3,8, with numbers below ${MOST_PROCESSORS}`;
      throw new SystemError(Errno.EINVAL, `Cannot use ${name}=${text} (${hint})`);
    }
    for (let each = Number(first); each <= Number(last); each++) chosen.add(each);
  }
  return [...chosen].sort((a, b) => a - b);
}

/**
 * The settings of this machine: those of the environment, then those of `/etc/blktap/blktap.conf`.
 *
 * @throws {SystemError} EINVAL for a value that is not possible, EPERM for a file that others can change.
 */
export function tapdiskSettings(): TapdiskSettings {
  const inFile = fileValues();
  const text = (name: string): string => Deno.env.get(name) || inFile.get(name) || "";
  const number = (name: string, least: number, most: number): number | null =>
    text(name) === "" ? null : wholeNumber(name, text(name), least, most);
  return {
    disksPerProcess: number(DISKS_PER_PROCESS, 1, MAX_ID) ?? 1,
    idleSeconds: number(IDLE_SECONDS, 0, 86_400) ?? 60,
    processors: text(CPUS) === "" ? null : parseProcessors(text(CPUS)),
    niceness: text(NICE) === "" ? null : parseNiceness(text(NICE)),
  };
}

/** How the log is written: as text, as JSON, or with fields to the journal of systemd. */
const LOG_FORMATS = ["text", "json", "journal"] as const;
/** One of `LOG_FORMATS`. */
export type LogFormat = (typeof LOG_FORMATS)[number];

/**
 * The format of the log of this machine's tapdisks.
 *
 * @throws {SystemError} EINVAL for another one, EPERM for a file that others can change.
 */
export function logFormat(): LogFormat {
  const text = Deno.env.get(LOG_FORMAT) || fileValues().get(LOG_FORMAT) || "text";
  const known = LOG_FORMATS.find((format) => format === text);
  if (known !== undefined) return known;
  const hint = `it must be one of ${LOG_FORMATS.join(", ")}`;
  throw new SystemError(Errno.EINVAL, `Cannot use ${LOG_FORMAT}=${text} (${hint})`);
}

/** Variables that do not change what a tapdisk does: the caller's own choices. */
const CALLERS_OWN = new Set(["BLKTAP_DEVICE", "BLKTAP_CONTROL_DIR", FILE_VARIABLE]);

/**
 * A text that is the same for two processes whose disks could be served by either: they run the same
 * file, see the same files, and have the same settings. A newly installed version is another file.
 */
export function sharingTerms(): string {
  const variables = Object.entries(Deno.env.toObject())
    .filter(([name]) => name.startsWith("BLKTAP_") && !CALLERS_OWN.has(name)).sort();
  const { dev, ino, mtime } = Deno.statSync("/proc/self/exe");
  const program = [Deno.execPath().replace(/ \(deleted\)$/, ""), dev, ino, mtime?.getTime() ?? 0];
  const mounts = Deno.readLinkSync("/proc/self/ns/mnt");
  return JSON.stringify({ program, mounts, settings: tapdiskSettings(), variables });
}
