import { runsThisProgram } from "../control/client/upgrade.ts";
import { type Finding, findingsOf, namesOf, textOf } from "./finding.ts";

/** A program that serves disks. */
export interface ProgramFacts {
  readonly pid: number;
  /** The file that it runs; null where that cannot be seen. */
  readonly file: string | null;
  /** Whether that is the file of this program. */
  readonly isThisOne: boolean;
  /** The files of libraries that it has loaded: libcrypto, libssl, librbd. */
  readonly libraries: readonly string[];
}

/** The libraries that an update of the system may replace. */
const LIBRARIES = /\/lib(?:crypto|ssl|rbd|rados)[.-][^/]*$/;

/** Paths of such libraries in the text of /proc/PID/maps; a file that was replaced is `… (deleted)`. */
export function librariesIn(maps: string): string[] {
  const found = new Set<string>();
  for (const line of maps.split("\n")) {
    const path = line.split(/\s+/).slice(5).join(" ");
    if (LIBRARIES.test(path.replace(/ \(deleted\)$/, ""))) found.add(path);
  }
  return [...found].sort();
}

/** The programs of tapdisks. */
export function programFacts(pids: readonly number[]): ProgramFacts[] {
  return pids.map((pid) => {
    let file: string | null = null;
    try {
      file = Deno.readLinkSync(`/proc/${pid}/exe`);
    } catch {
      // The process is another user's.
    }
    const libraries = librariesIn(textOf(`/proc/${pid}/maps`) ?? "");
    return { pid, file, isThisOne: runsThisProgram(pid), libraries };
  });
}

const programs = findingsOf("programs");

function judgeProgram({ pid, file, isThisOne, libraries }: ProgramFacts): Finding[] {
  const where = `tapdisk ${pid}`;
  const how = `tap-ctl upgrade -p ${pid}`;
  if (file === null) return [programs.note("Which program it runs cannot be seen", where)];
  const found: Finding[] = [];
  if (!isThisOne) {
    found.push(programs.warning(`It runs ${file}, which is not this program`, where, how));
  }
  const replaced = libraries.filter((path) => path.endsWith(" (deleted)"));
  if (replaced.length > 0) {
    const names = replaced.map((path) => path.replace(" (deleted)", "")).join(", ");
    const what = `It has loaded libraries that were replaced since: ${names}`;
    found.push(programs.warning(what, where, how));
  }
  return found;
}

/** Judges which programs serve disks. */
export function judgePrograms(facts: readonly ProgramFacts[]): Finding[] {
  const found = facts.flatMap(judgeProgram);
  const libraries = new Set(facts.flatMap((program) => program.libraries));
  const loaded = libraries.size === 0 ? [] : [
    programs.ok(`Loaded by tapdisks: ${[...libraries].sort().join(", ")}`),
  ];
  if (found.length > 0) return [...found, ...loaded];
  return [programs.ok(`All tapdisks run this program (${facts.length})`), ...loaded];
}

const libraries = findingsOf("libraries");

/** Where systems have libraries. */
const FOLDERS = [
  ...["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"],
  ...["/usr/lib", "/usr/local/lib"],
];

/** A library that a disk may need, what for, and how it is installed. */
const WANTED = [
  {
    names: ["libcrypto.so.3", "libcrypto.so.1.1"],
    use: "encrypted images and TLS",
    how: "apt install libssl3",
  },
  {
    names: ["libssl.so.3", "libssl.so.1.1"],
    use: "TLS",
    how: "apt install libssl3",
  },
  { names: ["librbd.so.1"], use: "images on Ceph", how: "apt install librbd1" },
];

/** The file of a library, by its own name with the version: `/usr/lib64/librbd.so.1.18.0`. */
function libraryFile(name: string): string | null {
  const folder = FOLDERS.find((each) => namesOf(each).includes(name));
  if (folder === undefined) return null;
  try {
    return Deno.realPathSync(`${folder}/${name}`);
  } catch {
    return `${folder}/${name}`;
  }
}

/** Which libraries there are. Disks that need none of them are served without. */
export function libraryFindings(): Finding[] {
  return WANTED.map(({ names, use, how }) => {
    const file = names.map(libraryFile).find((path) => path !== null) ?? null;
    if (file !== null) return libraries.ok(`For ${use}: ${file}`, file);
    const what = `${names[0]} is not where systems have it; it is needed for ${use}`;
    return libraries.note(what, undefined, how);
  });
}
