import { type Done, Errno, errnoName, SystemError } from "../../../ffi/errno.ts";
import { closeAside, O_RDONLY, openFile } from "../../../ffi/files.ts";
import {
  nbdClearSock,
  nbdDoIt,
  nbdSayDisconnect,
  nbdSetBlocks,
  nbdSetUp,
} from "../../../ffi/nbd_ioctl.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { BlockDevice, DeviceHost } from "../block_device.ts";
import { cannotTakeAway, userOf } from "../device_users.ts";
import { describeExport, NbdConnections } from "../nbd/connections.ts";
import { nbdFacts, nbdIndexes, nodeOf } from "./kernel_facts.ts";
import { BLOCK_BYTES, KERNEL_FLAGS, LONG_ANSWER_SECONDS } from "./settings.ts";
import type { SocketPairs } from "./socket_pairs.ts";

/** Each device occupies a thread of the runtime, which has 32 in all. */
const MOST_DEVICES = 24;
const START_POLL_MS = 5;
const START_TIMEOUT_MS = 5000;

let devices = 0;

/** A device that was created by ioctl. When its tapdisk dies, its users get errors. */
class IoctlDevice implements BlockDevice {
  readonly kind = "nbd";
  readonly outlives = false;
  readonly node: string;
  readonly #host: DeviceHost;
  readonly #index: number;
  /** Descriptor of the device; -1 when it has ended. */
  #fd: number;
  readonly #connections: NbdConnections;
  #ended: (() => void) | null = null;

  /** @param fd Descriptor of the device, which is set up. */
  constructor(host: DeviceHost, { index, fd }: { index: number; fd: number }) {
    this.#host = host;
    this.#index = index;
    this.#fd = fd;
    this.node = nodeOf(index);
    this.#connections = new NbdConnections(host.scheduler, host.vbd);
  }

  /** Starts the device. It is ready when the kernel shows its size. */
  start(pairs: SocketPairs, done: Done): void {
    const { scheduler, vbd } = this.#host;
    devices++;
    vbd.meters.show(this.#connections.meter, { of: "blktap", minor: vbd.minor });
    pairs.serve(this.#connections);
    nbdDoIt(this.#fd).then(() => scheduler.addTimer(0, () => this.#end()));
    this.#awaitSize(scheduler.nowMs() + START_TIMEOUT_MS, done);
  }

  #awaitSize(untilMs: number, done: Done): void {
    const { scheduler } = this.#host;
    const facts = nbdFacts(this.#index);
    if (facts?.isConnected === true && facts.sizeBytes > 0) return done(null);
    if (this.#fd >= 0 && scheduler.nowMs() < untilMs) {
      return void scheduler.addTimer(START_POLL_MS, () => this.#awaitSize(untilMs, done));
    }
    this.abandon();
    done(new SystemError(Errno.EIO, `Cannot start ${this.node} (the kernel's log says why)`));
  }

  /** The kernel has ended the device. */
  #end(): void {
    if (this.#fd < 0) return;
    devices--;
    this.#hangUp();
    nbdClearSock(this.#fd);
    const { scheduler, log } = this.#host;
    scheduler.settle(closeAside(this.#fd), () => {
      if (this.#ended === null) log.warn(`${this.node} was disconnected`);
      else this.#ended();
    });
    this.#fd = -1;
  }

  #hangUp(): void {
    this.#connections.meter.hide();
    this.#connections.close();
  }

  resized(): boolean {
    if (this.#fd < 0) return true;
    const { scheduler, vbd, log } = this.#host;
    const blocks = vbd.sectors * SECTOR_BYTES / BLOCK_BYTES;
    scheduler.settle(nbdSetBlocks(this.#fd, blocks), (changed) => {
      if (!changed) log.error(`Cannot change the size of ${this.node}`);
    });
    return true;
  }

  detach(done: Done): void {
    if (this.#fd < 0) return done(null);
    const user = userOf(this.node);
    if (user !== "") return done(cannotTakeAway(this.node, Errno.EBUSY, user));
    this.#ended = () => done(null);
    this.#host.scheduler.settle(nbdSayDisconnect(this.#fd), () => this.#hangUp());
  }

  abandon(): void {
    this.#ended ??= () => {};
    this.#hangUp();
  }
}

/** Sets up the first free device. Throws `SystemError`. */
export function setUpIoctlDevice(
  host: DeviceHost,
  pairs: SocketPairs,
): IoctlDevice {
  if (devices >= MOST_DEVICES) {
    const what = `Cannot make more than ${MOST_DEVICES} nbd devices in one process by ioctl`;
    throw new SystemError(Errno.EUSERS, what);
  }
  let errno: number = Errno.ENODEV;
  for (const index of nbdIndexes()) {
    const facts = nbdFacts(index);
    if (facts === null || facts.isConnected || facts.sizeBytes > 0) continue;
    const fd = openFile(nodeOf(index), O_RDONLY);
    errno = setUp(fd, host, pairs);
    if (errno === 0) return new IoctlDevice(host, { index, fd });
    void closeAside(fd);
  }
  const why = errno === Errno.ENODEV ? "all are in use" : errnoName(errno);
  throw new SystemError(errno, `Cannot set an nbd device up (${why})`);
}

function setUp(fd: number, { vbd }: DeviceHost, pairs: SocketPairs): number {
  return nbdSetUp(fd, {
    blockSizeBytes: BLOCK_BYTES,
    blocks: vbd.sectors * SECTOR_BYTES / BLOCK_BYTES,
    serverFlags: describeExport(vbd).flags & KERNEL_FLAGS,
    timeoutSeconds: LONG_ANSWER_SECONDS,
    sockets: pairs.kernelEnds,
  });
}
