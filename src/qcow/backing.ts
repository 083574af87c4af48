import { Errno, SystemError } from "../../ffi/errno.ts";

/** Formats that a backing file may have. */
const BACKING_FORMATS = ["raw", "qcow"] as const;
/** One of {@linkcode BACKING_FORMATS}. */
export type BackingFormat = typeof BACKING_FORMATS[number];

/** A backing file as an image names it. */
export interface BackingName {
  readonly path: string;
  /** Null where nothing says it. */
  readonly format: BackingFormat | null;
}

/** What an image's name may say in front of the path: the formats of the images below it. */
export interface NamedFormats {
  readonly formats: readonly BackingFormat[];
  /** Where in the text the path begins. */
  readonly at: number;
}

/** The formats in front of the path in `raw:/disk.qcow` or `qcow,raw:/disk.qcow`. */
export function namedFormats(rest: string): NamedFormats {
  const prefix = /^((?:raw|qcow)(?:,(?:raw|qcow))*):/.exec(rest)?.[1];
  if (prefix === undefined) return { formats: [], at: 0 };
  return { formats: prefix.split(",").flatMap(formatNamed), at: prefix.length + 1 };
}

function formatNamed(name: string): BackingFormat[] {
  return BACKING_FORMATS.filter((format) => format === name);
}

/**
 * Reads the name of a backing file. QEMU's `json:{"driver":"raw","file":{"driver":"file",
 * "filename":"/base.raw"}}` says the format, and a plain name does not.
 *
 * @throws {SystemError} EINVAL for a name of QEMU that stands for no file, or for another format.
 */
export function parseBackingName(name: string, imagePath: string): BackingName {
  if (!name.startsWith("json:")) {
    return { path: name, format: null };
  }
  const { driver, filename } = jsonName(name.slice(5));
  const format = BACKING_FORMATS.find((known) => known === driver);
  if (format === undefined || filename === null || !filename.startsWith("/")) {
    throw new SystemError(
      Errno.EINVAL,
      `Cannot follow the backing file of ${imagePath}: ${JSON.stringify(name)} names no raw or ` +
        `QCOW file by its absolute path`,
    );
  }
  return { path: filename, format };
}

/** The driver and the file's name of QEMU's description of an image. */
function jsonName(text: string): { driver: unknown; filename: string | null } {
  let options: Record<string, unknown>;
  try {
    options = record(JSON.parse(text));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return { driver: null, filename: null };
  }
  const file = record(options.file);
  const protocol = file.driver ?? options["file.driver"];
  const filename = file.filename ?? options["file.filename"];
  const isFile = protocol === "file" || protocol === "host_device";
  return { driver: options.driver, filename: isFile ? textOf(filename) : null };
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

function textOf(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/** The name that says a backing file's format to QEMU and to {@linkcode parseBackingName}. */
export function backingNameOf({ path, format }: { path: string; format: BackingFormat }): string {
  return `json:${JSON.stringify({ driver: format, file: { driver: "file", filename: path } })}`;
}
