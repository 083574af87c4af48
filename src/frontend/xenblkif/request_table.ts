import { BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY } from "../../../ffi/blkif_ring.ts";
import { Errno } from "../../../ffi/errno.ts";
import { RequestKind } from "../../vbd/slots.ts";

/** The first steps of a request that waits for all before it, and that all behind it wait for. */
export const OrderStep = {
  /** It is no such request, or requests before it have no answer yet. */
  Waits: 0,
  /** What was written before it is being flushed. */
  Flushes: 1,
  /** Its own data may be written. */
  Flushed: 2,
} as const;

/** The status of a response, from an errno; 0 for none. */
export function statusOf(errno: number): number {
  if (errno === 0) return BLKIF_RSP_OKAY;
  return errno === Errno.EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}

/** What is known of a ring's requests, by their numbers. */
export class RequestTable {
  /** The operation that the response names. */
  readonly operation: Uint8Array;
  /** One of `RequestKind`. */
  readonly kind: Uint8Array;
  /** The halves of the number that the guest gave it. */
  readonly idLow: Int32Array;
  readonly idHigh: Int32Array;
  /** First sector of the next part, on the disk. */
  readonly sector: Float64Array;
  /** Sectors of a discard. */
  readonly discardSectors: Float64Array;
  /** Parts that have not ended, plus one until all have started. */
  readonly partsLeft: Int32Array;
  readonly error: Int32Array;
  /** Whether all requests before it must have ended, and all behind it wait for its end. */
  readonly isOrdered: Uint8Array;
  /** How far an ordered request is. */
  readonly step: Uint8Array;

  readonly #isReadOnly: boolean;

  /** @param isReadOnly Whether the guest must not change the disk. */
  constructor(entries: number, isReadOnly: boolean) {
    this.#isReadOnly = isReadOnly;
    this.operation = new Uint8Array(entries);
    this.kind = new Uint8Array(entries);
    this.idLow = new Int32Array(entries);
    this.idHigh = new Int32Array(entries);
    this.sector = new Float64Array(entries);
    this.discardSectors = new Float64Array(entries);
    this.partsLeft = new Int32Array(entries);
    this.error = new Int32Array(entries);
    this.isOrdered = new Uint8Array(entries);
    this.step = new Uint8Array(entries);
  }

  /** The errno of a checked request: EPERM when it would change a disk that the guest must not change. */
  allowed(number: number, errno: number): number {
    const kind = this.kind[number];
    const changes = kind === RequestKind.Write || kind === RequestKind.Discard;
    return this.#isReadOnly && changes ? Errno.EPERM : errno;
  }
}
