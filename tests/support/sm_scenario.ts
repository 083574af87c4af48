/**
 * All calls of the storage manager with all options that it can pass, in an order in which it makes
 * them, and what a caller may do wrong. The answers are written down as a transcript, in which the
 * numbers of processes and the folders are replaced. `record_sm_calls.ts` records what the reference
 * answers.
 *
 * @module
 */
import { until } from "./control.ts";
import {
  type Answer,
  CbtUtil,
  type OpenChoices,
  type Runner,
  TapCtl,
  VhdUtil,
} from "./storage_manager.ts";

const MIB = 1 << 20;
const NO_PID = 4_194_305;
const KEY = Uint8Array.from({ length: 64 }, (_, i) => i);

/** Where a scenario is played. */
export interface Stage {
  /** A folder for images. */
  readonly folder: string;
  /** The control folder of the tapdisks. */
  readonly control: string;
  readonly run: Runner;
  /** The bytes of an image of 64 MiB that the reference wrote. */
  readonly image: Uint8Array<ArrayBuffer>;
}

/** The transcript of a scenario. */
class Transcript {
  text = "";
  readonly #pids: string[] = [];
  readonly #stage: Stage;

  constructor(stage: Stage) {
    this.#stage = stage;
  }

  /** A tapdisk was started. */
  known(pid: number): void {
    this.#pids.push(String(pid));
  }

  heading(text: string): void {
    this.text += `# ${text}\n`;
  }

  readonly run: Runner = async (program, args, stdin) => {
    const answer = await this.#stage.run(program, args, stdin);
    if (args[0] === "spawn" && answer.code === 0) this.known(Number(answer.stdout));
    const shown = args[0] === "stats" && answer.code === 0
      ? statsText(answer.stdout)
      : answer.stdout;
    // The reference prints that line to standard output.
    const lines = args[0] === "scan" ? shown.split("\n").toSorted().join("\n") : shown;
    const body = lines.replaceAll("\0", "").split("\n").filter((line) =>
      line.trim() !== "" && !line.startsWith("got unexpected result")
    );
    const block = [`$ ${program} ${args.join(" ")}`, ...body, `rc=${answer.code}`];
    this.text += this.#normalised(`${block.join("\n")}\n`);
    return answer;
  };

  #normalised(text: string): string {
    const { folder, control } = this.#stage;
    let shown = text.replaceAll(folder, "DIR").replaceAll(control, "CONTROL");
    for (const [index, pid] of this.#pids.entries()) {
      shown = shown.replace(new RegExp(`(?<![\\d])${pid}(?!\\d)`, "g"), `PID${index + 1}`);
    }
    return shown
      .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[1-9a-f][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}/g, "UUID")
      .replace(/[SMTWF][a-z]{2} [JFMASOND][a-z]{2} +[0-9]+ [0-9:]{8} [0-9]{4}/g, "TIME")
      .replace(/0x[0-9a-f]{8}\|0x[0-9a-f]{8}/g, "0xSUM|0xSUM");
  }
}

/** Of statistics, what the storage manager and xapi read: the fields that the reference has. */
function statsText(stdout: string): string {
  const all = JSON.parse(stdout.split("\n")[0]);
  const images = all.images.map((
    { name, hits, fail, driver }: Record<string, unknown> & {
      driver: { type: number; name: string };
    },
  ) => ({ name, hits, fail, driver: { type: driver.type, name: driver.name } }));
  const { name, secs, FIXME_enospc_redirect_count, nbd_mirror_failed, reqs_outstanding } = all;
  const counts = { FIXME_enospc_redirect_count, nbd_mirror_failed, reqs_outstanding };
  return JSON.stringify({ name, secs, images, ...counts, read_caching: all.read_caching });
}

/** Plays all calls; returns the transcript. */
export async function playCalls(stage: Stage): Promise<string> {
  const transcript = new Transcript(stage);
  prepare(stage);
  await playCbt(new CbtUtil(transcript.run), transcript, stage);
  await playVhd(new VhdUtil(transcript.run), transcript, stage);
  await playTapdisks(new TapCtl(transcript.run), transcript, stage);
  return transcript.text;
}

function prepare({ folder, image }: Stage): void {
  Deno.writeFileSync(`${folder}/base.vhd`, image);
  for (const [name, mib] of [["a.raw", 16], ["second.raw", 16], ["small.raw", 8]] as const) {
    Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(0));
    Deno.truncateSync(`${folder}/${name}`, mib * MIB);
  }
}

// ---- cbtutil.py -----------------------------------------------------------------------------

async function playCbt(cbt: CbtUtil, transcript: Transcript, { folder }: Stage): Promise<void> {
  const [log, snapshot] = [`${folder}/disk.cbtlog`, `${folder}/snapshot.cbtlog`];
  transcript.heading("cbtutil: a disk gets a log, is opened and closed");
  await cbt.create(log, 16 * MIB);
  await cbt.set(log, "f", "1");
  await cbt.get(log, "f");
  await cbt.set(log, "f", "0");
  transcript.heading("cbtutil: a snapshot, and its deletion");
  Deno.renameSync(log, snapshot);
  await cbt.set(snapshot, "f", "1");
  await cbt.get(snapshot, "p");
  await cbt.create(log, 16 * MIB);
  await cbt.set(log, "f", "0");
  await cbt.get(snapshot, "c");
  await cbt.set(log, "p", "11112222-3333-0444-8555-666677778888");
  await cbt.set(log, "c", "00000000-0000-0000-0000-000000000000");
  await cbt.set(snapshot, "c", "aaaabbbb-cccc-0ddd-8eee-ffff00001111");
  await cbt.get(log, "p");
  await cbt.get(snapshot, "c");
  await cbt.coalesce(snapshot, log);
  transcript.heading("cbtutil: a disk that grows");
  await cbt.get(log, "s");
  await cbt.set(snapshot, "s", String(64 * MIB));
  await cbt.get(snapshot, "s");
  await cbt.coalesce(snapshot, log);
  await cbt.get(`${folder}/none.cbtlog`, "f");
}

// ---- vhdutil.py -----------------------------------------------------------------------------

async function playVhd(vhd: VhdUtil, transcript: Transcript, { folder }: Stage): Promise<void> {
  const at = (name: string): string => `${folder}/${name}.vhd`;
  transcript.heading("vhdutil: create, and what is asked of an image");
  await vhd.create(at("a"), 16);
  await vhd.create(at("b"), 64, false, 2098);
  await vhd.create(at("fixed"), 4, true);
  for (const name of ["a", "b", "base"]) await askAll(vhd, at(name));
  await vhd.query(at("none"), "-v");
  await vhd.readHeaders(at("none"));
  transcript.heading("vhdutil: snapshots and parents");
  await vhd.snapshot(at("child"), at("base"));
  await vhd.snapshot(at("grandchild"), at("child"), { checkEmpty: false });
  await vhd.snapshot(at("onraw"), `${folder}/a.raw`, { raw: true, msize: 128 });
  await askAll(vhd, at("grandchild"));
  await vhd.setParent(at("grandchild"), at("base"));
  await vhd.query(at("grandchild"), "-p");
  await vhd.setParent(at("grandchild"), `${folder}/a.raw`, true);
  await vhd.query(at("grandchild"), "-p");
  await vhd.setParent(at("grandchild"), at("none"));
  transcript.heading("vhdutil: scan");
  // The reference stops at a fixed image.
  Deno.removeSync(at("fixed"));
  await vhd.scan(`${folder}/*.vhd`);
  await vhd.scan(`${folder}/none*.vhd`);
  Deno.writeTextFileSync(at("damaged"), "no image".repeat(1024));
  await vhd.scan(`${folder}/*.vhd`, { nofail: true });
  Deno.removeSync(at("damaged"));
  transcript.heading("vhdutil: fields, sizes");
  await vhd.setHidden(at("a"), true);
  await vhd.query(at("a"), "-f");
  await vhd.setHidden(at("a"), false);
  await vhd.query(at("a"), "-f");
  await vhd.resizeFast(at("b"), 128);
  await vhd.query(at("b"), "-v");
  await vhd.setSizePhys(at("a"), 8 * MIB);
  await vhd.query(at("a"), "-s");
  await vhd.setSizePhys(at("a"), 9 * MIB, false);
  await vhd.resize(at("a"), 4096, `${folder}/journal`);
  await vhd.query(at("a"), "-v");
  await vhd.revert(at("a"), `${folder}/journal`);
  transcript.heading("vhdutil: keys");
  await vhd.keyHash(at("b"));
  await vhd.setKey(at("b"), "ab".repeat(32));
  await vhd.keyHash(at("b"));
  transcript.heading("vhdutil: check, repair, coalesce, kill data");
  await vhd.check(at("base"));
  await vhd.check(at("base"), { missingFooter: true, fast: true });
  await vhd.check(at("none"));
  await vhd.repair(at("base"));
  await vhd.readBitmap(at("base"));
  await vhd.coalesce(at("child"));
  await vhd.killData(at("child"));
  await vhd.query(at("child"), "-a");
  transcript.heading("vhdutil: images that tapdisks serve later");
  await vhd.snapshot(at("leaf"), at("base"));
  await vhd.snapshot(at("shared"), at("base"));
  await vhd.create(at("encrypted"), 16);
  await vhd.setKey(at("encrypted"), await hashOf(KEY));
}

/** What `vhd-util key -H` is told: the hash of a nonce of zeros and the key. */
async function hashOf(key: Uint8Array): Promise<string> {
  const bytes = new Uint8Array([...new Uint8Array(32), ...key]);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

async function askAll(vhd: VhdUtil, path: string): Promise<void> {
  for (const options of ["-vsafp", "-vsaf", "-v", "-s", "-S", "-a", "-f", "-p", "-d"]) {
    await vhd.query(path, options);
  }
  await vhd.readHeaders(path);
}

// ---- blktap2.py -----------------------------------------------------------------------------

async function playTapdisks(tap: TapCtl, transcript: Transcript, stage: Stage): Promise<void> {
  const { folder } = stage;
  const image = `aio:${folder}/a.raw`;
  transcript.heading("TapCtl: minors");
  for (let i = 0; i < 3; i++) await tap.allocate();
  await tap.free(2);
  await tap.free(2);
  await tap.list();
  transcript.heading("TapCtl: a tapdisk, and a minor without an image");
  const pid = pidOf(await tap.spawn());
  await tap.list();
  await tap.list({ pid });
  await tap.attach(pid, 0);
  await tap.list();
  await tap.list({ minor: 0, pid, type: "aio", path: `${folder}/a.raw` });
  await tap.attach(pid, 0);
  await tap.attach(pid, 7);
  await tap.free(0);
  await tap.close(pid, 0);
  await tap.unpause(pid, 0);
  transcript.heading("TapCtl: images that cannot be opened");
  for (const bad of ["bogus:/x", "noType", `vhd:${folder}/none.vhd`, `vhd:${folder}/a.raw`]) {
    await tap.open(pid, 0, bad);
  }
  await tap.open(pid, 0, image, { cbtlog: `${folder}/none.cbtlog` });
  await tap.list({ minor: 0 });
  transcript.heading("TapCtl: each option of open");
  for (const choices of optionsOf(stage)) {
    await openAndClose(tap, pid, choices.image ?? image, choices);
  }
  transcript.heading("TapCtl: keys and caches");
  await openOthers(tap, stage);
  await openCached(tap, stage);
  await pauses(tap, transcript, { pid, image, stage });
  transcript.heading("TapCtl: the end");
  await tap.detach(pid, 0);
  await tap.free(0);
  await tap.free(1);
  await tap.list();
  transcript.heading("TapCtl: no such tapdisk");
  await tap.list({ pid: NO_PID });
  await withoutMinor(tap, NO_PID, 0);
  await tap.attach(NO_PID, 0);
  await tap.open(NO_PID, 0, image);
}

function pidOf({ stdout }: Answer): number {
  return Number(stdout);
}

/** The choices of opens that end well, one by one and as the storage manager combines them. */
function optionsOf({ folder }: Stage): (OpenChoices & { image?: string })[] {
  const cbtlog = `${folder}/disk.cbtlog`;
  const secondary = `aio:${folder}/second.raw`;
  return [
    {},
    { rdonly: true },
    { timeout: 60 },
    { oDirect: false },
    { cbtlog },
    { timeout: 60, oDirect: false, cbtlog },
    { image: `vhd:${folder}/base.vhd` },
    { image: `vhd:${folder}/base.vhd`, rdonly: true, oDirect: false },
    { secondary },
    { secondary, standby: true },
    { secondary, timeout: 60, cbtlog },
  ];
}

/**
 * Images with keys and caches, each in a tapdisk of its own, as the storage manager has it: in the
 * reference, whether the first image of a tapdisk has a key decides whether others can have one.
 */
async function openOthers(tap: TapCtl, { folder, control }: Stage): Promise<void> {
  const [encrypted, leaf] = [`vhd:${folder}/encrypted.vhd`, `vhd:${folder}/leaf.vhd`];
  const all: (OpenChoices & { image: string })[] = [
    { image: encrypted, key: KEY },
    { image: encrypted, key: KEY, timeout: 60, oDirect: false },
    { image: encrypted, key: KEY.toReversed() },
    { image: leaf, key: KEY },
    { image: leaf, lcache: true },
  ];
  for (const { image, ...choices } of all) {
    const pid = pidOf(await tap.spawn());
    await tap.attach(pid, 1);
    const { code } = await tap.open(pid, 1, image, choices);
    await tap.list({ pid, minor: 1 });
    if (code === 0) {
      await tap.stats(pid, 1);
      await tap.close(pid, 1);
    }
    await tap.detach(pid, 1);
    await until("the tapdisk ends", () => !exists(`${control}/ctl${pid}`));
  }
}

/** IntelliCache: the parent is in a tapdisk of its own, and leaves read it there. */
async function openCached(tap: TapCtl, { folder, control }: Stage): Promise<void> {
  const [base, leaf, secondary] = ["base", "leaf", "shared"].map((name) =>
    `vhd:${folder}/${name}.vhd`
  );
  await tap.allocate();
  const parent = pidOf(await tap.spawn());
  await tap.attach(parent, 1);
  await tap.open(parent, 1, base, { rdonly: true, lcache: true });
  await tap.stats(parent, 1);
  const common = { existingPrt: 1, secondary };
  for (const choices of [{ ...common, lcache: true }, { ...common, standby: true }]) {
    const pid = pidOf(await tap.spawn());
    await tap.attach(pid, 2);
    await tap.open(pid, 2, leaf, choices);
    await tap.list({ minor: 2 });
    await tap.stats(pid, 2);
    await tap.close(pid, 2);
    await tap.detach(pid, 2);
    await until("the tapdisk ends", () => !exists(`${control}/ctl${pid}`));
  }
  const pid = pidOf(await tap.spawn());
  await tap.attach(pid, 2);
  await tap.open(pid, 2, leaf, { existingPrt: 9, secondary, standby: true });
  await tap.detach(pid, 2);
  await tap.close(parent, 1);
  await tap.detach(parent, 1);
  for (const each of [pid, parent]) {
    await until("the tapdisk ends", () => !exists(`${control}/ctl${each}`));
  }
  await tap.free(2);
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

async function openAndClose(
  tap: TapCtl,
  pid: number,
  image: string,
  choices: OpenChoices,
): Promise<void> {
  await tap.open(pid, 0, image, choices);
  await tap.list({ pid });
  // The reference lists the secondary between the log and the leaf. Nobody reads that.
  if (choices.secondary === undefined || choices.cbtlog === undefined) await tap.stats(pid, 0);
  await tap.close(pid, 0);
}

/** Calls for a minor that a tapdisk does not have. */
async function withoutMinor(tap: TapCtl, pid: number, minor: number): Promise<void> {
  await tap.close(pid, minor);
  await tap.pause(pid, minor);
  await tap.unpause(pid, minor);
}

async function pauses(
  tap: TapCtl,
  transcript: Transcript,
  { pid, image, stage: { folder } }: { pid: number; image: string; stage: Stage },
): Promise<void> {
  const cbtlog = `${folder}/disk.cbtlog`;
  transcript.heading("TapCtl: pause and unpause, with each option");
  await tap.open(pid, 0, image);
  await tap.open(pid, 0, image);
  await tap.unpause(pid, 0);
  await tap.detach(pid, 0);
  await tap.free(0);
  for (
    const choices of [
      {},
      { image },
      { cbtlog },
      { image, cbtlog },
      {},
      { image, mirror: `aio:${folder}/second.raw` },
      { image, mirror: "null" },
    ]
  ) {
    await tap.pause(pid, 0);
    await tap.list({ pid });
    await tap.unpause(pid, 0, choices);
    await tap.list({ pid });
    await tap.stats(pid, 0);
  }
  transcript.heading("TapCtl: a minor that the tapdisk does not have");
  await withoutMinor(tap, pid, 1);
  await tap.open(pid, 1, image);
  await tap.detach(pid, 1);
  transcript.heading("TapCtl: close of a paused disk, and by force");
  await tap.pause(pid, 0);
  await tap.pause(pid, 0);
  await tap.close(pid, 0);
  await tap.attach(pid, 1);
  await tap.open(pid, 1, image);
  await tap.detach(pid, 0);
  await tap.attach(pid, 0);
  await tap.close(pid, 1, true);
  await tap.list({ minor: 1 });
  await tap.detach(pid, 1);
  await tap.list({ pid });
}
