import { Errno, SystemError } from "../../../ffi/errno.ts";
import { isAlive } from "../../../ffi/process.ts";
import {
  type DeviceInfo,
  UBLK_ANY_DEVICE,
  UBLK_F_USER_RECOVERY,
  UBLK_F_USER_RECOVERY_REISSUE,
  UBLK_S_DEV_DEAD,
} from "../../../ffi/ublk.ts";
import { sharedUringLoop } from "../../queue/uring_loop.ts";
import type { Attached, DeviceHost } from "../block_device.ts";
import { waitForNode } from "../device_nodes.ts";
import { UblkControl } from "./control.ts";
import { diskParameters } from "./disk_parameters.ts";
import type { UblkHost } from "./host.ts";
import { DEPTH, MOST_BYTES, QUEUES } from "./limits.ts";
import { devicesWithoutDisk, numberOfNode } from "./node.ts";
import { askUnused } from "./removal.ts";
import { DeviceTakeOver, openQueues } from "./take_over.ts";
import { UblkDevice } from "./ublk_device.ts";

/** The steps from a VBD to a block device with a node. */
class Attachment {
  readonly #host: UblkHost;
  readonly #done: Attached;

  constructor(host: UblkHost, done: Attached) {
    this.#host = host;
    this.#done = done;
  }

  /** Fails; the kernel has no device of this attachment. */
  #fail(errno: number, what: string): void {
    this.#host.control.close();
    this.#done(new SystemError(errno, what), null);
  }

  /** Fails after the device was created: removes it first. */
  #giveUp(device: UblkDevice, errno: number, what: string): void {
    device.discard(() => this.#done(new SystemError(errno, what), null));
  }

  // ---- a new device -----------------------------------------------------------------------

  /** @param number Number of the device; `UBLK_ANY_DEVICE` for any. */
  make(number: number): void {
    this.#sweep(devicesWithoutDisk(), () => this.#add(number));
  }

  /**
   * Removes devices without a disk, which tapdisks left that died while they made or ended them.
   */
  #sweep([number, ...others]: number[], next: () => void): void {
    if (number === undefined) return next();
    const { control, log } = this.#host;
    const goOn = (): void => this.#sweep(others, next);
    control.info(number, (result, { state, makerPid }) => {
      if (result < 0 || state !== UBLK_S_DEV_DEAD || makerPid === 0 || isAlive(makerPid)) {
        return goOn();
      }
      askUnused(control, number, (unused) => {
        if (unused < 0) return goOn();
        log.info(`Removing ublk device ${number}, which process ${makerPid} left`);
        control.remove(number, goOn);
      });
    });
  }

  #add(number: number): void {
    const { control, vbd } = this.#host;
    const wanted = {
      queues: QUEUES,
      depth: DEPTH,
      mostBytes: MOST_BYTES,
      device: number,
      flags: UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE,
      makerPid: Deno.pid,
    };
    control.add(wanted, (result, info) => {
      // Another process has taken the number.
      if (result === -Errno.EEXIST && number !== UBLK_ANY_DEVICE) return this.#add(UBLK_ANY_DEVICE);
      if (result < 0) return this.#fail(-result, "Cannot add a ublk device");
      const device = new UblkDevice(this.#host, info);
      control.setParameters(info.device, diskParameters(vbd), (set) => {
        if (set < 0) this.#giveUp(device, -set, `Cannot set the parameters of ${device.node}`);
        else this.#start(device, info);
      });
    });
  }

  #start(device: UblkDevice, info: DeviceInfo): void {
    const give = (errno: number): void =>
      this.#giveUp(device, errno, `Cannot start ${device.node}`);
    openQueues(
      this.#host,
      device,
      info,
      give,
      () =>
        this.#host.control.start(device.number, (result) => {
          if (result < 0) give(-result);
          else this.#finish(device);
        }),
    );
  }

  #finish(device: UblkDevice): void {
    waitForNode(this.#host.scheduler, device.node, (missing) => {
      if (missing !== null) {
        this.#giveUp(device, missing.errno, `Cannot find ${device.node}, which was made`);
      } else this.#done(null, device);
    });
  }

  // ---- a device that was left --------------------------------------------------------------

  recover(number: number): void {
    const device = new UblkDevice(this.#host, { device: number, flags: UBLK_F_USER_RECOVERY });
    new DeviceTakeOver(this.#host, device).recover((error) => {
      if (error === null) return this.#finish(device);
      this.#host.control.close();
      this.#done(error, null);
    });
  }

  /** A device of a process that hands it over, and serves it as yet. */
  adopt(number: number): void {
    const device = new UblkDevice(this.#host, { device: number, flags: UBLK_F_USER_RECOVERY });
    new DeviceTakeOver(this.#host, device).look((info) => {
      device.await(info);
      this.#done(null, device);
    }, (error) => {
      this.#host.control.close();
      this.#done(error, null);
    });
  }
}

/** What is wanted of `attachUblk`. */
export interface Attaching {
  /** Node of the device to take over; null for a new device. */
  readonly recover: string | null;
  /** Whether the process that serves that device hands it over. */
  readonly adopt?: boolean;
  /** Node that a new device should have. */
  readonly wanted?: string;
}

/** Creates a block device for a VBD, or takes one over; see `DeviceMaker.attach`. */
export function attachUblk(
  host: DeviceHost,
  { recover, adopt = false, wanted }: Attaching,
  done: Attached,
): void {
  const left = recover === null ? UBLK_ANY_DEVICE : numberOfNode(recover);
  if (left < 0) {
    const what = `Cannot take over ${recover} as a ublk device`;
    return done(new SystemError(Errno.EINVAL, what), null);
  }
  const uring = sharedUringLoop(host.scheduler);
  if (!uring.hasLongCommands) {
    const what = "Cannot make a ublk device (this kernel's io_uring has no long entries)";
    return done(new SystemError(Errno.EOPNOTSUPP, what), null);
  }
  const control = new UblkControl(uring);
  const attachment = new Attachment({ ...host, uring, control }, done);
  const number = wanted === undefined ? -1 : numberOfNode(wanted);
  control.askFeatures(() => {
    if (adopt) attachment.adopt(left);
    else if (recover !== null) attachment.recover(left);
    else attachment.make(number < 0 ? UBLK_ANY_DEVICE : number);
  });
}
