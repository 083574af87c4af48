/**
 * A device in the process of the test, on the real loop with real descriptors.
 *
 * @module
 */
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { LibaioBackend } from "../../src/queue/libaio.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { createVbdContext, type DriverLookup, type VbdContext } from "../../src/vbd/vbd_context.ts";
import { checkedDrivers } from "./checked_drivers.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { type OpenOptions, Vbd } from "../../src/vbd/vbd.ts";

const SECTOR_BYTES = 512;

/** A device and its only client. */
export class RealDevice implements RequestOwner {
  readonly scheduler = new EpollScheduler();
  readonly log: string[] = [];
  readonly vbd: Vbd;
  readonly context: VbdContext;
  readonly #ended = new Map<number, (errno: number) => void>();

  /**
   * Opens an image. Throws like the driver.
   *
   * @param driverOf The drivers; by default each is checked against its contract.
   */
  constructor(name: string, options: OpenOptions = {}, driverOf: DriverLookup = checkedDrivers) {
    this.context = createVbdContext({
      scheduler: this.scheduler,
      backend: new LibaioBackend(this.scheduler),
      files: osDiskFiles,
      log: (message) => this.log.push(message),
      driverOf,
    });
    this.vbd = new Vbd(this.context, 0);
    this.vbd.open(name, options);
  }

  requestDone(slot: number, errno: number): void {
    this.#ended.get(slot)?.(errno);
    this.#ended.delete(slot);
    if (this.#ended.size === 0) this.scheduler.stop();
  }

  #start(
    slot: number,
    kind: RequestKind,
    { sector, count }: { sector: number; count: number },
  ): Promise<number> {
    const done = new Promise<number>((resolve) => this.#ended.set(slot, resolve));
    this.vbd.requests.start(slot, kind, sector, count, false, this);
    return done;
  }

  /** Runs the loop until every started request has ended. */
  async settle(): Promise<void> {
    if (this.#ended.size > 0) await this.scheduler.run();
  }

  /** Starts a read; the promise resolves to the data or an errno. */
  async read(sector: number, count: number): Promise<Uint8Array | number> {
    const { requests } = this.vbd;
    const slot = requests.takeSlot();
    const errno = await this.#start(slot, RequestKind.Read, { sector, count });
    const at = requests.slotOffset(slot);
    const data = requests.memory.bytes.slice(at, at + count * SECTOR_BYTES);
    requests.releaseSlot(slot);
    return errno === 0 ? data : errno;
  }

  /** Starts a status request; the promise resolves to sectors, negative for holes, or an errno. */
  async status(sector: number, count: number, most = 8192): Promise<number[] | number> {
    const { requests } = this.vbd;
    const slot = requests.takeSlot();
    const errno = await new Promise<number>((resolve) => {
      this.#ended.set(slot, resolve);
      requests.startStatus(slot, sector, count, most, this);
    });
    const extents = Array.from({ length: requests.extents(slot) }, (_, i) => {
      const at = requests.slotOffset(slot) + 8 * i;
      const { view } = requests.memory;
      return view.getUint32(at + 4, true) === 1
        ? view.getUint32(at, true)
        : -view.getUint32(at, true);
    });
    requests.releaseSlot(slot);
    return errno === 0 ? extents : errno;
  }

  /** Starts a write; the promise resolves to an errno. */
  write(sector: number, data: Uint8Array): Promise<number> {
    const { requests } = this.vbd;
    const slot = requests.takeSlot();
    requests.memory.bytes.set(data, requests.slotOffset(slot));
    const count = data.length / SECTOR_BYTES;
    return this.#release(slot, this.#start(slot, RequestKind.Write, { sector, count }));
  }

  /** Starts a request without data; the promise resolves to an errno. */
  change(kind: RequestKind, sector = 0, count = 0): Promise<number> {
    const slot = this.vbd.requests.takeSlot();
    return this.#release(slot, this.#start(slot, kind, { sector, count }));
  }

  async #release(slot: number, done: Promise<number>): Promise<number> {
    const errno = await done;
    this.vbd.requests.releaseSlot(slot);
    return errno;
  }

  /** Closes the image; throws on an error. */
  async close(): Promise<void> {
    let result = -1;
    this.vbd.close((error) => {
      result = error?.errno ?? 0;
      this.scheduler.stop();
    });
    if (result < 0) await this.scheduler.run();
    if (result !== 0) throw new Error(`Closing ended with error ${result}`);
    this.context.queue.close();
    this.scheduler.close();
  }
}
