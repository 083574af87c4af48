/**
 * What all parts of a soak share.
 *
 * @module
 */
import { killTree } from "../../../scripts/processes.ts";
import { Random } from "../../../src/testing/random.ts";
import type { Tapdisks } from "../../support/served.ts";
import { binaryPath, run, runOk, type RunResult } from "../../support/tools.ts";
import type { SoakDisk } from "./disk.ts";
import { Finding } from "./finding.ts";
import type { Journal } from "./journal.ts";

export interface SoakOptions {
  readonly minutes: number;
  readonly seed: number;
  /** Requests of all verifying clients in a second. */
  readonly rate: number;
  /** Events in a minute. */
  readonly events: number;
  /** Where files are that are not on tmpfs. */
  readonly where: string;
}

/** Disks that one tapdisk serves. */
export interface Group {
  readonly name: string;
  readonly disks: SoakDisk[];
  /** Whether events kill the tapdisk; the others run from start to end, and are measured. */
  readonly isKilled: boolean;
  /** Whether `tap-ctl restore` starts it. */
  readonly isRestored: boolean;
  pid: number;
}

/** The state of a soak. */
export class Soak {
  readonly groups: Group[] = [];
  /** Processes that must run. */
  readonly processes = new Map<number, string>();
  /** Only root may look into a tapdisk, which has keys in its memory. */
  readonly mayMeasure = Deno.uid() === 0;
  #ending = false;
  #finding: { subject: string; error: unknown } | null = null;
  readonly #whenEnding: PromiseWithResolvers<void> = Promise.withResolvers();
  readonly #whenFound: PromiseWithResolvers<void> = Promise.withResolvers();

  constructor(
    readonly options: SoakOptions,
    readonly folder: string,
    readonly tapdisks: Tapdisks,
    readonly journal: Journal,
  ) {}

  get disks(): SoakDisk[] {
    return this.groups.flatMap(({ disks }) => disks);
  }

  /** All disks but the one whose client measures. */
  get busyDisks(): SoakDisk[] {
    return this.disks.filter(({ plan }) => plan.writers > 0);
  }

  groupOf(disk: SoakDisk): Group {
    const group = this.groups.find(({ disks }) => disks.includes(disk));
    if (group === undefined) throw new Error(`${disk.name} is in no group`);
    return group;
  }

  /** Random numbers for one purpose, decided by the seed. */
  random(purpose: string): Random {
    let hash = this.options.seed;
    for (const char of purpose) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193);
    return new Random(hash);
  }

  get isEnding(): boolean {
    return this.#ending;
  }

  /** What was found, if anything. */
  get finding(): { subject: string; error: unknown } | null {
    return this.#finding;
  }

  get whenFound(): Promise<void> {
    return this.#whenFound.promise;
  }

  get whenEnding(): Promise<void> {
    return this.#whenEnding.promise;
  }

  /** Ends the load. */
  end(): void {
    this.#ending = true;
    this.#whenEnding.resolve();
  }

  /** Something is wrong: the first of these ends the soak. */
  fail(subject: string, error: unknown): void {
    this.journal.note(subject, `FAILED: ${error instanceof Error ? error.message : error}`);
    this.#finding ??= { subject, error };
    this.#whenFound.resolve();
    this.end();
  }

  /** Waits; less long when the soak ends. */
  async sleep(milliseconds: number): Promise<void> {
    if (this.#ending) return;
    let timer = 0;
    const timeout = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, milliseconds);
    });
    await Promise.race([timeout, this.#whenEnding.promise]);
    clearTimeout(timer);
  }

  /** Throws after a finding, so that nothing is started any more. */
  requireNoFinding(): void {
    if (this.#finding !== null) throw new Error("The soak has ended");
  }

  /** Runs tap-ctl, which must succeed; returns its output. */
  async tapCtl(subject: string, ...args: string[]): Promise<string> {
    this.requireNoFinding();
    this.journal.count("calls of tap-ctl");
    const result = await this.tapdisks.tapCtl(...args);
    return this.#output(subject, `tap-ctl ${args.join(" ")}`, result);
  }

  /** Runs vhd-util, which must succeed; returns its output. */
  async vhdUtil(subject: string, ...args: string[]): Promise<string> {
    this.requireNoFinding();
    this.journal.count("calls of vhd-util");
    const result = await run(binaryPath("vhd-util"), args, { timeoutMs: 120_000 });
    return this.#output(subject, `vhd-util ${args.join(" ")}`, result);
  }

  /** Starts vhd-util and kills it after a while; returns whether it had ended well by then. */
  async vhdUtilKilled(subject: string, afterMs: number, ...args: string[]): Promise<boolean> {
    this.requireNoFinding();
    const command = binaryPath("vhd-util");
    const options = { args, stdin: "null", stdout: "null", stderr: "null" } as const;
    const child = new Deno.Command(command, options).spawn();
    const timer = setTimeout(() => killTree(child.pid), afterMs);
    const { success, signal } = await child.status;
    clearTimeout(timer);
    this.journal.note(subject, `vhd-util ${args.join(" ")}: ${signal ?? "had ended"}`);
    if (signal !== null) this.journal.count("calls of vhd-util that were killed");
    return success;
  }

  #output(subject: string, command: string, { code, stdout, stderr }: RunResult): string {
    this.journal.note(subject, `${command}${code === 0 ? "" : ` -> ${code} ${stderr.trim()}`}`);
    if (code === 0) return stdout.trimEnd();
    throw new Finding(`${command} ended with status ${code}: ${stderr.trim()}${stdout.trim()}`);
  }

  /** Runs another program, which must succeed. */
  async tool(subject: string, name: string, ...args: string[]): Promise<string> {
    this.journal.note(subject, `${name} ${args.join(" ")}`);
    return await runOk(name, args, { timeoutMs: 120_000 });
  }
}
