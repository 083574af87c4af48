import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type GuestDevice, type GuestRing, type HandedRing, nameOfGuest } from "./guest.ts";
import { XenRing, type XenRingHost } from "./xen_ring.ts";

/** The most rings of a disk. A disk that several guests share has one for each. */
const MOST_RINGS = 64;

/** The rings of guests that one disk serves. */
export class GuestRings {
  readonly #host: XenRingHost;
  readonly #journalPath: (guest: GuestDevice) => string | null;
  readonly #rings = new Set<XenRing>();
  /** Rings that were left while the disk had requests of them. */
  readonly #left = new Set<XenRing>();

  /** @param journalPath Where the requests of a ring are noted, for another tapdisk to go on with it. */
  constructor(host: XenRingHost, journalPath: (guest: GuestDevice) => string | null) {
    this.#host = host;
    this.#journalPath = journalPath;
  }

  #find({ domain, device }: GuestDevice): XenRing | null {
    for (const ring of this.#rings) {
      const isSame = ring.guest.domain === domain && ring.guest.device === device;
      if (isSame && !ring.failed) return ring;
    }
    return null;
  }

  /** Whether the ring of a guest's device is connected. */
  has(guest: GuestDevice): boolean {
    return this.#find(guest) !== null;
  }

  /** The journal of a ring, with which another tapdisk can go on; null without a ring. */
  get journal(): string | null {
    for (const ring of this.#rings) if (!ring.failed) return this.#journalPath(ring.guest);
    return null;
  }

  #leave(ring: XenRing): void {
    this.#rings.delete(ring);
    if (!ring.isQuiet) this.#left.add(ring);
  }

  /**
   * A write of the guest that the disk still has could end after one that the guest makes later, and
   * would bring back old data. Throws `SystemError` (EBUSY) until there is none.
   */
  #requireQuiet({ domain, device }: GuestDevice): void {
    for (const ring of this.#left) {
      if (ring.isQuiet) this.#left.delete(ring);
      else if (ring.guest.domain === domain && ring.guest.device === device) {
        const why = "requests that it made before have not ended";
        const what = `Cannot connect ${nameOfGuest(ring.guest)} (${why})`;
        throw new SystemError(Errno.EBUSY, what, { hint: "try again" });
      }
    }
  }

  /** Connects a ring. Throws `SystemError`: EBUSY while requests that the guest made before go on. */
  connect(guest: GuestRing): void {
    for (const ring of this.#rings) if (ring.failed) this.#leave(ring);
    this.#requireQuiet(guest);
    this.#requireRoom(guest);
    this.#rings.add(new XenRing(this.#host, guest, this.#journalPath(guest)));
    const { log, vbd } = this.#host;
    log.info(`Connected ${nameOfGuest(guest)} to minor ${vbd.minor}`);
  }

  #requireRoom(guest: GuestDevice): void {
    if (this.#rings.size < MOST_RINGS) return;
    const what = `Cannot connect ${nameOfGuest(guest)}`;
    throw new SystemError(Errno.EUSERS, `${what} (the disk has ${MOST_RINGS} rings)`);
  }

  /** Disconnects a ring, which must be connected. */
  disconnect(guest: GuestDevice): void {
    const ring = this.#find(guest);
    if (ring === null) return;
    ring.close();
    this.#leave(ring);
    const { log, vbd } = this.#host;
    log.info(`Disconnected ${nameOfGuest(guest)} from minor ${vbd.minor}`);
  }

  /** Takes no more requests for now. */
  hold(): void {
    for (const ring of this.#rings) if (!ring.failed) ring.hold();
  }

  /** Takes requests again. */
  goOn(): void {
    for (const ring of this.#rings) if (!ring.failed) ring.goOn();
  }

  // ---- for another process ----------------------------------------------------------------

  get #served(): XenRing[] {
    return [...this.#rings].filter(({ failed }) => !failed);
  }

  /** How many rings there are. */
  get count(): number {
    return this.#served.length;
  }

  /** Why another process cannot go on with them; null when it can. */
  get whyStaying(): string | null {
    const stuck = this.#served.find(({ hasLeftOver }) => hasLeftOver);
    if (stuck === undefined) return null;
    return `${nameOfGuest(stuck.guest)} waits for answers since a 'tap-ctl close' that failed`;
  }

  /** Whether all are held, no request is under way, and the guests have all answers. */
  get areQuiet(): boolean {
    return this.#served.every(({ isSettled }) => isSettled);
  }

  /** The rings, which must be quiet. */
  handOver(): HandedRing[] {
    return this.#served.map(({ handed }) => handed);
  }

  /**
   * Prepares to serve a ring of another process, which has it until `begin`.
   *
   * @param handed Its descriptor belongs to this from now on.
   * @throws {SystemError}
   */
  adopt(handed: HandedRing): void {
    const { guest, fd, port } = handed;
    const channel = this.#host.xen.adopt(fd, port);
    try {
      this.#requireRoom(guest);
      this.#rings.add(
        new XenRing(this.#host, guest, this.#journalPath(guest), { handed, channel }),
      );
    } catch (error) {
      channel.drop();
      throw error;
    }
  }

  /** The other process serves no more: the rings are served here. */
  begin(): void {
    const { log, vbd } = this.#host;
    for (const ring of this.#served) {
      try {
        ring.begin();
        log.info(`Serves ${nameOfGuest(ring.guest)} by minor ${vbd.minor}`);
      } catch (error) {
        // The other rings are served.
        ring.fault(error);
      }
    }
  }

  /** Disconnects all rings. */
  close(): void {
    for (const { guest } of [...this.#rings]) this.disconnect(guest);
  }
}
