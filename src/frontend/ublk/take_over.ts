import { type Done, Errno, SystemError } from "../../../ffi/errno.ts";
import { isAlive } from "../../../ffi/process.ts";
import { type DeviceInfo, UBLK_S_DEV_DEAD } from "../../../ffi/ublk.ts";
import { waitForNode } from "../device_nodes.ts";
import type { UblkHost } from "./host.ts";
import { whyNotServed } from "./limits.ts";
import { sectorsOfNode } from "./node.ts";

/**
 * How long to wait for a killed tapdisk to end. The kernel frees its memory first. Kernels before 6.7 check
 * for dead servers every five seconds only; those from 6.7 notice after up to 30 s that a server has died which
 * had all requests of a queue.
 */
const RECOVERY_TIMEOUT_MS = 45_000;
const RECOVERY_POLL_MS = 50;
/** The same while users wait for the end of a process that hands its device over. */
const HANDOVER_POLL_MS = 2;
/** After how long the next try comes when a step has failed. */
const AGAIN_MS = 1_000;

/** A device whose server has ended, or is about to. */
export interface LeftDevice {
  readonly node: string;
  readonly number: number;
  /** Whether it is being removed. */
  readonly isStopping: boolean;
  /** Opens its own file, and fetches requests on all queues. Throws `SystemError`. */
  openQueues(info: DeviceInfo): void;
  /** Tells the kernel the new size. */
  resized(): void;
  /** Stops it even if it is in use. */
  discard(done: Done): void;
}

/** The steps from a device whose server has ended, or is about to, to one that this process serves. */
export class DeviceTakeOver {
  readonly #host: UblkHost;
  readonly #device: LeftDevice;
  readonly #what: string;
  readonly #startMs: number;

  constructor(host: UblkHost, device: LeftDevice) {
    this.#host = host;
    this.#device = device;
    this.#what = `Cannot take over ${device.node}`;
    this.#startMs = host.scheduler.nowMs();
  }

  #error(errno: number, hint = ""): SystemError {
    return new SystemError(errno, hint === "" ? this.#what : `${this.#what} (${hint})`);
  }

  /** Gets the properties of the device, and checks that it can be served. */
  look(found: (info: DeviceInfo) => void, failed: (error: SystemError) => void): void {
    const { control, vbd } = this.#host;
    control.info(this.#device.number, (result, info) => {
      if (result < 0) return failed(this.#error(-result));
      if (info.state === UBLK_S_DEV_DEAD) {
        return failed(this.#error(Errno.ENODEV, "the kernel stopped it when its tapdisk died"));
      }
      const refusal = whyNotServed(info, vbd.requests.freeSlots);
      if (refusal !== "") return failed(this.#error(Errno.EINVAL, refusal));
      found(info);
    });
  }

  /**
   * Takes over from a process that has died.
   *
   * @param done An error leaves the device as it is.
   */
  recover(done: Done): void {
    this.look((info) => {
      this.#host.control.startRecovery(this.#device.number, (started) => {
        if (started === 0) return this.#serve(info, done);
        if (this.#elapsedMs < RECOVERY_TIMEOUT_MS) {
          return void this.#host.scheduler.addTimer(RECOVERY_POLL_MS, () => this.recover(done));
        }
        const hint = isAlive(info.pid) ? `process ${info.pid} serves it` : "";
        done(this.#error(-started, hint));
      });
    }, done);
  }

  /**
   * Takes over from a process that is about to end, and whose users wait. Tries until the device is served, or
   * is gone.
   */
  follow(info: DeviceInfo, done: Done): void {
    const { control, scheduler, log } = this.#host;
    if (this.#device.isStopping) return;
    control.startRecovery(this.#device.number, (started) => {
      if (started === 0) return this.#serveAtLast(info, done);
      if (started === -Errno.ENODEV) return done(this.#error(Errno.ENODEV));
      const isLate = this.#elapsedMs > RECOVERY_TIMEOUT_MS;
      if (isLate) log.error(`${this.#error(-started, `process ${info.pid} has it`).message}`);
      scheduler.addTimer(isLate ? AGAIN_MS : HANDOVER_POLL_MS, () => this.follow(info, done));
    });
  }

  #serveAtLast(info: DeviceInfo, done: Done): void {
    const { log, scheduler } = this.#host;
    if (this.#device.isStopping) return;
    this.#serve(info, (error) => {
      if (error === null || this.#device.isStopping) return done(error);
      log.error(error.message);
      scheduler.addTimer(AGAIN_MS, () => this.#serveAtLast(info, done));
    });
  }

  get #elapsedMs(): number {
    return this.#host.scheduler.nowMs() - this.#startMs;
  }

  /** After an error before the end the device keeps waiting for a server: the kernel has none of its commands. */
  #serve(info: DeviceInfo, done: Done): void {
    const { control, log, vbd } = this.#host;
    const device = this.#device;
    openQueues(
      this.#host,
      device,
      info,
      (errno) => done(this.#error(errno)),
      () =>
        control.endRecovery(device.number, (result) => {
          if (result < 0) return device.discard(() => done(this.#error(-result)));
          const waited = `${this.#elapsedMs.toFixed(1)} ms`;
          log.info(`Took ${device.node} over from process ${info.pid} within ${waited}`);
          if (sectorsOfNode(device.node) !== vbd.sectors) device.resized();
          done(null);
        }),
    );
  }
}

/** Opens the queues when the device's own file exists, which udev creates after the device. */
export function openQueues(
  host: UblkHost,
  device: LeftDevice,
  info: DeviceInfo,
  failed: (errno: number) => void,
  next: () => void,
): void {
  waitForNode(host.scheduler, `/dev/ublkc${device.number}`, (missing) => {
    if (missing !== null) return failed(missing.errno);
    try {
      device.openQueues(info);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      return failed(error.errno);
    }
    next();
  });
}
