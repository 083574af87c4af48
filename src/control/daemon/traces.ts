import { peerOf } from "../../../ffi/descriptors.ts";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import type { Log } from "../../log/log.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import type { ControlConnection } from "./control_connection.ts";
import { TraceStream } from "./trace_stream.ts";

/** The traces of disks, one of each at most. */
export class Traces {
  readonly #scheduler: Scheduler;
  readonly #log: Log;
  readonly #streams = new Map<Vbd, TraceStream>();

  constructor({ scheduler, log }: { scheduler: Scheduler; log: Log }) {
    this.#scheduler = scheduler;
    this.#log = log;
  }

  /**
   * Traces a disk for the process at the other end of a connection, which is the trace's from then on.
   * Throws `SystemError`: EINVAL without an image, EBUSY while it is traced.
   */
  begin(vbd: Vbd, connection: ControlConnection): void {
    const what = `Cannot trace minor ${vbd.minor}`;
    if (vbd.name === "") throw new SystemError(Errno.EINVAL, `${what} (it has no image)`);
    const other = this.#streams.get(vbd);
    if (other !== undefined) {
      const why = `process ${other.peer} traces it; a disk has one trace at a time`;
      throw new SystemError(Errno.EBUSY, `${what} (${why})`);
    }
    const { pid } = peerOf(connection.fd);
    const fd = connection.release();
    try {
      const stream = new TraceStream({ fd, peer: pid }, {
        vbd,
        scheduler: this.#scheduler,
        log: this.#log,
        ended: () => this.#streams.delete(vbd),
      });
      if (!stream.failed) this.#streams.set(vbd, stream);
    } catch (error) {
      closeFile(fd);
      throw error;
    }
  }

  /** Ends all traces; what they have is sent as far as the sockets take it. */
  endAll(why: string): void {
    for (const stream of [...this.#streams.values()]) stream.stop(why);
  }
}
