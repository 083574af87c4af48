import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_INDIRECT,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  type BlkifRing,
} from "../../../ffi/blkif_ring.ts";
import { Errno } from "../../../ffi/errno.ts";
import { RequestKind } from "../../vbd/slots.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { OrderStep, type RequestTable } from "./request_table.ts";
import { MOST_SEGMENTS, type SegmentTable } from "./segment_table.ts";

/**
 * Copies requests from the ring into the table, and checks each as a whole. One that makes no sense gets
 * an error in the table. Nothing of a request is read from the ring, or from a page of the guest, after
 * that.
 */
export class RequestChecks {
  readonly #ring: BlkifRing;
  readonly #table: RequestTable;
  readonly #segments: SegmentTable;
  readonly #vbd: Vbd;

  constructor(
    { ring, table, segments, vbd }: {
      ring: BlkifRing;
      table: RequestTable;
      segments: SegmentTable;
      vbd: Vbd;
    },
  ) {
    this.#ring = ring;
    this.#table = table;
    this.#segments = segments;
    this.#vbd = vbd;
  }

  /** Copies and checks the request that was taken last. `readTables` follows, after some of them. */
  admit(number: number): void {
    const ring = this.#ring;
    const table = this.#table;
    // The number of an indirect request waits for its segments until they are read.
    if (!this.#segments.hasRoom) this.readTables();
    table.idLow[number] = ring.idLow();
    table.idHigh[number] = ring.idHigh();
    table.operation[number] = ring.operation();
    table.kind[number] = RequestKind.Flush;
    table.isOrdered[number] = 0;
    table.step[number] = OrderStep.Waits;
    table.partsLeft[number] = 1;
    table.sector[number] = ring.sector();
    this.#segments.clear(number);
    table.error[number] = table.allowed(number, this.#copy(number));
  }

  /** Copies what an operation needs; returns 0 or the errno with which the request fails. */
  #copy(number: number): number {
    const table = this.#table;
    switch (table.operation[number]) {
      case BLKIF_OP_READ:
        table.kind[number] = RequestKind.Read;
        return this.#copySegments(number, this.#ring.segments());
      case BLKIF_OP_WRITE:
        table.kind[number] = RequestKind.Write;
        return this.#copySegments(number, this.#ring.segments());
      case BLKIF_OP_WRITE_BARRIER:
      case BLKIF_OP_FLUSH_DISKCACHE:
        return this.#copyFlush(number);
      case BLKIF_OP_DISCARD:
        // BLKIF_DISCARD_SECURE has no meaning for a backend that does not offer it.
        table.kind[number] = RequestKind.Discard;
        table.discardSectors[number] = this.#ring.discardSectors();
        return this.#checkRange(number, table.discardSectors[number]);
      case BLKIF_OP_INDIRECT:
        return this.#copyIndirect(number);
      default:
        return Errno.EOPNOTSUPP;
    }
  }

  /** A barrier or a flush; either may carry data, which is written after the flush. */
  #copyFlush(number: number): number {
    const table = this.#table;
    const segments = this.#ring.segments();
    const isBarrier = table.operation[number] === BLKIF_OP_WRITE_BARRIER;
    table.isOrdered[number] = isBarrier || segments > 0 ? 1 : 0;
    if (segments === 0) return 0;
    table.kind[number] = RequestKind.Write;
    return this.#copySegments(number, segments);
  }

  #copySegments(number: number, segments: number): number {
    if (!this.#segments.copy(number, this.#ring, segments)) return Errno.EINVAL;
    return this.#checkRange(number, this.#segments.sectors[number]);
  }

  /** A request whose segments are in a page of the guest. They are read with those of others. */
  #copyIndirect(number: number): number {
    const table = this.#table;
    const operation = this.#ring.indirectOperation();
    // The response is that of the operation itself.
    table.operation[number] = operation;
    if (operation === BLKIF_OP_READ) table.kind[number] = RequestKind.Read;
    else if (operation === BLKIF_OP_WRITE) table.kind[number] = RequestKind.Write;
    else return Errno.EOPNOTSUPP;
    const segments = this.#ring.indirectSegments();
    if (segments < 1 || segments > MOST_SEGMENTS) return Errno.EINVAL;
    this.#segments.readLater(number, this.#ring.indirectReference(), segments);
    return 0;
  }

  /** Reads and checks the segments of indirect requests. */
  readTables(): void {
    const { error } = this.#table;
    const count = this.#segments.readTables();
    for (let i = 0; i < count; i++) {
      const number = this.#segments.wasRead(i);
      if (number < 0) error[-1 - number] = Errno.EINVAL;
      else error[number] ||= this.#checkRange(number, this.#segments.sectors[number]);
    }
  }

  /** Checks the range of the whole request, so that no part of it fails after another was done. */
  #checkRange(number: number, count: number): number {
    const sector = this.#table.sector[number];
    return sector < 0 || count < 0 || sector + count > this.#vbd.sectors ? Errno.EINVAL : 0;
  }
}
