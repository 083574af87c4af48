import { REQUEST_SLOTS, type RequestSink } from "../driver/driver.ts";
import { ContractViolation } from "./contract.ts";

/** The use of a slot at an image. */
export const SlotUse = { Nothing: 0, Read: 1, Change: 2, Status: 3 } as const;
export type SlotUse = (typeof SlotUse)[keyof typeof SlotUse];

/**
 * The requests of one image, by slot, and a check of their completions. The completions of pieces
 * from an image below pass through here too, because they are parts of the requests of this image.
 */
export class CheckedRequests implements RequestSink {
  readonly #title: string;
  readonly #sink: RequestSink;
  readonly #use = new Uint8Array(REQUEST_SLOTS);
  /** Sectors that have not ended; of a status request, the sectors not yet covered by extents. */
  readonly #left = new Float64Array(REQUEST_SLOTS);
  /** Disk operations that the request may have in flight. */
  readonly #budget = new Uint32Array(REQUEST_SLOTS);
  /** Of a status request: whether an extent was reported, and whether more are wanted. */
  readonly #told = new Uint8Array(REQUEST_SLOTS);
  readonly #wanted = new Uint8Array(REQUEST_SLOTS);
  /** Number of slots in use. */
  inFlight = 0;
  /** Disk operations that all requests together may have in flight. */
  budget = 0;

  constructor(title: string, sink: RequestSink) {
    this.#title = title;
    this.#sink = sink;
  }

  #require(condition: boolean, what: string, slot: number): void {
    if (!condition) throw new ContractViolation(`${this.#title}: ${what} (slot ${slot})`);
  }

  /**
   * Begins a request at the image, or a further read of a slot whose use permits several.
   *
   * @param operations The value of `operationsFor` for this request.
   */
  begin(
    slot: number,
    use: SlotUse,
    { sectors, operations, several }: { sectors: number; operations: number; several: boolean },
  ): void {
    this.#require(slot >= 0 && slot < REQUEST_SLOTS, "no such slot", slot);
    const known = this.#use[slot];
    const joins = several && use === SlotUse.Read && known === SlotUse.Read;
    this.#require(known === SlotUse.Nothing || joins, "a request whose slot is in flight", slot);
    if (!joins) this.inFlight++;
    this.#use[slot] = use;
    this.#left[slot] = (joins ? this.#left[slot] : 0) + sectors;
    this.#budget[slot] += operations;
    this.budget += operations;
    this.#told[slot] = 0;
    this.#wanted[slot] = 1;
  }

  #end(slot: number): void {
    this.#use[slot] = SlotUse.Nothing;
    this.budget -= this.#budget[slot];
    this.#budget[slot] = 0;
    this.inFlight--;
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    const use = this.#use[slot];
    this.#require(use !== SlotUse.Nothing, "a piece of a request that has ended", slot);
    this.#require(use !== SlotUse.Status, "a piece of a status request", slot);
    this.#require(Number.isInteger(sectors) && sectors > 0, "a piece without sectors", slot);
    this.#require(sectors <= this.#left[slot], "pieces that are more than the request", slot);
    this.#requireErrno(slot, errno);
    this.#left[slot] -= sectors;
    if (this.#left[slot] === 0) this.#end(slot);
    this.#sink.pieceDone(slot, sectors, errno);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    this.#require(this.#use[slot] === SlotUse.Status, "an extent that nobody asked for", slot);
    this.#require(this.#wanted[slot] === 1, "an extent after the one that was the last", slot);
    this.#require(Number.isInteger(sectors) && sectors > 0, "an extent without sectors", slot);
    this.#require(sectors <= this.#left[slot], "an extent beyond the request's end", slot);
    this.#left[slot] -= sectors;
    this.#told[slot] = 1;
    const wanted = this.#sink.extent(slot, sectors, isData);
    this.#wanted[slot] = wanted ? 1 : 0;
    return wanted;
  }

  statusDone(slot: number, errno: number): void {
    this.#require(this.#use[slot] === SlotUse.Status, "the end of no status request", slot);
    this.#requireErrno(slot, errno);
    this.#require(errno !== 0 || this.#told[slot] === 1, "a status request without extents", slot);
    this.#end(slot);
    this.#sink.statusDone(slot, errno);
  }

  #requireErrno(slot: number, errno: number): void {
    this.#require(Number.isInteger(errno) && errno >= 0 && errno < 4096, "no errno", slot);
  }
}
