/**
 * Errors of the disk that a world injects: each of some errno, for some kinds of operation, on one
 * file or all, once or for a while. `World` adds a full disk and files that hang.
 *
 * @module
 */
import { Errno } from "../../../ffi/errno.ts";
import type { Random } from "../../../src/testing/random.ts";
import type { DiskOperation, OperationKind, Verdict } from "../../../src/testing/disk_operation.ts";
import { SECTOR_BYTES } from "./stamps.ts";

/** Which operations fail, and how. */
export interface FaultRule {
  readonly kinds: readonly OperationKind[];
  /** The file; null for all. */
  readonly path: string | null;
  readonly errno: number;
  /** Whether queued writes are done although they are reported as failed. */
  readonly isLate: boolean;
  /** The part of such operations that fail. */
  readonly share: number;
  /** Operations that still fail. */
  left: number;
}

/** The part of the rules whose writes fail after they have been done. */
const LATE_SHARE = 0.3;

/** Errors that a disk may have; the last ones are not tried again by a device. */
const ERRNOS = [
  Errno.EIO,
  Errno.ENOSPC,
  Errno.ETIMEDOUT,
  Errno.EAGAIN,
  Errno.ENOMEM,
  Errno.EROFS,
  Errno.EFBIG,
];

const KINDS: readonly (readonly OperationKind[])[] = [
  ["read"],
  ["write"],
  ["sync"],
  ["truncate"],
  ["punch"],
  ["open"],
  ["create", "rename", "link", "remove", "sync folder"],
  ["read", "write", "sync", "truncate", "punch"],
];

/** The rules in force. */
export class Faults {
  #rules: FaultRule[] = [];
  #shortShare = 0;
  readonly #random: Random;
  /** How many operations have failed. */
  hits = 0;

  constructor(random: Random) {
    this.#random = random;
  }

  /** Adds a rule at random, for one of some files or all. */
  add(paths: readonly string[]): FaultRule {
    const random = this.#random;
    const rule: FaultRule = {
      kinds: KINDS[random.below(KINDS.length)],
      path: random.chance(0.5) ? null : paths[random.below(paths.length)],
      errno: ERRNOS[random.below(ERRNOS.length)],
      isLate: random.chance(LATE_SHARE),
      share: random.chance(0.5) ? 1 : 0.1 + random.next() * 0.6,
      left: random.chance(0.5) ? 1 : 1 + random.below(40),
    };
    this.#rules.push(rule);
    return rule;
  }

  /** Ends all rules. */
  end(): void {
    this.#rules = [];
    this.#shortShare = 0;
  }

  /** Ends some reads and writes early from now on: their callers must go on with the rest. */
  shorten(share: number): void {
    this.#shortShare = share;
  }

  /** What becomes of an operation; 0 if it is executed. */
  verdict({ kind, path, lengthBytes, queued }: DiskOperation): Verdict {
    for (const rule of this.#rules) {
      if (rule.left <= 0 || !rule.kinds.includes(kind)) continue;
      if (rule.path !== null && rule.path !== path) continue;
      if (!this.#random.chance(rule.share)) continue;
      rule.left--;
      this.hits++;
      const isLate = rule.isLate && queued && kind === "write";
      return isLate ? { does: "fail late", errno: rule.errno } : rule.errno;
    }
    const isLong = lengthBytes > SECTOR_BYTES && (kind === "read" || kind === "write");
    if (!isLong || !this.#random.chance(this.#shortShare)) return 0;
    // The queue tells its callers that such an operation failed. A device tries it again.
    if (queued) this.hits++;
    const sectors = Math.ceil(lengthBytes / SECTOR_BYTES) - 1;
    return { does: "shorten", lengthBytes: SECTOR_BYTES * (1 + this.#random.below(sectors)) };
  }
}
