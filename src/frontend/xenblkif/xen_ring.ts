/**
 * `src/frontend/xenblkif` serves the block devices of Xen's guests without a driver in the kernel: the
 * guest's ring is mapped, its data is copied between its pages and I/O memory by the hypervisor, and an
 * event channel wakes either side. `ring_requests.ts` is the data path, `guest_rings.ts` the rings of a
 * disk, and this file has the life of a ring.
 *
 * It must not trust the guest, which can write to the ring at any time and gives any grant reference,
 * and it must not touch memory of the guest after a ring has ended.
 *
 * @module
 */
import { BlkifRing } from "../../../ffi/blkif_ring.ts";
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Errno, errnoName, messageOf, SystemError } from "../../../ffi/errno.ts";
import { Arena, PAGE_BYTES } from "../../../ffi/memory.ts";
import type { EventChannel, Grants, Xen } from "../../../ffi/xen.ts";
import type { Log } from "../../log/log.ts";
import type { Meter } from "../../metrics/meter.ts";
import type { MetricsSubject } from "../../metrics/metrics.ts";
import type { FaultOwner } from "../../scheduler/faults.ts";
import type { FdHandler, Scheduler, TurnWork } from "../../scheduler/scheduler.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { type GuestRing, type HandedRing, nameOfGuest } from "./guest.ts";
import { Polling, type ProcessorClock } from "./polling.ts";
import { RingJournal } from "./ring_journal.ts";
import { RingRequests, type RingRequestsHost } from "./ring_requests.ts";

/** What the rings of a disk need. */
export interface XenRingHost {
  readonly scheduler: Scheduler;
  readonly log: Log;
  readonly vbd: Vbd;
  readonly xen: Xen;
  readonly processors: ProcessorClock;
}

/** A guest's ring, from its connection on. A fault in this code ends the ring only. */
export class XenRing implements FdHandler, TurnWork, FaultOwner, RingRequestsHost {
  readonly guest: GuestRing;
  readonly meter: Meter;
  readonly #host: XenRingHost;
  readonly #arena: Arena;
  readonly #grants: Grants;
  readonly #channel: EventChannel;
  readonly #requests: RingRequests;
  readonly #polling: Polling;
  #isClosed = false;
  #isHeld = false;
  /** Whether another process has the ring as yet. */
  #isAwaited = false;
  #saidThatNotifyFails = false;

  readonly #journal: RingJournal | null;

  /**
   * Connects. Throws `SystemError`; then nothing is left, but the journal of another tapdisk.
   *
   * @param journalPath Where the requests under way are noted, for another tapdisk to go on; null: nowhere.
   * @param taken The ring of a process that hands it over, with its channel, which stays the caller's on
   * an error. Nothing is written, and nothing taken from the ring, until `begin`.
   */
  constructor(
    host: XenRingHost,
    guest: GuestRing,
    journalPath: string | null,
    taken: { readonly handed: HandedRing; readonly channel: EventChannel } | null = null,
  ) {
    this.#host = host;
    this.guest = guest;
    this.#polling = new Polling(host.scheduler, guest, host.processors);
    const { references, domain, protocol } = guest;
    this.#arena = new Arena(references.length * PAGE_BYTES);
    this.#grants = openGrants(host.xen, this.#arena);
    let bound: EventChannel | null = null;
    let meter: Meter | null = null;
    let left: RingJournal | null = null;
    let journal: RingJournal | null = null;
    let requests: RingRequests | null = null;
    const handed = taken?.handed ?? null;
    try {
      this.#grants.map(domain, references, this.#arena);
      // Xen refuses a channel that another tapdisk has. So no other one serves the ring that is read next.
      this.#channel = taken?.channel ?? (bound = host.xen.bind(domain, guest.port));
      const ring = new BlkifRing(this.#arena, protocol);
      if (handed !== null) journal = left = this.#shareJournal(ring, handed, journalPath);
      else {
        left = findJournal(ring, guest, journalPath);
        journal = left ?? this.#makeJournal(ring, journalPath);
      }
      this.#journal = journal;
      this.meter = meter = host.vbd.meters.make(ring.entries);
      const { isReadOnly } = guest;
      const parts = { ring, grants: this.#grants, domain, journal, isReadOnly, handed };
      this.#requests = requests = new RingRequests(this, parts);
      if (handed === null) {
        host.vbd.meters.show(meter, this.#subject);
        host.scheduler.watch(this.#channel.fd, EPOLLIN, this, this);
      }
    } catch (error) {
      requests?.leave();
      meter?.hide();
      bound?.close();
      left?.leave();
      if (journal !== left) journal?.close();
      this.#releaseGrants();
      throw error;
    }
    if (handed === null) this.#start(left);
    else {
      this.#isAwaited = this.#isHeld = true;
      requests.hold(true);
    }
  }

  #start(left: RingJournal | null): void {
    this.#host.scheduler.addTurnWork(this, this);
    try {
      if (left !== null) this.#resume(left);
      // What the guest added before it could notify.
      this.#requests.takeRequests(true);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get #subject(): MetricsSubject {
    const { domain, device } = this.guest;
    return { of: "vbd", domain, device };
  }

  #shareJournal(ring: BlkifRing, handed: HandedRing, path: string | null): RingJournal | null {
    if (path === null) return null;
    const { guest, taken } = handed;
    const journal = RingJournal.share(path, guest, { ring, taken });
    if (journal === null) this.#warnWithoutJournal("it has no journal that fits");
    return journal;
  }

  #warnWithoutJournal(why: string): void {
    const { log } = this.#host;
    log.warn(
      `No tapdisk can go on with the ring of ${nameOfGuest(this.guest)} after this one: ${why}`,
    );
  }

  /** A ring without a journal is served all the same. */
  #makeJournal(ring: BlkifRing, path: string | null): RingJournal | null {
    if (path === null) return null;
    try {
      return RingJournal.make(path, this.guest, ring);
    } catch (error) {
      this.#warnWithoutJournal(messageOf(error));
      return null;
    }
  }

  #resume(journal: RingJournal): void {
    const { log } = this.#host;
    const count = journal.unanswered().length;
    log.info(`Carrying out ${count} requests of ${nameOfGuest(this.guest)} that had no answer`);
    this.#requests.resume(journal);
  }

  #releaseGrants(): void {
    this.#grants.unmap();
    this.#grants.close();
    this.#arena.release();
  }

  get scheduler(): Scheduler {
    return this.#host.scheduler;
  }

  get vbd(): Vbd {
    return this.#host.vbd;
  }

  get owner(): FaultOwner {
    return this;
  }

  get failed(): boolean {
    return this.#isClosed;
  }

  /** Whether no request is under way, after the ring was left. */
  get isQuiet(): boolean {
    return this.#requests.isQuiet;
  }

  /** Whether no request is under way, and the guest has all answers. */
  get isSettled(): boolean {
    return this.isQuiet && !this.#requests.isAwaited;
  }

  /** Whether a guest waits for answers that no disk is going to give. */
  get hasLeftOver(): boolean {
    return this.#requests.hasLeftOver;
  }

  /** The ring, which is held and settled, for another process. */
  get handed(): HandedRing {
    const { guest } = this;
    const { fd, port } = this.#channel;
    const { taken, isBroken } = this.#requests;
    return { guest, fd, port, taken, isBroken };
  }

  fault(error: unknown): void {
    this.#host.vbd.noteFault(`the ring of ${nameOfGuest(this.guest)}`, error);
    this.close();
  }

  /** The guest has notified. */
  ready(_events: number): void {
    this.#channel.takeEvent();
    this.#take();
  }

  /** The other process serves the ring no more. */
  begin(): void {
    if (!this.#isAwaited || this.#isClosed) return;
    this.#isAwaited = false;
    const { scheduler, vbd } = this.#host;
    vbd.meters.show(this.meter, this.#subject);
    scheduler.addTurnWork(this, this);
    this.goOn();
  }

  #take(): boolean {
    const any = this.#requests.takeRequests(false);
    if (any) this.#polling.noteRequests();
    return !this.#polling.isOn && this.#requests.takeRequests(true) || any;
  }

  endOfTurn(): boolean {
    if (this.#isClosed) return false;
    const any = this.#requests.finishTurn();
    if (this.#requests.publish()) this.#notify();
    if (this.#isHeld || !this.#polling.isDue()) return any;
    return this.#take() || any;
  }

  #notify(): void {
    const errno = this.#channel.notify();
    if (errno === 0 || this.#saidThatNotifyFails) return;
    this.#saidThatNotifyFails = true;
    const { log } = this.#host;
    log.warn(`Cannot notify ${nameOfGuest(this.guest)} (${errnoName(errno)})`);
  }

  broken(reason: string): void {
    const { log, vbd } = this.#host;
    const what = `Minor ${vbd.minor} takes no more requests of ${nameOfGuest(this.guest)}`;
    log.error(`${what}: its ring makes no sense (${reason})`);
  }

  /** Takes no more requests from the ring for now. A notification stays for whoever goes on. */
  hold(): void {
    if (this.#isHeld) return;
    this.#isHeld = true;
    this.#host.scheduler.unwatch(this.#channel.fd);
    this.#requests.hold(true);
  }

  /** Takes requests again: also those of which the guest has not notified, as it was not asked to. */
  goOn(): void {
    if (!this.#isHeld || this.#isAwaited) return;
    this.#host.scheduler.watch(this.#channel.fd, EPOLLIN, this, this);
    this.#isHeld = false;
    this.#requests.hold(false);
    this.#requests.takeRequests(true);
  }

  /**
   * Leaves the ring. Requests that the disk has already go on; their answers are dropped. The journal
   * stays when the guest waits for answers: it may get them from the next one who serves the ring. It
   * stays, too, as long as another process has the ring.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const { scheduler } = this.#host;
    if (!this.#isHeld) scheduler.unwatch(this.#channel.fd);
    if (!this.#isAwaited) scheduler.removeTurnWork(this);
    const isJournalNeeded = this.#isAwaited || this.#requests.isAwaited;
    this.#requests.leave();
    this.meter.hide();
    if (this.#isAwaited) this.#channel.drop();
    else this.#channel.close();
    this.#releaseGrants();
    if (isJournalNeeded) this.#journal?.leave();
    else this.#journal?.close();
  }
}

/** Opens the driver of grants. Throws `SystemError`; the arena is released then. */
function openGrants(xen: Xen, arena: Arena): Grants {
  try {
    return xen.openGrants();
  } catch (error) {
    arena.release();
    throw error;
  }
}

/**
 * The journal of the tapdisk that served a ring before, with which its requests can be carried out; null
 * when there are none to carry out. Throws `SystemError`: EINVAL for a ring whose indices are not those
 * of a ring, ESTALE when requests may be lost.
 */
function findJournal(ring: BlkifRing, guest: GuestRing, path: string | null): RingJournal | null {
  const waiting = ring.produced() - ring.answered() | 0;
  const what = `Cannot connect ${nameOfGuest(guest)}`;
  if (waiting < 0 || waiting > ring.entries) {
    const why = `its ring of ${ring.entries} entries has ${waiting} requests without an answer`;
    throw new SystemError(Errno.EINVAL, `${what} (${why})`);
  }
  // Answers are not in the order of requests: of those without an answer, the ring may have some that
  // were answered, whose pages the guest has reused, and not have others any more.
  if (!ring.mayHaveLostRequests) return null;
  const journal = path === null ? null : RingJournal.find(path, guest, ring);
  if (journal === null) {
    const why = "a tapdisk before this one took requests that it did not answer";
    throw new SystemError(Errno.ESTALE, `${what} (${why})`, {
      hint: "the guest must connect again, or be restarted",
    });
  }
  return journal;
}
