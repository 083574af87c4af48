/**
 * The calls that XenServer's storage manager makes (xapi-project/sm, libs/sm: blktap2.py, cbtutil.py,
 * vhdutil.py): which program, with which arguments in which order, and how the output is parsed.
 *
 * @module
 */
import assert from "node:assert/strict";

/** The result of a program, as the storage manager sees it. */
export interface Answer {
  readonly code: number;
  readonly stdout: string;
}

/** Runs one of our programs, or the reference's. */
export type Runner = (
  program: "tap-ctl" | "cbt-util" | "vhd-util",
  args: readonly string[],
  stdin?: Uint8Array<ArrayBuffer>,
) => Promise<Answer>;

/** Options of `TapCtl.open`. */
export interface OpenChoices {
  readonly rdonly?: boolean;
  readonly lcache?: boolean;
  readonly existingPrt?: number;
  readonly secondary?: string;
  readonly standby?: boolean;
  readonly timeout?: number;
  /** False: the image goes through the page cache. */
  readonly oDirect?: boolean;
  readonly cbtlog?: string;
  readonly key?: Uint8Array<ArrayBuffer>;
}

/** A line of `tap-ctl list`, as it is parsed. */
export interface TapRow {
  readonly pid?: number;
  readonly minor?: number;
  readonly state?: number;
  readonly args?: string;
}

function maybe(option: string, value: string | number | undefined): string[] {
  return value === undefined ? [] : [option, String(value)];
}

/** TapCtl of blktap2.py. */
export class TapCtl {
  readonly #run: Runner;

  constructor(run: Runner) {
    this.#run = run;
  }

  #call(args: readonly (string | number)[], stdin?: Uint8Array<ArrayBuffer>): Promise<Answer> {
    return this.#run("tap-ctl", args.map(String), stdin);
  }

  list(
    { minor, pid, type, path }: { minor?: number; pid?: number; type?: string; path?: string } = {},
  ): Promise<Answer> {
    const filters = [maybe("-m", minor), maybe("-p", pid), maybe("-t", type), maybe("-f", path)];
    return this.#call(["list", ...filters.flat()]);
  }

  allocate = (): Promise<Answer> => this.#call(["allocate"]);
  free = (minor: number): Promise<Answer> => this.#call(["free", "-m", minor]);
  spawn = (): Promise<Answer> => this.#call(["spawn"]);

  attach = (pid: number, minor: number): Promise<Answer> =>
    this.#call(["attach", "-p", pid, "-m", minor]);

  detach = (pid: number, minor: number): Promise<Answer> =>
    this.#call(["detach", "-p", pid, "-m", minor]);

  open(pid: number, minor: number, image: string, choices: OpenChoices = {}): Promise<Answer> {
    const args: (string | number)[] = ["open", "-p", pid, "-m", minor, "-a", image];
    if (choices.rdonly) args.push("-R");
    if (choices.lcache) args.push("-r");
    args.push(...maybe("-e", choices.existingPrt), ...maybe("-2", choices.secondary));
    if (choices.standby) args.push("-s");
    args.push(...maybe("-t", choices.timeout));
    if (choices.oDirect === false) args.push("-D");
    args.push(...maybe("-C", choices.cbtlog));
    if (choices.key !== undefined) args.push("-E");
    return this.#call(args, choices.key);
  }

  close = (pid: number, minor: number, force = false): Promise<Answer> =>
    this.#call(["close", "-p", pid, "-m", minor, "-t", 120, ...force ? ["-f"] : []]);

  pause = (pid: number, minor: number): Promise<Answer> =>
    this.#call(["pause", "-p", pid, "-m", minor]);

  unpause(
    pid: number,
    minor: number,
    { image, mirror, cbtlog }: { image?: string; mirror?: string; cbtlog?: string } = {},
  ): Promise<Answer> {
    const options = [maybe("-2", mirror), maybe("-a", image), maybe("-c", cbtlog)].flat();
    return this.#call(["unpause", "-p", pid, "-m", minor, ...options]);
  }

  stats = (pid: number, minor: number): Promise<Answer> =>
    this.#call(["stats", "-p", pid, "-m", minor]);

  /** The rows of a list: the fields of a line end at its first three spaces. */
  static rows(stdout: string): TapRow[] {
    return stdout.split("\n").filter(Boolean).map((line) => {
      const words = line.trimEnd().split(" ");
      const fields = [...words.slice(0, 3), words.slice(3).join(" ")].filter(Boolean);
      const row: Record<string, number | string> = {};
      for (const field of fields) {
        const parts = field.split("=");
        // A field with another number of "=" is left out.
        if (parts.length !== 2) continue;
        const [key, value] = parts;
        if (key === "pid" || key === "minor") row[key] = strictInt(value, 10);
        else if (key === "state") row[key] = strictInt(value, 16);
        else row[key] = value;
      }
      return row;
    });
  }
}

/** The functions of cbtutil.py. */
export class CbtUtil {
  readonly #run: Runner;

  constructor(run: Runner) {
    this.#run = run;
  }

  #call = (...args: string[]): Promise<Answer> => this.#run("cbt-util", args);

  create = (path: string, size: number): Promise<Answer> =>
    this.#call("create", "-n", path, "-s", String(size));

  set = (path: string, field: "p" | "c" | "f" | "s", value: string): Promise<Answer> =>
    this.#call("set", "-n", path, `-${field}`, value);

  get = (path: string, field: "p" | "c" | "f" | "s" | "b"): Promise<Answer> =>
    this.#call("get", "-n", path, `-${field}`);

  coalesce = (parent: string, child: string): Promise<Answer> =>
    this.#call("coalesce", "-p", parent, "-c", child);
}

const DEBUG = "--debug";

/** The functions of vhdutil.py. */
export class VhdUtil {
  readonly #run: Runner;

  constructor(run: Runner) {
    this.#run = run;
  }

  #call = (...args: string[]): Promise<Answer> => this.#run("vhd-util", args);

  /** getVHDInfo, getParent, getHidden, getSizeVirt, getSizePhys, getMaxResizeSize, … */
  query = (path: string, options: string): Promise<Answer> =>
    this.#call("query", DEBUG, options, "-n", path);

  /** getAllVHDs, getVHDInfoLVM */
  scan(
    pattern: string,
    { group, parentsOnly = false, nofail = false }: {
      group?: string;
      parentsOnly?: boolean;
      nofail?: boolean;
    } = {},
  ): Promise<Answer> {
    const options = [...maybe("-l", group), ...parentsOnly ? ["-a"] : [], ...nofail ? ["-c"] : []];
    return this.#call("scan", "-f", "-m", pattern, ...options);
  }

  /** hasParent */
  readHeaders = (path: string): Promise<Answer> => this.#call("read", DEBUG, "-p", "-n", path);
  /** getBlockBitmap */
  readBitmap = (path: string): Promise<Answer> => this.#call("read", DEBUG, "-B", "-n", path);

  /** setParent */
  setParent = (path: string, parent: string, raw = false): Promise<Answer> =>
    this.#call("modify", DEBUG, "-p", parent, "-n", path, ...raw ? ["-m"] : []);

  setHidden = (path: string, hidden: boolean): Promise<Answer> =>
    this.#call("set", DEBUG, "-n", path, "-f", "hidden", "-v", hidden ? "1" : "0");

  /** setSizeVirt */
  resize = (path: string, mib: number, journal: string): Promise<Answer> =>
    this.#call("resize", DEBUG, "-s", String(mib), "-n", path, "-j", journal);

  /** setSizeVirtFast */
  resizeFast = (path: string, mib: number): Promise<Answer> =>
    this.#call("resize", DEBUG, "-s", String(mib), "-n", path, "-f");

  setSizePhys = (path: string, bytes: number, debug = true): Promise<Answer> =>
    this.#call("modify", ...debug ? [DEBUG] : [], "-s", String(bytes), "-n", path);

  killData = (path: string): Promise<Answer> => this.#call("modify", DEBUG, "-z", "-n", path);
  coalesce = (path: string): Promise<Answer> => this.#call("coalesce", DEBUG, "-n", path);

  create = (path: string, mib: number, isStatic = false, msize = 0): Promise<Answer> =>
    this.#call(
      ...["create", DEBUG, "-n", path, "-s", String(mib)],
      ...isStatic ? ["-r"] : [],
      ...msize > 0 ? ["-S", String(msize)] : [],
    );

  snapshot(
    path: string,
    parent: string,
    { raw = false, msize = 0, checkEmpty = true }: {
      raw?: boolean;
      msize?: number;
      checkEmpty?: boolean;
    } = {},
  ): Promise<Answer> {
    return this.#call(
      ...["snapshot", DEBUG, "-n", path, "-p", parent],
      ...raw ? ["-m"] : [],
      ...msize > 0 ? ["-S", String(msize)] : [],
      ...checkEmpty ? [] : ["-e"],
    );
  }

  check(path: string, { missingFooter = false, fast = false } = {}): Promise<Answer> {
    const options = [...missingFooter ? ["-i"] : [], ...fast ? ["-B"] : []];
    return this.#call("check", DEBUG, "-n", path, ...options);
  }

  revert = (path: string, journal: string): Promise<Answer> =>
    this.#call("revert", DEBUG, "-n", path, "-j", journal);

  repair = (path: string): Promise<Answer> => this.#call("repair", "-n", path);
  keyHash = (path: string): Promise<Answer> => this.#call("key", "-p", "-n", path);

  setKey = (path: string, hash: string): Promise<Answer> =>
    this.#call("key", "-s", "-n", path, "-H", hash);
}

/** Reads a number as Python's `int` does. Throws where that would. */
export function strictInt(text: string, base = 10): number {
  const number = text.trim();
  assert.match(number, base === 16 ? /^(0x)?[0-9a-f]+$/ : /^-?\d+$/);
  return parseInt(number, base);
}

/** What vhdutil.py knows of an image. */
export interface VhdInfo {
  path: string;
  uuid: string;
  sizeVirt: number;
  sizePhys: number;
  sizeAllocated: number;
  hidden: number;
  parentPath: string;
  parentUuid: string;
  error: string;
}

/** An image of which nothing is known. */
export const NO_INFO: VhdInfo = {
  path: "",
  uuid: "",
  sizeVirt: -1,
  sizePhys: -1,
  sizeAllocated: -1,
  hidden: 0,
  parentPath: "",
  parentUuid: "",
  error: "",
};

const MIB = 1024 * 1024;

/** As in the file SR: the name without folder and extension. */
export function extractUuid(path: string): string {
  const name = path.slice(path.lastIndexOf("/") + 1).trim();
  return name.replace(/\.vhd$/, "");
}

/** getVHDInfo: the output of a query with `-vsafp`, or `-vsaf` without the parent. */
export function parseVhdInfo(stdout: string, path: string, includeParent = true): VhdInfo {
  const fields = stdout.trim().split("\n");
  const info = { ...NO_INFO, path, uuid: extractUuid(path) };
  info.sizeVirt = strictInt(fields[0]) * MIB;
  info.sizePhys = strictInt(fields[1]);
  let next = 2;
  if (includeParent) {
    if (!fields[next].includes("no parent")) {
      info.parentPath = fields[next];
      info.parentUuid = extractUuid(fields[next]);
    }
    next++;
  }
  info.hidden = strictInt(fields[next].replace("hidden: ", ""));
  info.sizeAllocated = strictInt(fields[next + 1]) * 2 * MIB;
  assert.equal(fields.length, next + 2);
  return info;
}

/** _parseVHDInfo: a line of `scan`; null for what is none. */
export function parseScanLine(line: string): VhdInfo | null {
  const values = line.split(/\s+/).filter(Boolean);
  if (values.length < 1 || !values[0].includes("vhd=")) return null;
  const info = { ...NO_INFO };
  for (const keyAndValue of values) {
    const parts = keyAndValue.split("=");
    assert.equal(parts.length, 2, `${keyAndValue} unpacks to two`);
    const [key, value] = parts;
    if (key === "vhd") [info.uuid, info.path] = [extractUuid(value), value];
    else if (key === "scan-error") {
      info.error = line;
      break;
    } else if (key === "capacity") info.sizeVirt = strictInt(value);
    else if (key === "size") info.sizePhys = strictInt(value);
    else if (key === "hidden") info.hidden = strictInt(value);
    else if (key === "parent" && value !== "none") {
      [info.parentPath, info.parentUuid] = [value, extractUuid(value)];
    }
  }
  return info;
}

/** hasParent: the output of `read -p`. */
export function parseHasParent(stdout: string): boolean {
  const type = /^.*Disk type\s+: (\S+) hard disk.*/s.exec(stdout)?.[1];
  assert.ok(type === "Differencing" || type === "Dynamic");
  return type === "Differencing";
}

/** getParent: the output of a query with `-p`. */
export function parseParent(stdout: string): string | null {
  assert.ok(!stdout.includes("query failed") && !stdout.includes("Failed opening"));
  return stdout.includes("no parent") ? null : extractUuid(stdout);
}
