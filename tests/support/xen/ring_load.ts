/**
 * The load of a guest on its ring. It knows which requests have an answer, and what the disk holds.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Random } from "../../../src/testing/random.ts";
import { stampedSectors } from "../sim.ts";
import { Op, type PlayedGuest, type Segment } from "./played_guest.ts";

const DATA_PAGE = 8;
const PLACES = 24;
/** Where reads of places go that have a write under way, and reads that are not looked at. */
const WASTE_PAGE = DATA_PAGE + PLACES;
const READ_PAGE = WASTE_PAGE + 1;
/** Pages of tables: as many as there can be requests at once. */
const TABLE_PAGE = READ_PAGE + PLACES;
const TABLES = 256;
const PLACE_SECTORS = 256;

/** The pages that a guest with a load needs, with a ring of up to eight. */
export const LOAD_PAGES = TABLE_PAGE + TABLES;
/** The sectors that a disk must have. */
export const LOAD_SECTORS = PLACES * PLACE_SECTORS;

/** One request at a time that is looked at: a write, or a read that must find what was written before. */
interface Checked {
  readonly place: number;
  readonly isRead: boolean;
}

/** A guest with a load. Each request has a number of its own, from 0 on. */
export class RingLoad {
  readonly answered = new Set<bigint>();
  /** How many reads have found what was written. */
  verified = 0;
  /** By place: the last stamp that was written. */
  readonly #stamps = new Array<number>(PLACES).fill(0);
  /** The requests under way that are looked at; one at a place. */
  readonly #checked = new Map<bigint, Checked>();
  readonly #random: Random;
  readonly #verifies: boolean;
  #last = 0;

  /** @param options Whether reads must find what was written: the disk is the same all the time. */
  constructor(readonly guest: PlayedGuest, seed: number, { verifies = false } = {}) {
    this.#random = new Random(seed);
    this.#verifies = verifies;
  }

  /** How many requests there were. */
  get sent(): number {
    return this.guest.put;
  }

  /** What the disk holds when all requests have ended: eight sectors at each place. */
  get written(): { sector: number; stamp: number }[] {
    return this.#stamps.map((stamp, place) => ({ sector: PLACE_SECTORS * place, stamp }))
      .filter(({ stamp }) => stamp > 0);
  }

  /** Adds requests and shows them, which notifies where that is wanted. */
  add(count: number): void {
    for (; count > 0 && this.guest.hasRoom; count--) this.#addOne();
    this.guest.push();
  }

  #addOne(): void {
    const { guest } = this;
    const id = BigInt(guest.put);
    const place = this.#random.below(PLACES);
    const isFree = ![...this.#checked.values()].some((one) => one.place === place);
    const isWrite = isFree && this.#random.chance(0.6);
    if (!isWrite && this.#random.chance(0.2)) return guest.add({ operation: Op.Flush, id });
    const isRead = isFree && !isWrite;
    const page = isWrite ? DATA_PAGE + place : isRead ? READ_PAGE + place : WASTE_PAGE;
    const sector = PLACE_SECTORS * place;
    if (isFree) this.#checked.set(id, { place, isRead });
    if (isWrite) {
      const stamp = this.#stamps[place] = ++this.#last;
      guest.sectors(page, 0, 7).set(stampedSectors(sector, 8, stamp));
    } else guest.sectors(page, 0, 7).fill(0xee);
    const operation = isWrite ? Op.Write : Op.Read;
    const segments: Segment[] = [[guest.reference(page), 0, 7]];
    if (this.#random.chance(0.6)) return guest.add({ operation, id, sector, segments });
    const indirect = { operation, page: TABLE_PAGE + guest.put % TABLES };
    guest.add({ operation: Op.Indirect, id, sector, segments, indirect });
  }

  /** Takes the answers there are. */
  take(): void {
    for (const { id, status } of this.guest.take()) {
      assert.equal(status, 0);
      assert.ok(!this.answered.has(id), `a second answer to ${id}`);
      this.answered.add(id);
      const checked = this.#checked.get(id);
      this.#checked.delete(id);
      if (checked?.isRead === true && this.#verifies) this.#verify(checked.place);
    }
  }

  #verify(place: number): void {
    const stamp = this.#stamps[place];
    const wanted = stampedSectors(PLACE_SECTORS * place, 8, stamp);
    if (stamp === 0) wanted.fill(0);
    assert.deepEqual(this.guest.sectors(READ_PAGE + place, 0, 7), wanted, `place ${place}`);
    this.verified++;
  }
}
