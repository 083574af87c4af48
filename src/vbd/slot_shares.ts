import { assert } from "../../ffi/assert.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";
import type { ClientTimes } from "./client_times.ts";
import type { SlotTable } from "./slots.ts";

/** Waits for free slots. */
export interface SlotWaiter {
  /** What a fault of its methods ends; without it, the disk. */
  readonly faults?: FaultOwner;
  slotsFree(): void;
}

/** What is known of a holder of slots. */
export interface ClaimFacts {
  readonly client: string;
  /** Slots that it has. */
  readonly held: number;
  /** Whether it waits for more. */
  readonly waits: boolean;
  /** How long slots have waited for it to take answers in, or to send data; null while none does. */
  readonly stuckMs: number | null;
}

/** Holds slots for a peer, which may be slow to let go of them. */
export interface SlotHolder extends SlotWaiter {
  /**
   * The peer has kept slots for too long. All slots that wait for it must be given back now.
   *
   * @param why The end of a sentence about the peer, for the log.
   */
  giveUpSlots(why: string): void;
}

/** How often the holders are checked for peers that keep slots. */
const TICK_MS = 250;
/** Ticks without a slot given back, after which a peer loses its slots if others have none. */
const STARVING_TICKS = 2;
/** The same if nobody else needs them: 60 seconds. */
const SILENT_TICKS = 240;

const NONE = -1;

/** The slots of a device that one holder has, and may take. */
export class SlotClaim {
  /** Slots that it has taken and not given back. */
  held = 0;
  /** Whether it is in the queue of those that wait. */
  waits = false;
  /** Ticks in which slots waited for the peer, and none came back; -1: none waits for it. */
  stuckTicks = NONE;
  /** Whether its holder is being called, as the first of those that wait. */
  isCalled = false;
  readonly holder: SlotHolder;
  /** Who holds them, for people. */
  readonly title: () => string;
  readonly #shares: SlotShares;

  constructor(shares: SlotShares, holder: SlotHolder, title: () => string) {
    this.#shares = shares;
    this.holder = holder;
    this.title = title;
  }

  /** How many slots it may take now, at most `most`; 0: it has to wait. */
  mayTake(most: number): number {
    return this.#shares.mayTake(this, most);
  }

  /** Waits: `slotsFree` of the holder is called once when slots have become free. */
  wait(): void {
    this.#shares.wait(this);
  }

  /** Takes a slot, after `mayTake`. */
  take(): number {
    return this.#shares.take(this);
  }

  /** Gives a slot back. */
  give(slot: number): void {
    this.#shares.give(this, slot);
  }

  /** Slots wait for the peer from now on: it has to receive answers, or to send data. */
  waitForPeer(): void {
    if (this.stuckTicks !== NONE) return;
    this.stuckTicks = 0;
    this.#shares.look();
  }

  /** The peer did what slots waited for. */
  peerMoved(): void {
    this.stuckTicks = NONE;
  }

  /** Ends the claim. The slots that it holds are still given back one by one. */
  end(): void {
    this.#shares.leave(this);
  }
}

/**
 * Decides which client gets the slots of a device. A client takes no more than are left for others
 * afterwards, so that shares adapt to the number of clients: one client alone has half of the slots,
 * many have equal shares. Clients that hold none come first, in the order in which they began to
 * wait.
 *
 * A slot may wait for a peer, to receive an answer or to send the data of a write. Peers may stop, or
 * be hostile. While another client has no slot at all, a client that kept its slots for half a second
 * loses them, the largest share first: its connection ends. So no client waits longer than that for a
 * slot, unless the disk itself is slow.
 */
export class SlotShares {
  readonly #slots: SlotTable;
  readonly #scheduler: Scheduler;
  readonly #faults: FaultOwner;
  readonly #clients: ClientTimes;
  readonly #callSoon: () => void;
  readonly #claims = new Set<SlotClaim>();
  /** Claims that wait, in order. */
  readonly #queue: SlotClaim[] = [];
  /** Of those: how many hold no slot. */
  #emptyHanded = 0;
  /** Waiters without a claim: they take what is free. */
  readonly #others: SlotWaiter[] = [];
  #timer = 0;
  readonly #tick = (): void => this.#looked();
  #urgentTimer = 0;
  readonly #relieve = (): void => {
    this.#urgentTimer = 0;
    this.#takeFromStuck();
  };

  /**
   * @param faults The disk.
   * @param clients Counts how long clients keep slots.
   * @param callSoon Makes the loop call `callWaiters` at the end of the turn.
   */
  constructor(
    slots: SlotTable,
    { scheduler, faults, clients, callSoon }: {
      scheduler: Scheduler;
      faults: FaultOwner;
      clients: ClientTimes;
      callSoon: () => void;
    },
  ) {
    this.#slots = slots;
    this.#scheduler = scheduler;
    this.#faults = faults;
    this.#clients = clients;
    this.#callSoon = callSoon;
  }

  /** What is known of the holders. */
  facts(): ClaimFacts[] {
    return Array.from(this.#claims, ({ title, held, waits, stuckTicks }) => ({
      client: title(),
      held,
      waits,
      stuckMs: stuckTicks === NONE ? null : stuckTicks * TICK_MS,
    }));
  }

  /** A claim for one more holder. */
  open(holder: SlotHolder, title: () => string = () => "a client"): SlotClaim {
    const claim = new SlotClaim(this, holder, title);
    this.#claims.add(claim);
    return claim;
  }

  /** Whether slots are waited for. */
  get isWanted(): boolean {
    return this.#queue.length > 0 || this.#others.length > 0;
  }

  /** `SlotClaim.mayTake` calls this. */
  mayTake(claim: SlotClaim, most: number): number {
    const free = this.#slots.freeCount;
    const first = this.#emptyHanded + this.#others.length;
    // More slots do not help as long as the peer does not let go of those that it has.
    if (claim.stuckTicks > 0) return 0;
    if (claim.held > 0) return free - first >= claim.held + 2 * most ? most : 0;
    const left = claim.isCalled ? free : free - first;
    return left <= 0 ? 0 : Math.min(left, most);
  }

  /** `SlotClaim.take` calls this. */
  take(claim: SlotClaim): number {
    const slot = this.#slots.take();
    assert(slot !== NONE, "A slot is taken only after mayTake");
    this.#clients.take(slot);
    // Others that keep slots do not take them for each request.
    if (this.#slots.trace !== null) this.#slots.trace.taken(slot);
    claim.held++;
    claim.isCalled = false;
    return slot;
  }

  /** `SlotClaim.give` calls this. */
  give(claim: SlotClaim, slot: number): void {
    assert(claim.held > 0, "A claim gives back no more slots than it took");
    if (--claim.held === 0 && claim.waits) this.#emptyHanded++;
    if (claim.stuckTicks > 0) claim.stuckTicks = 0;
    this.#clients.give(slot);
    this.release(slot);
  }

  /** Gives back a slot that was taken without a claim. */
  release(slot: number): void {
    this.#slots.give(slot);
    if (this.isWanted) this.#callSoon();
  }

  /** `SlotClaim.wait` calls this. */
  wait(claim: SlotClaim): void {
    claim.isCalled = false;
    if (claim.waits) return;
    claim.waits = true;
    if (claim.held === 0) {
      this.#emptyHanded++;
      this.look();
      if (this.#urgentTimer === 0 && this.#worst() !== null) {
        this.#urgentTimer = this.#scheduler.addTimer(0, this.#relieve, this.#faults);
      }
    }
    this.#queue.push(claim);
    if (this.#slots.trace !== null) this.#slots.trace.wanted(true);
  }

  /** Calls once when slots have become free. */
  waitUnclaimed(waiter: SlotWaiter): void {
    if (this.#others.includes(waiter)) return;
    this.#others.push(waiter);
    if (this.#slots.trace !== null) this.#slots.trace.wanted(true);
    this.look();
  }

  /** Calls those that wait, in their order, as long as there are free slots. */
  callWaiters(): void {
    for (let left = this.#others.length; left > 0 && this.#slots.freeCount > 0; left--) {
      const other = this.#others.shift();
      if (other !== undefined) this.#call(other);
    }
    for (let left = this.#queue.length; left > 0 && this.#slots.freeCount > 0; left--) {
      const claim = this.#queue.shift();
      if (claim === undefined) break;
      this.#left(claim);
      claim.isCalled = true;
      this.#call(claim.holder);
      claim.isCalled = false;
    }
    if (this.#slots.trace !== null) this.#slots.trace.wanted(this.isWanted);
  }

  #call(waiter: SlotWaiter): void {
    try {
      waiter.slotsFree();
    } catch (error) {
      this.#scheduler.contain(error, waiter.faults ?? this.#faults);
    }
  }

  /** Has a holder give back what waits for its peer. */
  #takeFrom({ holder }: SlotClaim, why: string): void {
    try {
      holder.giveUpSlots(why);
    } catch (error) {
      this.#scheduler.contain(error, holder.faults ?? this.#faults);
    }
  }

  #left(claim: SlotClaim): void {
    claim.waits = false;
    if (claim.held === 0) this.#emptyHanded--;
  }

  /** `SlotClaim.end` calls this. */
  leave(claim: SlotClaim): void {
    claim.stuckTicks = NONE;
    this.#claims.delete(claim);
    if (!claim.waits) return;
    this.#queue.splice(this.#queue.indexOf(claim), 1);
    this.#left(claim);
    // The slots that were kept for it are there for the others.
    if (this.isWanted) this.#callSoon();
  }

  /** Checks the holders soon, and again as long as there is a reason to. */
  look(): void {
    if (this.#timer === 0) {
      this.#timer = this.#scheduler.addTimer(TICK_MS, this.#tick, this.#faults);
    }
  }

  #looked(): void {
    this.#timer = 0;
    let isAnyStuck = false;
    for (const claim of this.#claims) {
      if (claim.stuckTicks === NONE) continue;
      isAnyStuck = true;
      if (++claim.stuckTicks >= SILENT_TICKS) {
        claim.stuckTicks = NONE;
        this.#takeFrom(claim, "it has neither taken answers in nor sent its data for a minute");
      }
    }
    this.#takeFromStuck();
    if (isAnyStuck || this.#emptyHanded + this.#others.length > 0) this.look();
  }

  /** Takes slots from peers that keep them without a reason while others have none. */
  #takeFromStuck(): void {
    for (
      let needed = this.#emptyHanded + this.#others.length - this.#slots.freeCount;
      needed > 0;
    ) {
      const claim = this.#worst();
      if (claim === null) return;
      needed -= claim.held;
      claim.stuckTicks = NONE;
      this.#takeFrom(claim, "it kept slots that others need, and did not take its answers in");
    }
  }

  /** The claim that keeps the most slots from others without a reason; null without one. */
  #worst(): SlotClaim | null {
    let worst: SlotClaim | null = null;
    for (const claim of this.#claims) {
      if (claim.stuckTicks < STARVING_TICKS) continue;
      if (worst === null || claim.held > worst.held) worst = claim;
    }
    return worst;
  }
}
