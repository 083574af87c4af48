/**
 * A guest that writes to its disk and verifies what it wrote, until it is told to stop: fio.
 *
 * @module
 */
import assert from "node:assert/strict";
import { findTool } from "./tools.ts";

/** The status of a fio that a signal stopped, besides 0. */
const STOPPED = 128;

/** What the guest saw. */
export interface GuestReport {
  readonly writes: number;
  readonly reads: number;
  /** The longest time that a request took, milliseconds. */
  readonly longestMs: number;
}

interface FioDirection {
  readonly total_ios: number;
  readonly clat_ns: { readonly max: number };
}

/** A guest that runs. */
export class VerifyingGuest {
  readonly #child: Deno.ChildProcess;
  readonly #folder: string;
  #ended = false;
  readonly #output: Promise<Deno.CommandOutput>;

  /** @param options Options of fio without the dashes, beside those that every guest has. */
  constructor(uri: string, options: readonly string[]) {
    this.#folder = Deno.makeTempDirSync({ prefix: "fio-" });
    const all = [
      "output-format=json",
      "ioengine=nbd",
      `uri=${uri}`,
      "name=guest",
      "rw=randwrite",
      "iodepth=16",
      "verify=crc32c",
      "verify_backlog=256",
      "verify_fatal=1",
      "randrepeat=0",
      "time_based",
      "runtime=600",
      ...options,
    ];
    this.#child = new Deno.Command(findTool("fio") ?? "fio", {
      args: all.map((option) => `--${option}`),
      cwd: this.#folder,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#output = this.#child.output().finally(() => this.#ended = true);
  }

  /** Whether it has ended by itself, as it does when something is wrong. */
  get hasEnded(): boolean {
    return this.#ended;
  }

  /** Stops it, when it has ended what it does. Throws when it saw an error or wrong data. */
  async stop(): Promise<GuestReport> {
    if (!this.#ended) this.#child.kill("SIGINT");
    const { code, stdout, stderr } = await this.#output;
    Deno.removeSync(this.#folder, { recursive: true });
    const text = new TextDecoder().decode(stdout);
    const said = `fio ended with status ${code}\n${text}${new TextDecoder().decode(stderr)}`;
    assert.ok(code === 0 || code === STOPPED, said);
    assert.doesNotMatch(new TextDecoder().decode(stderr), /verify|error/i);
    const [job]: { error: number; read: FioDirection; write: FioDirection }[] =
      JSON.parse(text.slice(text.search(/^\{/m))).jobs;
    assert.equal(job.error, 0, said);
    return {
      writes: job.write.total_ios,
      reads: job.read.total_ios,
      longestMs: Math.max(job.read.clat_ns.max, job.write.clat_ns.max) / 1e6,
    };
  }

  /** Ends it at once. */
  kill(): void {
    if (!this.#ended) this.#child.kill("SIGKILL");
  }
}
