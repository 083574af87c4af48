import { peerOf } from "../../../ffi/descriptors.ts";
import { type DoneWith, Errno, SystemError } from "../../../ffi/errno.ts";
import { effectiveUser } from "../../../ffi/process.ts";
import type { ControlConnection } from "../daemon/control_connection.ts";
import type { ProgramCall, UpgradeReply } from "../protocol/upgrade.ts";
import { Upgrade, type UpgradeHost } from "./upgrade.ts";

/** The handovers of a process, one at a time. The last one ends the process. */
export class Upgrades {
  readonly #host: UpgradeHost;
  #current: Upgrade | null = null;

  constructor(host: UpgradeHost) {
    this.#host = host;
  }

  /**
   * Starts a program, to which this process hands its disks over. Calls back when that one serves, and
   * this process then ends; or with an error, and this process serves on.
   *
   * @param connection Where the wish came from: it is answered here.
   * @throws {SystemError} Something cannot be handed over.
   */
  begin(
    call: ProgramCall,
    connection: ControlConnection | null,
    done: DoneWith<UpgradeReply>,
  ): void {
    if (this.#current !== null) {
      throw new SystemError(Errno.EALREADY, "Cannot upgrade (another upgrade is under way)");
    }
    this.#current = new Upgrade(this.#host, { call, asker: connection }, (...end) => {
      this.#current = null;
      try {
        done(...end);
      } finally {
        if (end[0] === null) this.#host.exit(end[1].pid);
      }
    });
  }

  /** The new process asks for the disks. Throws `SystemError`: EPERM for any other process. */
  join(connection: ControlConnection, format: number): void {
    const { pid, uid } = peerOf(connection.fd);
    if (this.#current?.pid !== pid || (uid !== effectiveUser() && uid !== 0)) {
      const why = `process ${pid} is not the one that was started for that`;
      throw new SystemError(Errno.EPERM, `Cannot hand over the disks (${why})`);
    }
    this.#current.join(connection, format);
  }
}
