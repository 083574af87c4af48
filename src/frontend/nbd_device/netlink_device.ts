import { type Done, Errno, errnoName, SystemError, systemError } from "../../../ffi/errno.ts";
import { closeAside, O_RDONLY, openAside } from "../../../ffi/files.ts";
import {
  NBD_CFLAG_DISCONNECT_ON_CLOSE,
  nbdDisconnect,
  nbdDrop,
  nbdReconfigure,
} from "../../../ffi/nbd_netlink.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { BlockDevice, DeviceHost } from "../block_device.ts";
import { cannotTakeAway } from "../device_users.ts";
import type { ServedConnection } from "../nbd/connection_host.ts";
import { ClientsHandover } from "../nbd/clients_handover.ts";
import { type ConnectionsOwner, NbdConnections } from "../nbd/connections.ts";
import { kernelAtLeast, nbdFacts, nodeOf } from "./kernel_facts.ts";
import { SocketPairs } from "./socket_pairs.ts";

/** Tries, and the time between them, for a process that opens the device for a moment. */
const LEAVE_TRIES = 10;
const LEAVE_AGAIN_MS = 100;
/** Tries, and the time between them, until the kernel has noticed that a connection is dead. */
const JOIN_TRIES = 50;
const JOIN_AGAIN_MS = 100;

/** The name of the server of a device, which the kernel stores. */
export function backendOf(minor: number): string {
  return `tapdisk-${minor}`;
}

/** A device that was created by netlink. It can outlive its tapdisk. */
export class NetlinkDevice implements BlockDevice, ConnectionsOwner {
  readonly kind = "nbd";
  readonly outlives: boolean;
  readonly node: string;
  readonly handover: ClientsHandover;
  readonly #host: DeviceHost;
  readonly #index: number;
  readonly #connections: NbdConnections;
  #isCounted = false;
  #state: "serving" | "detaching" | "gone" = "serving";

  /** @param outlives Whether it can be taken over when its tapdisk dies. */
  constructor(host: DeviceHost, index: number, { outlives }: { outlives: boolean }) {
    this.#host = host;
    this.outlives = outlives;
    this.#index = index;
    this.node = nodeOf(index);
    this.#connections = new NbdConnections(host.scheduler, host.vbd, { owner: this });
    this.handover = new ClientsHandover(this.#connections, undefined);
  }

  get #backend(): string {
    return backendOf(this.#host.vbd.minor);
  }

  /** Serves the requests of the kernel. */
  serve(pairs: SocketPairs): void {
    this.count();
    pairs.serve(this.#connections);
  }

  /** Shows its counters. A connection may be replaced, and the counters go on. */
  count(): void {
    const { vbd } = this.#host;
    if (!this.#isCounted) {
      vbd.meters.show(this.#connections.meter, { of: "blktap", minor: vbd.minor });
    }
    this.#isCounted = true;
  }

  /**
   * Replaces a dead connection by a new one and serves that. While the kernel has not noticed that
   * the connection is dead, it drops the new one without an error.
   */
  join(done: Done, tries = JOIN_TRIES): void {
    const { scheduler, vbd } = this.#host;
    let pairs: SocketPairs;
    try {
      pairs = new SocketPairs(vbd.requests, 1);
    } catch (error) {
      return done(systemError(error, `Cannot take ${this.node} over`));
    }
    const change = { index: this.#index, backend: this.#backend, sockets: [...pairs.kernelEnds] };
    scheduler.settle(nbdReconfigure(change), (errno) => {
      pairs.closeKernelEnds();
      if (errno === 0 && this.#state !== "gone" && !pairs.isRefused) {
        this.serve(pairs);
        return done(null);
      }
      pairs.discard();
      const what = `Cannot take ${this.node} over`;
      if (errno !== 0) return done(new SystemError(errno, what));
      if (this.#state === "gone" || tries === 0) {
        return done(new SystemError(Errno.EBUSY, `${what} (it is served already)`));
      }
      scheduler.addTimer(JOIN_AGAIN_MS, () => this.join(done, tries - 1));
    });
  }

  connectionGone(connection: ServedConnection): void {
    if (this.#state !== "serving" || !connection.hasLeft) return;
    this.#state = "gone";
    this.#host.log.warn(`${this.node} was disconnected, and not by this tapdisk`);
  }

  /** Replaces a broken connection once none of its requests is in flight. */
  connectionRetired(_connection: ServedConnection): void {
    if (this.#state !== "serving" || this.#connections.size > 0) return;
    const { log } = this.#host;
    log.warn(`The connection of ${this.node} broke; it gets another`);
    this.join((error) => {
      if (error !== null) log.error(error.message);
    });
  }

  #hangUp(): void {
    this.#connections.meter.hide();
    this.#connections.close();
  }

  resized(): boolean {
    const { scheduler, vbd, log } = this.#host;
    const change = {
      index: this.#index,
      backend: this.#backend,
      sizeBytes: vbd.sectors * SECTOR_BYTES,
    };
    scheduler.settle(nbdReconfigure(change), (errno) => {
      if (errno !== 0) log.error(`Cannot change the size of ${this.node} (${errnoName(errno)})`);
    });
    return true;
  }

  /** Whether the kernel has disconnected the device. */
  get #isDisconnected(): boolean {
    return this.#state === "gone" || nbdFacts(this.#index)?.isConnected !== true;
  }

  detach(done: Done): void {
    if (this.#isDisconnected) return this.#left(done);
    const { scheduler } = this.#host;
    this.#state = "detaching";
    if (!kernelAtLeast(4, 19)) {
      return scheduler.settle(nbdDisconnect(this.#index), () => this.#left(done));
    }
    const change = {
      index: this.#index,
      backend: this.#backend,
      clientFlags: NBD_CFLAG_DISCONNECT_ON_CLOSE,
    };
    scheduler.settle(nbdReconfigure(change), () => this.#tryToLeave(LEAVE_TRIES, done));
  }

  /**
   * Opens and closes the node: with NBD_CFLAG_DISCONNECT_ON_CLOSE the kernel disconnects the device
   * at the last close. So no process can open it between a check and the disconnect.
   */
  #tryToLeave(tries: number, done: Done): void {
    const { scheduler } = this.#host;
    scheduler.settle(openAndClose(this.node), () => {
      if (this.#isDisconnected) return this.#left(done);
      if (tries === 0) return this.#stay(done);
      scheduler.addTimer(LEAVE_AGAIN_MS, () => this.#tryToLeave(tries - 1, done));
    });
  }

  #stay(done: Done): void {
    const change = { index: this.#index, backend: this.#backend, clientFlags: 0 };
    this.#host.scheduler.settle(nbdReconfigure(change), () => {
      if (this.#isDisconnected) return this.#left(done);
      this.#state = "serving";
      done(cannotTakeAway(this.node, Errno.EBUSY, "somebody has it open"));
    });
  }

  #left(done: Done): void {
    this.#state = "gone";
    this.#hangUp();
    done(null);
  }

  abandon(): void {
    if (this.#state === "gone") return this.#hangUp();
    this.#state = "gone";
    nbdDrop(this.#index, this.#backend, () => this.#hangUp());
  }
}

async function openAndClose(node: string): Promise<void> {
  const fd = await openAside(node, O_RDONLY);
  if (fd >= 0) await closeAside(fd);
}
