/**
 * The servers of other projects whose exports are disks of a soak.
 *
 * @module
 */
import { waitUntil } from "../../support/served.ts";
import { findTool } from "../../support/tools.ts";
import type { Soak } from "./context.ts";
import type { SoakDisk } from "./disk.ts";

/** An nbdkit or a qemu-nbd that serves a raw file on a socket. */
export class RemoteServer {
  #child: Deno.ChildProcess | null = null;

  constructor(readonly soak: Soak, readonly disk: SoakDisk) {}

  get file(): string {
    return `${this.disk.folder}/export.raw`;
  }

  get socket(): string {
    return `${this.disk.folder}/export.sock`;
  }

  async start(): Promise<void> {
    try {
      // A server that was killed leaves its socket.
      Deno.removeSync(this.socket);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    await this.#spawn();
  }

  /** Starts the server for the first time. */
  async create(): Promise<void> {
    Deno.writeFileSync(this.file, new Uint8Array(0));
    Deno.truncateSync(this.file, this.disk.plan.sizeMib * 2 ** 20);
    await this.#spawn();
  }

  async #spawn(): Promise<void> {
    this.soak.requireNoFinding();
    const [command, args] = this.disk.plan.base === "nbdkit"
      ? ["nbdkit", ["--foreground", "--unix", this.socket, "file", this.file]] as const
      : ["qemu-nbd", [
        ...["--persistent", "--shared=8", "-f", "raw", "--discard=unmap"],
        ...["-k", this.socket, this.file],
      ]] as const;
    const child = new Deno.Command(findTool(command) ?? command, {
      args: [...args],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#child = child;
    this.soak.processes.set(child.pid, `${command} of ${this.disk.name}`);
    await waitUntil(() => isSocket(this.socket), `${command} listens`, 30_000);
  }

  signal(signal: Deno.Signal): void {
    this.soak.journal.note(this.disk.name, `${signal} to its ${this.disk.plan.base}`);
    this.#child?.kill(signal);
  }

  async kill(signal: "SIGKILL" | "SIGTERM" = "SIGKILL"): Promise<void> {
    const child = this.#child;
    if (child === null) return;
    this.soak.processes.delete(child.pid);
    this.#child = null;
    this.soak.journal.note(this.disk.name, `${signal} to its ${this.disk.plan.base}`);
    try {
      child.kill(signal);
    } catch {
      // It has ended.
    }
    await child.status;
  }
}

function isSocket(path: string): boolean {
  try {
    return Deno.lstatSync(path).isSocket === true;
  } catch {
    return false;
  }
}
