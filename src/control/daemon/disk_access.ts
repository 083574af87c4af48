import { type Done, Errno, SystemError, systemError } from "../../../ffi/errno.ts";
import { canOpenExclusively } from "../../../ffi/files.ts";
import { becomeIoFlusher } from "../../../ffi/process.ts";
import type {
  Attached,
  BlockDevice,
  DeviceHost,
  DeviceMaker,
} from "../../frontend/block_device.ts";
import { userOf } from "../../frontend/device_users.ts";
import { GuestRings } from "../../frontend/xenblkif/guest_rings.ts";
import type { ProcessorClock } from "../../frontend/xenblkif/polling.ts";
import type { Xen } from "../../../ffi/xen.ts";
import type { VbdStatistics } from "../../vbd/statistics.ts";
import type { Vbd } from "../../vbd/vbd.ts";
import { ringJournalPath } from "../paths.ts";
import type { UsersHandover } from "../../frontend/users_handover.ts";
import type { ServedExport, ServeRequest } from "../../frontend/nbd/ports.ts";
import { listenText } from "../../frontend/nbd/listen_text.ts";
import type { DeviceChoice } from "../protocol/open_request.ts";
import type { UnserveRequest } from "../protocol/serve.ts";

/** Serves a disk over the network. */
export interface NetworkAccess {
  /** Serves it; returns the request with the port that was chosen. Throws `SystemError`. */
  serve(request: ServeRequest): ServeRequest;
  /** Ends what was chosen; returns how many exports there were. */
  unserve(chosen: UnserveRequest): number;
  /** Where it is served. */
  exports(): ServedExport[];
}

/** A frontend that needs no kernel, such as the NBD server; it exists while the image is open. */
export interface Frontend {
  /** How it serves the disk over the network, if it does. */
  readonly network?: NetworkAccess;
  /** Its clients, for another process to go on with them. */
  readonly handover: UsersHandover;
  /** Drops its clients and closes its socket. */
  close(): void;
}

/** Makes a frontend for a device whose image was opened. Throws `SystemError`. */
export type FrontendFactory = (vbd: Vbd) => Frontend;

/** How long the kernel may take to open a device; it may read from the device for that. */
const OPEN_TIMEOUT_MS = 5_000;

/** Which block device to make. */
export interface DevicePlan {
  /** The kinds to try, in this order. */
  readonly makers: readonly DeviceMaker[];
  /** Whether the open fails without a block device. */
  readonly required: boolean;
  /** The node to take over from a tapdisk that died; null for a new device. */
  readonly recover: string | null;
  /** Whether `recover` is that of a process that hands it over. */
  readonly adopt?: boolean;
  /** The node that a new device gets if it is free. */
  readonly wanted?: string;
}

/**
 * The kinds of block devices that a choice allows here. Throws `SystemError`: EOPNOTSUPP when the
 * kernel does not have the one that was asked for.
 */
export function makersFor(choice: DeviceChoice, all: readonly DeviceMaker[]): DeviceMaker[] {
  if (choice === "auto") return all.filter((maker) => maker.missing() === null);
  const makers = all.filter(({ kind }) => kind === choice);
  for (const maker of makers) {
    const why = maker.missing();
    if (why === null) continue;
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot make a ${choice} device (${why})`);
  }
  return makers;
}

/** The statistics of a device. */
export interface DeviceStatistics extends VbdStatistics {
  /** Where it is served over TCP. */
  exports: ServedExport[];
  /** The node of its block device; null without one. */
  node: string | null;
}

/** The shortest time between two checks for users of a device whose new size is not visible yet. */
const USER_CHECK_MS = 1000;
/** A check reads all of /proc. The time between two is this many times the time that one takes. */
const USER_CHECK_RATIO = 20;

/** What this needs of its process. */
export interface DiskAccessHost extends DeviceHost {
  /** Runs a job when no exclusive command of the device runs. */
  runExclusive(job: (finished: () => void) => void): void;
  /** Called when the block device was made again without a command; it may have another node. */
  remade(): void;
  readonly xen: Xen;
  readonly processors: ProcessorClock;
}

/** How users reach one open disk: its frontends and its block device. */
export class DiskAccess {
  readonly #host: DiskAccessHost;
  /** The rings of guests. */
  readonly rings: GuestRings;
  #userTimer = 0;
  #frontends: Frontend[] = [];
  #device: BlockDevice | null = null;
  /** The maker of the block device. */
  #maker: DeviceMaker | null = null;

  constructor(host: DiskAccessHost) {
    this.#host = host;
    this.rings = new GuestRings(host, ringJournalPath);
  }

  /** Serves the disk over the network. Throws `SystemError`: EINVAL while it is not open. */
  get #network(): NetworkAccess {
    for (const { network } of this.#frontends) if (network !== undefined) return network;
    const what = `Cannot serve minor ${this.#host.vbd.minor} (it has no image)`;
    throw new SystemError(Errno.EINVAL, what);
  }

  /** Serves the disk over TCP. Throws `SystemError`. */
  serve(request: ServeRequest): ServeRequest {
    const { log, vbd } = this.#host;
    const served = this.#network.serve(request);
    const where = listenText(served.addresses, served.port);
    log.info(`Minor ${vbd.minor} is served on ${where}, named ${JSON.stringify(served.name)}`);
    return served;
  }

  /** Ends exports of the disk over TCP. Throws `SystemError`: ENOENT when there is none of these. */
  unserve(chosen: UnserveRequest): void {
    const { log, vbd } = this.#host;
    if (this.#network.unserve(chosen) === 0) {
      const what = `Cannot stop serving minor ${vbd.minor}`;
      throw new SystemError(Errno.ENOENT, `${what} (it is not served there)`);
    }
    log.info(`Minor ${vbd.minor} is served no more on ${chosen.at ?? "TCP"}`);
  }

  /** Where the disk is served over the network. */
  get exports(): ServedExport[] {
    return this.#frontends.flatMap(({ network }) => network?.exports() ?? []);
  }

  /** The clients of its frontends, for another process to go on with them. */
  get handovers(): UsersHandover[] {
    const ofDevice = this.#device?.handover;
    const ofFrontends = this.#frontends.map(({ handover }) => handover);
    return ofDevice === undefined ? ofFrontends : [...ofFrontends, ofDevice];
  }

  /** Whether there is a block device with which no other process can go on. */
  get isDeviceBound(): boolean {
    return this.#device !== null &&
      (this.#device.gone === true || this.#device.handover === undefined);
  }

  /** The block device's node; null without one. */
  get node(): string | null {
    return this.#device?.gone ? null : this.#device?.node ?? null;
  }

  /** The block device's kind; "none" without one. */
  get kind(): DeviceChoice {
    return this.#device?.kind ?? "none";
  }

  /** Whether the block device waits for another tapdisk when this one is killed. */
  get outlives(): boolean {
    return this.#device?.outlives ?? false;
  }

  /** Opens the frontends and the block device; on an error none stays open. */
  open(factories: readonly FrontendFactory[], plan: DevicePlan, done: Done): void {
    try {
      for (const factory of factories) this.#frontends.push(factory(this.#host.vbd));
    } catch (error) {
      this.#closeFrontends();
      return done(systemError(error, `Cannot serve minor ${this.#host.vbd.minor}`));
    }
    this.#attach(plan, 0, (error) => {
      if (error !== null) this.#closeFrontends();
      done(error);
    });
  }

  #attach(plan: DevicePlan, index: number, done: Done): void {
    const { makers, required, recover, wanted } = plan;
    const { log, vbd } = this.#host;
    if (index === makers.length) return done(null);
    if (!becomeIoFlusher()) {
      log.warn(`Minor ${vbd.minor} may hang when memory is short (no right to PR_SET_IO_FLUSHER)`);
    }
    const attached: Attached = (error, device) => {
      if (error === null) {
        this.#device = device;
        this.#maker = makers[index];
        log.info(`Minor ${vbd.minor} is ${device.node}`);
        return done(null);
      }
      if (required) return done(error);
      log.warn(error.message);
      this.#attach(plan, index + 1, done);
    };
    const maker = makers[index];
    if (plan.adopt !== true) return maker.attach(this.#host, recover, attached, wanted);
    if (maker.adopt !== undefined && recover !== null) {
      return maker.adopt(this.#host, recover, attached);
    }
    const why = `minor ${vbd.minor} has no ${maker.kind} device to go on with`;
    done(new SystemError(Errno.ENODEV, `Cannot take over (${why})`));
  }

  /**
   * The disk has another size. A block device whose size the kernel cannot change is made again: at
   * once if it is not in use, else when its last user has closed it.
   */
  resized(done: () => void): void {
    const device = this.#device;
    if (device === null || device.resized()) return done();
    this.#remake(device, (used) => {
      if (used !== null) {
        const { log, vbd } = this.#host;
        const size = `${device.node} keeps its size as long as it is in use`;
        const then = `it is made again with ${vbd.sectors} sectors when nobody uses it any more`;
        log.warn(`${size}; ${then}: ${used.message}`);
        this.#checkUsersLater(device, USER_CHECK_MS);
      }
      done();
    });
  }

  /**
   * The disk has grown without a command: as `resized`, when no command runs on it. One that is paused or
   * closed then is left alone: its new size is noticed when it is opened again.
   */
  grown(done: () => void): void {
    this.#host.runExclusive((finished) => {
      if (this.#host.vbd.phase !== "open") return finished();
      this.resized(() => {
        done();
        finished();
      });
    });
  }

  /** Waits for the last user of a device whose new size is not visible yet. */
  #checkUsersLater(device: BlockDevice, delayMs: number): void {
    const { scheduler } = this.#host;
    scheduler.cancelTimer(this.#userTimer);
    this.#userTimer = scheduler.addTimer(delayMs, () => {
      if (this.#device !== device || device.gone) return;
      const startMs = scheduler.nowMs();
      const user = userOf(device.node);
      const nextMs = Math.max(USER_CHECK_MS, USER_CHECK_RATIO * (scheduler.nowMs() - startMs));
      if (user !== "") return this.#checkUsersLater(device, nextMs);
      this.#host.runExclusive((finished) => this.#remakeExclusively(device, nextMs, finished));
    });
  }

  #remakeExclusively(device: BlockDevice, nextMs: number, finished: () => void): void {
    // The device may have been closed or paused meanwhile.
    if (this.#device !== device || device.gone) return finished();
    if (this.#host.vbd.phase !== "open") {
      this.#checkUsersLater(device, nextMs);
      return finished();
    }
    this.#remake(device, (used) => {
      if (used !== null) this.#checkUsersLater(device, nextMs);
      else this.#host.remade();
      finished();
    });
  }

  /** Makes a device again. While it is in use, the device stays and this calls back with an error. */
  #remake(device: BlockDevice, done: Done): void {
    const maker = this.#maker;
    if (maker === null) return done(null);
    this.checkUnused((used) => {
      if (used !== null) return done(used);
      this.detachDevice((error) => {
        if (error !== null) return done(error);
        const plan = { makers: [maker], required: true, recover: null, wanted: device.node };
        this.#attach(plan, 0, (failure) => {
          const { log, vbd } = this.#host;
          if (failure !== null) {
            const hint = "close it and open it again with tap-ctl to get one";
            log.error(`Minor ${vbd.minor} has no block device (${hint}): ${failure.message}`);
          }
          done(null);
        });
      });
    });
  }

  /** Calls back with EBUSY when the block device is mounted, or otherwise in use. */
  checkUnused(done: Done): void {
    const { node } = this;
    if (node === null) return done(null);
    const { scheduler, vbd } = this.#host;
    let answered = false;
    const answer = (errno: number, hint: string): void => {
      if (answered) return;
      answered = true;
      scheduler.cancelTimer(timer);
      done(
        errno === 0 ? null : new SystemError(errno, `Cannot take ${node} away (${hint})`),
      );
    };
    const timer = scheduler.addTimer(OPEN_TIMEOUT_MS, () => {
      const why = vbd.phase === "open" ? "its disk does not answer" : "its requests are held back";
      answer(Errno.ETIMEDOUT, `${why}; 'tap-ctl close --force' drops its users`);
    });
    // An exclusive open fails for a mounted filesystem, a volume group and swap alike.
    scheduler.settle(
      canOpenExclusively(node),
      (unused) => answer(unused ? 0 : Errno.EBUSY, "it is mounted, or another device is on it"),
    );
  }

  /** Removes the block device. Its requests are still answered meanwhile. */
  detachDevice(done: Done): void {
    const device = this.#device;
    if (device === null) return done(null);
    device.detach((error) => {
      if (error !== null) return done(error);
      this.#device = null;
      done(null);
    });
  }

  /** Removes the block device at once. Its requests are not answered any more. */
  abandonDevice(): void {
    this.#device?.abandon();
    this.#device = null;
  }

  /** Closes what is still open. */
  close(): void {
    this.abandonDevice();
    this.rings.close();
    this.#closeFrontends();
  }

  #closeFrontends(): void {
    for (const frontend of this.#frontends) frontend.close();
    this.#frontends = [];
  }
}
