/**
 * The subcommands of vhd-util on the image of a case, in this process.
 *
 * @module
 */
import { vhdUtilMain } from "../../../../src/cli/vhd_util/main.ts";
import { PlainOutput } from "../../../../src/cli/subcommands/output.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { hold } from "./finding.ts";
import { pick } from "./mutations.ts";
import { readAlone, readOffline, requireSame } from "./readings.ts";
import type { Subject } from "./subject.ts";
import { FOLDER } from "./worlds.ts";
import { SystemError } from "../../../../ffi/errno.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { checkImage } from "../../../../src/vhd/check/check.ts";
import { attempt } from "./finding.ts";

const MIB = 1024 * 1024;
/** Disks beyond this size are not filled. */
const MOST_FILLED_BYTES = 16 * MIB;
const JOURNAL = `${FOLDER}/journal`;
const NEW = `${FOLDER}/new.vhd`;

/** Counts what is printed, and keeps the errors. */
class Printed extends PlainOutput {
  bytes = 0;
  errors = "";
  readonly #decoder = new TextDecoder();

  protected add(bytes: Uint8Array<ArrayBuffer>): void {
    this.bytes += bytes.length;
  }

  protected addError(bytes: Uint8Array<ArrayBuffer>): void {
    this.errors += this.#decoder.decode(bytes);
  }
}

/** The most that a subcommand prints, in bytes. */
const MOST_PRINTED = 64 * MIB;

/** Runs a subcommand; returns its exit status. */
export async function runVerb({ stage }: Subject, ...args: string[]): Promise<number> {
  const output = new Printed();
  const status = await stage.onDisk(async () => await vhdUtilMain(args, { output }));
  const name = args.slice(0, 2).join(" ");
  hold(status >= 0 && status < 134, () => `${name} ends with status ${status}`);
  hold(output.bytes < MOST_PRINTED, () => `${name} prints ${output.bytes} bytes`);
  const leftover = /\bundefined\b|\bNaN\b|\[object /.exec(output.errors);
  hold(leftover === null, () => `${name} says: ${output.errors.slice(0, 500)}`);
  return status;
}

/** An action of a case. */
export type Action = (subject: Subject, random: Random) => void | Promise<void>;

/** Subcommands that change nothing. */
export async function look(subject: Subject, random: Random): Promise<void> {
  const { path, content } = subject;
  const sector = `${random.below(700)}`;
  const block = `${random.below(20)}`;
  const small = content === null || content.sizeBytes <= MOST_FILLED_BYTES;
  const calls: string[][] = [
    ["query", "-n", path, "-vspfmdSa"],
    ["query", "-n", path, "--json"],
    ["query", "-n", path, "-pu"],
    ["read", "-n", path, "-p"],
    ["read", "-n", path, "-p", "--json"],
    ["read", "-n", path, "-px", "-b", block, "-c", "3"],
    ["read", "-n", path, "-m", block, "-i", sector, "-t", sector, "-j", block],
    ["read", "-n", path, "-d", block, "-c", "1"],
    ["read", "-n", path, "-r", sector, "-c", "8"],
    ["read", "-n", path, "-R", sector, "-c", "100"],
    ["check", "-n", path, "-p"],
    ["check", "-n", path, "-pb"],
    ["check", "-n", path, "-pi", "--json"],
    ["check", "-n", path, "-tBI"],
    ["scan", "-f", "-M", path],
    ["scan", "-a", "-v", "-M", path],
    ["scan", "-p", "-c", ...subject.paths],
    ["scan", "--json", "-a", path],
    ["tree", ...subject.paths],
    ["key", "-n", path, "-p"],
    ...(small
      ? [
        ["read", "-n", path, "-a", "-B"],
        ["read", "-n", path, "-e", sector, "-c", "64"],
        ["check", "-n", path, "-ps"],
        ["map", "-n", path],
        ["map", "-n", path, "--json"],
      ]
      : []),
  ];
  for (let i = 0; i < 4; i++) await runVerb(subject, ...pick(random, calls));
  subject.stage.watch.requireWritten();
}

/** `repair`: afterwards the image opens, and nothing that could be read is another. */
export async function repair(subject: Subject, random: Random): Promise<void> {
  const { path, stage, disk } = subject;
  const useBackup = random.chance(0.2);
  const status = await runVerb(subject, "repair", "-n", path, ...(useBackup ? ["-b"] : []));
  stage.watch.requireWritten(path);
  if (status === 0) {
    const image = attempt(() => openVhd(path, { storage: disk, ignoreDisabled: true }).close());
    if (image instanceof SystemError) hold(false, `Repaired, it is refused: ${image.message}`);
    requireRepaired(subject);
  }
  // The backup footer may be another one, with another size.
  if (!useBackup) subject.requireKept("repair");
}

/** Faults that a repair leaves: to mend them, it would have to guess. */
const LEFT_BY_REPAIR =
  /^(?:header\.(?:locators|parent|reserved)|footer\.|backup\.|differencing|data|bitmap)/;

function requireRepaired({ path, disk }: Subject): void {
  const { findings } = checkImage(path, { storage: disk });
  const fault = findings.find(({ severity, field }) =>
    severity === "error" && !LEFT_BY_REPAIR.test(field)
  );
  hold(fault === undefined, () => `Repaired, the check finds ${fault?.message} (${fault?.field})`);
}

/** `set`, `key -s`, `modify -s`: fields only. */
export async function setFields(subject: Subject, random: Random): Promise<void> {
  const { path, stage } = subject;
  const calls = [
    ["set", "-n", path, "-f", "hidden", "-v", "1"],
    ["set", "-n", path, "-f", "marker", "-v", "7"],
    ["key", "-n", path, "-s", "-H", "ab".repeat(32)],
    ["modify", "-n", path, "-s", `${random.below(1024) * 512}`],
  ];
  await runVerb(subject, ...pick(random, calls));
  stage.watch.requireWritten(path);
  subject.requireKept("a change of a field");
}

/** `fill` and `fill -b`: the disk reads the same. */
export async function fill(subject: Subject, random: Random): Promise<void> {
  const { path, stage, content } = subject;
  if (content !== null && content.sizeBytes > MOST_FILLED_BYTES) return;
  const range = random.chance(0.5) ? [] : ["-f", "9", "-t", `${9 + random.below(200)}`];
  await runVerb(subject, "fill", "-n", path, ...(random.chance(0.5) ? [] : ["-b", ...range]));
  stage.watch.requireWritten(path);
  subject.requireKept("fill");
}

/** `resize`: what is in both sizes is the same, and what is new is zero or the parent's. */
export async function resize(subject: Subject, random: Random): Promise<void> {
  const { path, stage, disk } = subject;
  const mib = pick(random, [1, 2, 3, 8, 64, 500, 4096]);
  const journal = random.chance(0.7);
  const how = journal ? ["-j", JOURNAL] : ["-f"];
  if (journal && mib > 64 && isFixed(subject)) return;
  await runVerb(subject, "resize", "-n", path, "-s", `${mib}`, ...how);
  stage.watch.requireWritten(path, JOURNAL);
  if (disk.exists(JOURNAL)) {
    const status = await runVerb(subject, "revert", "-n", path, "-j", JOURNAL);
    hold(status === 0, () => `A resize that failed cannot be reverted: status ${status}`);
  }
  subject.requireKept("resize");
}

function isFixed({ disk, path }: Subject): boolean {
  const image = attempt(() => openVhd(path, { storage: disk }));
  if (image instanceof SystemError) return false;
  image.close();
  return image.type === "fixed";
}

/** `modify -z`: the disk reads as the parent does, or as zeros. */
export async function discardData(subject: Subject): Promise<void> {
  const { path, stage, disk, content } = subject;
  const status = await runVerb(subject, "modify", "-n", path, "-z");
  stage.watch.requireWritten(path);
  if (status !== 0) return subject.requireKept("a refused modify -z");
  if (content === null) return;
  const after = readOffline(disk, path, content.sizeBytes);
  if (after instanceof SystemError) hold(false, `Emptied, it is refused: ${after.message}`);
  subject.requireNoNewFault("modify -z");
}

/** `modify -p`: another parent, or the same by another name. */
export async function changeParent(subject: Subject, random: Random): Promise<void> {
  const { path, paths, stage } = subject;
  const parent = pick(random, [...paths, `${FOLDER}/none.vhd`, `${FOLDER}/neighbour.vhd`]);
  const journal = random.chance(0.3) ? ["-j", JOURNAL] : [];
  const raw = parent.endsWith(".raw") ? ["-m"] : [];
  const held = readAlone(subject.disk, path);
  const status = await runVerb(subject, "modify", "-n", path, "-p", parent, ...raw, ...journal);
  stage.watch.requireWritten(path, JOURNAL);
  if (status !== 0) return subject.requireKept("a refused change of the parent");
  // Another parent: the image opens, and shows what it holds itself.
  const now = readAlone(subject.disk, path);
  hold(held !== null && now !== null, "Relinked, it is refused");
  requireSame(now, held, "Relinked");
}

/** `snapshot`: the child reads as the image does, and the image is not changed. */
export async function snapshot(subject: Subject, random: Random): Promise<void> {
  const { path, stage, disk, content } = subject;
  const options = [
    ...(random.chance(0.5) ? ["-e"] : []),
    ...(random.chance(0.2) ? ["-m"] : []),
    ...(random.chance(0.2) ? ["-S", `${1 + random.below(4000)}`] : []),
    ...(random.chance(0.2) ? ["-l", `${1 + random.below(4)}`] : []),
  ];
  const status = await runVerb(subject, "snapshot", "-n", NEW, "-p", path, ...options);
  stage.watch.requireWritten(NEW);
  if (status !== 0) hold(!disk.exists(NEW), "A snapshot that failed leaves a file");
  else if (content !== null && !options.includes("-m")) {
    const child = readOffline(disk, NEW, content.sizeBytes);
    if (child instanceof SystemError) hold(false, `A new child is refused: ${child.message}`);
    requireSame(child.bytes, content.bytes, "A new child");
    subject.requireNoNewFault("snapshot, of the child", NEW);
  }
  subject.requireKept("snapshot");
}
