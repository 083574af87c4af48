import { messageOf } from "../../../ffi/errno.ts";
import type { Log } from "../../log/log.ts";
import { type MinorRecord, writeMinorRecord } from "../minors/minor_record.ts";

/** What the file of a minor tells another tapdisk that takes its disk over. */
export class DeviceRecord {
  /** Whether there is a record. */
  isThere = false;
  readonly #minor: number;
  readonly #log: Log;

  constructor(minor: number, log: Log) {
    this.#minor = minor;
    this.#log = log;
  }

  /** A record that cannot be written is no reason to stop: only a takeover depends on it. */
  write(record: MinorRecord | null): void {
    try {
      // Also if it fails: the record may be beside the file.
      this.isThere = true;
      writeMinorRecord(this.#minor, record);
      this.isThere = record !== null;
    } catch (error) {
      const what = `'tap-ctl recover' will not know the device of minor ${this.#minor}`;
      this.#log.warn(`${what}: ${messageOf(error)}`);
    }
  }

  /** Removes it, if it is there. */
  remove(): void {
    if (this.isThere) this.write(null);
  }
}
