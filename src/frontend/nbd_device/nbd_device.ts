/**
 * `src/frontend/nbd_device` serves block devices of the kernel's NBD client, /dev/nbdN. The kernel
 * has one end of a pair of sockets, and `src/frontend/nbd` serves the other. Devices are created by
 * netlink (`netlink_device.ts`), or by ioctl on kernels before 4.12 (`ioctl_device.ts`).
 *
 * It must not open or close a node, or call the driver, on the thread that serves the device: such
 * a call may wait for requests that only this thread answers. Other threads make these calls.
 *
 * @module
 */
import { Errno, messageOf, SystemError, systemError } from "../../../ffi/errno.ts";
import { nbdConnect, type NbdConnected, nbdDisconnect } from "../../../ffi/nbd_netlink.ts";
import { SECTOR_BYTES } from "../../driver/driver.ts";
import type { Attached, DeviceHost, DeviceMaker } from "../block_device.ts";
import { waitForNode } from "../device_nodes.ts";
import { describeExport } from "../nbd/connections.ts";
import { setUpIoctlDevice } from "./ioctl_device.ts";
import {
  indexOf,
  missingDriver,
  type NbdFacts,
  nbdFacts,
  nodeOf,
  setIoTimeout,
} from "./kernel_facts.ts";
import { backendOf, NetlinkDevice } from "./netlink_device.ts";
import {
  BLOCK_BYTES,
  canBeTakenOver,
  DEAD_CONNECTION_SECONDS,
  IO_TIMEOUT_MS,
  isHeldForTakeover,
  KERNEL_FLAGS,
  LONG_ANSWER_SECONDS,
  type NbdDeviceSettings,
  NO_ANSWER_SECONDS,
} from "./settings.ts";
import { SocketPairs } from "./socket_pairs.ts";

const CANNOT_MAKE = "Cannot make an nbd device";

/** Creates devices of the kernel's nbd driver. */
export class NbdDeviceMaker implements DeviceMaker {
  readonly kind = "nbd";
  readonly #settings: () => NbdDeviceSettings;

  /** @param settings Called for each device. */
  constructor(settings: () => NbdDeviceSettings) {
    this.#settings = settings;
  }

  missing(): string | null {
    return missingDriver();
  }

  attach(host: DeviceHost, recover: string | null, done: Attached): void {
    try {
      if (recover === null) this.#make(host, done);
      else this.#takeOver(host, recover, done);
    } catch (error) {
      done(systemError(error, CANNOT_MAKE), null);
    }
  }

  #make(host: DeviceHost, done: Attached): void {
    const settings = this.#settings();
    const { scheduler, vbd } = host;
    const pairs = new SocketPairs(vbd.requests, settings.connections);
    if (settings.interface === "ioctl") return makeByIoctl(host, pairs, done);
    scheduler.settle(connect(host, pairs, settings), (answer) => {
      if (!answer.known && settings.interface === "auto") return makeByIoctl(host, pairs, done);
      if (answer.errno !== 0) {
        pairs.discard();
        const what = `Cannot connect an nbd device for minor ${vbd.minor}`;
        return done(new SystemError(answer.errno, what), null);
      }
      const outlives = canBeTakenOver(settings.connections);
      const device = new NetlinkDevice(host, answer.index, { outlives });
      device.serve(pairs);
      if (outlives) lookOften(host, answer.index);
      awaitNode(host, device, done);
    });
  }

  adopt(host: DeviceHost, node: string, done: Attached): void {
    const index = indexOf(node);
    const facts = index === null ? null : nbdFacts(index);
    try {
      if (index === null || facts === null || !facts.isConnected) throw nothingLeft(node);
      refuseOthers(node, facts, host);
    } catch (error) {
      return done(systemError(error, `Cannot go on with ${node}`), null);
    }
    const outlives = isHeldForTakeover(facts);
    const device = new NetlinkDevice(host, index, { outlives });
    device.count();
    done(null, device);
  }

  #takeOver(host: DeviceHost, node: string, done: Attached): void {
    const { scheduler, vbd } = host;
    const index = indexOf(node);
    const facts = index === null ? null : nbdFacts(index);
    if (index === null || facts === null || !facts.isConnected) throw nothingLeft(node);
    refuseOthers(node, facts, host);
    if (!isHeldForTakeover(facts)) {
      // The kernel would not send the requests in flight again. Disconnecting fails them.
      return scheduler.settle(nbdDisconnect(index), () => done(nothingLeft(node), null));
    }
    const device = new NetlinkDevice(host, index, { outlives: true });
    device.join((error) => {
      if (error !== null) return done(error, null);
      if (facts.sizeBytes !== vbd.sectors * SECTOR_BYTES) device.resized();
      done(null, device);
    });
  }
}

function nothingLeft(node: string): SystemError {
  return new SystemError(Errno.ENODEV, `Cannot take ${node} over (it has ended)`);
}

/** Refuses a device that another program created, or whose users know a larger disk. */
function refuseOthers(node: string, facts: NbdFacts, { vbd }: DeviceHost): void {
  const backend = backendOf(vbd.minor);
  if (facts.backend !== null && facts.backend !== backend) {
    const hint = `its backend is '${facts.backend}', not '${backend}'`;
    throw new SystemError(Errno.ENODEV, `Cannot take ${node} over (${hint})`);
  }
  const sizeBytes = vbd.sectors * SECTOR_BYTES;
  if (facts.sizeBytes <= sizeBytes) return;
  const hint = `it has ${facts.sizeBytes} bytes, the disk ${sizeBytes}`;
  throw new SystemError(Errno.EINVAL, `Cannot take ${node} over (${hint})`);
}

function connect(
  { vbd }: DeviceHost,
  { kernelEnds }: SocketPairs,
  { connections }: NbdDeviceSettings,
): Promise<NbdConnected> {
  const outlives = canBeTakenOver(connections);
  const { sizeBytes, flags } = describeExport(vbd);
  return nbdConnect({
    sizeBytes,
    blockSizeBytes: BLOCK_BYTES,
    serverFlags: flags & KERNEL_FLAGS,
    timeoutSeconds: outlives ? NO_ANSWER_SECONDS : LONG_ANSWER_SECONDS,
    deadConnectionSeconds: outlives ? DEAD_CONNECTION_SECONDS : 0,
    sockets: [...kernelEnds],
    backend: backendOf(vbd.minor),
  });
}

function lookOften({ log }: DeviceHost, index: number): void {
  setIoTimeout(index, IO_TIMEOUT_MS).catch((error) => {
    log.warn(`A takeover of ${nodeOf(index)} takes half a minute: ${messageOf(error)}`);
  });
}

function makeByIoctl(host: DeviceHost, pairs: SocketPairs, done: Attached): void {
  try {
    const device = setUpIoctlDevice(host, pairs);
    device.start(pairs, (error) => error === null ? done(null, device) : done(error, null));
  } catch (error) {
    pairs.discard();
    done(systemError(error, CANNOT_MAKE), null);
  }
}

/** Waits for the node, which devtmpfs or udev creates. */
function awaitNode(host: DeviceHost, device: NetlinkDevice, done: Attached): void {
  waitForNode(host.scheduler, device.node, (missing) => {
    if (missing === null) return done(null, device);
    device.abandon();
    const hint = "is devtmpfs mounted on /dev?";
    done(
      new SystemError(missing.errno, `The kernel made ${device.node}, but no node (${hint})`),
      null,
    );
  });
}

/** Reads the settings from the environment; `tap-ctl create --help` describes them. */
function settingsOfEnvironment(): NbdDeviceSettings {
  const chosen = Deno.env.get("BLKTAP_NBD_INTERFACE");
  const connections = Number(Deno.env.get("BLKTAP_NBD_CONNECTIONS") ?? 1);
  return {
    interface: chosen === "netlink" || chosen === "ioctl" ? chosen : "auto",
    connections: Number.isInteger(connections) && connections > 0 ? connections : 1,
  };
}

/** Devices of the kernel's nbd driver. */
export const nbdDeviceMaker: DeviceMaker = new NbdDeviceMaker(settingsOfEnvironment);
