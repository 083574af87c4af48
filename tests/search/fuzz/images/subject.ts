import { SystemError } from "../../../../ffi/errno.ts";
import { checkImage, type CheckResult } from "../../../../src/vhd/check/check.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { openVhd } from "../../../../src/vhd/image/image.ts";
import { attempt, hold } from "./finding.ts";
import {
  type Content,
  partsOf,
  readLive,
  readOffline,
  requireExtentsFit,
  requireSame,
} from "./readings.ts";
import type { Stage } from "./stage.ts";

/** The mutated image of a case, and what was known of it before anything was done. */
export class Subject {
  readonly disk: SimulatedDisk;
  readonly path: string;
  /** What the disk reads as; the refusal of one that is not opened. */
  readonly before: Content | SystemError;
  /** What the check says of the top image; the refusal of a file that is none. */
  readonly check: CheckResult | SystemError;

  constructor(readonly stage: Stage, readonly paths: readonly string[]) {
    this.disk = stage.disk;
    this.path = paths[0];
    stage.watch.start();
    this.before = readOffline(this.disk, this.path);
    this.check = attempt(() => checkImage(this.path, { storage: this.disk, checkData: true }));
    this.#requireAgreement();
    stage.watch.requireWritten();
  }

  /** What the disk reads as, where it can be read. */
  get content(): Content | null {
    return this.before instanceof SystemError ? null : this.before;
  }

  get isValid(): boolean {
    return !(this.check instanceof SystemError) && this.check.valid;
  }

  /** The message of the first refusal or finding: what the case shows. */
  get verdict(): string {
    if (this.before instanceof SystemError) return this.before.message;
    if (this.check instanceof SystemError) return this.check.message;
    return this.check.findings.map(({ message }) => message).join("; ");
  }

  /**
   * Offline reader, served disk and check agree: each reads the same bytes or refuses, and an image
   * in which the check finds no fault is opened.
   */
  #requireAgreement(): void {
    const { stage, path, disk, content } = this;
    const live = readLive(stage, path, content);
    if (content === null) {
      hold(
        live instanceof SystemError,
        () => `It is served, but not read offline: ${this.verdict}`,
      );
    } else if (!content.isEncrypted) {
      if (live instanceof SystemError) {
        hold(false, `It is read offline, not served: ${live.message}`);
      }
      hold(live.sizeBytes === content.sizeBytes, "Served and offline size differ");
      requireSame(live.bytes, content.bytes, "What is served differs from what is read offline");
      requireExtentsFit(disk, path, content);
    }
    if (this.isValid) {
      const opened = attempt(() => openVhd(path, { storage: disk, ignoreDisabled: true }).close());
      if (opened instanceof SystemError) {
        hold(false, `The check finds no fault, but it is not opened: ${opened.message}`);
      }
    }
  }

  /**
   * Requires that the disk still reads as before, and that no fault was added to the image.
   *
   * @param expected What the disk must read as instead.
   */
  requireKept(what: string, expected: Uint8Array | null = null): void {
    const { content, disk, path } = this;
    if (content === null) return;
    const after = readOffline(disk, path, content.sizeBytes);
    if (after instanceof SystemError) hold(false, `After ${what} it is refused: ${after.message}`);
    // Of a disk that was made smaller, its start is compared.
    const [start] = partsOf(content.sizeBytes);
    const lengthBytes = after.sizeBytes < content.sizeBytes
      ? Math.min(start.lengthBytes, after.sizeBytes)
      : Infinity;
    requireSame(after.bytes, expected ?? content.bytes, `After ${what}`, lengthBytes);
    this.requireNoNewFault(what);
  }

  /** Requires that an image in which the check found no fault has none now. */
  requireNoNewFault(what: string, path = this.path): void {
    if (!this.isValid) return;
    const now = checkImage(path, { storage: this.disk, checkData: true });
    hold(now.valid, () => {
      const faults = now.findings.filter(({ severity }) => severity === "error");
      return `After ${what} the check finds ${faults[0].message}`;
    });
  }
}
