import { type Done, type DoneWith, Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import { closeFile } from "../../../ffi/files.ts";
import { type GuestDevice, type GuestRing, nameOfGuest } from "../../frontend/xenblkif/guest.ts";
import type { Log } from "../../log/log.ts";
import { ownedBy } from "../../scheduler/scheduler.ts";
import {
  type LiveSnapshot,
  liveSnapshot,
  type LiveSnapshotOptions,
} from "../../vbd/live_snapshot.ts";
import type { RateLimits } from "../../vbd/rate_limits.ts";
import { factsOf } from "../../vbd/disk_facts.ts";
import { Vbd } from "../../vbd/vbd.ts";
import type { DiskKey } from "../../vhd/key.ts";
import { diskOfMinor } from "../minors/parent_disk.ts";
import { touchEnospcFile } from "../minors/enospc_file.ts";
import { holdMinor } from "../minors/minors.ts";
import type { DiskInfo } from "../protocol/disk_info.ts";
import type { ToldFacts } from "../protocol/explain.ts";
import { isChosen, type ServeRequest } from "../../frontend/nbd/ports.ts";
import { listenText } from "../../frontend/nbd/listen_text.ts";
import type { OpenRequest, ResumeRequest } from "../protocol/open_request.ts";
import type { UnserveRequest } from "../protocol/serve.ts";
import type { Actor } from "./actor.ts";
import { DeviceEvents } from "./device_events.ts";
import type { DeviceParts } from "./device_parts.ts";
import { DeviceRecord } from "./device_record.ts";
import type { DeviceServices } from "./device_services.ts";
import { planDevice } from "./device_plan.ts";
import { type DevicePlan, type DeviceStatistics, DiskAccess } from "./disk_access.ts";
import type { DeviceSummary } from "./device_summary.ts";
import { queueFor, type QueueKind } from "./queue_kind.ts";
import type { RemainingDevice } from "./remaining.ts";

/** An open request with the key that came with it. */
export interface KeyedRequest {
  readonly request: OpenRequest;
  /** The key of an encrypted image; the device wipes it when it is closed. */
  readonly key?: DiskKey;
  /** Whether the block device is that of a process that hands it over. */
  readonly adopt?: boolean;
  /** Of a disk that is paused there: the size that its users know. */
  readonly pausedSectors?: number;
}

const NO_DISK: DiskInfo = { sectors: 0, sectorSizeBytes: 0, info: 0 };

/** One device: its minor, its vbd, and how users reach the disk. */
export class Device {
  readonly minor: number;
  wasOpened = false;
  readonly #services: DeviceServices;
  readonly #log: Log;
  /** The descriptor that holds the minor. */
  readonly #hold: number;
  #vbd: Vbd;
  #access: DiskAccess;
  #queue: QueueKind = "auto";
  #disk: DiskInfo = NO_DISK;
  /** How the image was opened; null without one. */
  #request: OpenRequest | null = null;
  /** The key of its image, which the vbd wipes when the image is closed. */
  #key: DiskKey | undefined;
  /** The journal of a ring that a tapdisk before this one left, until this one has a ring. */
  #leftJournal: string | null = null;
  readonly #record: DeviceRecord;
  /** What the log is told of the device. */
  readonly events: DeviceEvents;
  /** Whether another process serves the disk as yet, and the record is its. */
  #isAwaited = false;

  /** Takes hold of a minor. Throws `SystemError`: ENOENT, EBUSY. */
  constructor(services: DeviceServices, minor: number) {
    this.minor = minor;
    this.#services = services;
    this.#log = services.log;
    this.#record = new DeviceRecord(minor, services.log);
    this.events = new DeviceEvents(minor, services.log, () => services.scheduler.nowMs());
    this.#hold = holdMinor(minor);
    try {
      this.#vbd = this.#vbdOn(this.#queue);
      this.#access = this.#accessTo(this.#vbd);
    } catch (error) {
      closeFile(this.#hold);
      throw error;
    }
  }

  #vbdOn(queue: QueueKind): Vbd {
    const vbd = new Vbd(this.#services.contextOf(queue), this.minor);
    vbd.whenFailed = () => this.#services.failed(this.minor);
    vbd.whenSecondaryChanged = () => this.#secondaryChanged();
    vbd.whenGrown = () => this.#grew(vbd);
    return vbd;
  }

  /** Another program has made the image larger. Users that come from now on see the new size. */
  #grew(vbd: Vbd): void {
    this.events.grown(vbd.name, vbd.sectors);
    this.#access.grown(() => {
      this.#disk = vbd.geometry;
      this.#recordDevice();
    });
  }

  #accessTo(vbd: Vbd): DiskAccess {
    const { scheduler, log, xen, processors } = this.#services;
    return new DiskAccess({
      ...{ log, vbd, xen, processors },
      scheduler: ownedBy(vbd, scheduler),
      runExclusive: (job) => this.#services.runExclusive(this.minor, job),
      remade: () => this.#recordDevice(),
    });
  }

  /** `type:/path` of the open image; empty without one. */
  get name(): string {
    return this.#vbd.name;
  }

  /** The node of the block device; null without one. */
  get node(): string | null {
    return this.#access.node;
  }

  /** The file of the log of changed blocks; null without one. */
  get changedBlocks(): string | null {
    return this.#vbd.changedBlocksLog;
  }

  /** The disk; all zeros without an image. */
  get disk(): DiskInfo {
    return this.#disk;
  }

  /** What it waits for just now, and why. */
  facts(tapdisk: number): ToldFacts {
    const nowMs = this.#services.scheduler.nowMs();
    const { queue } = this.#services.contextOf(this.#queue);
    return { ...factsOf(this.#vbd, queue, nowMs), tapdisk, ...this.events.facts(nowMs) };
  }

  get summary(): DeviceSummary {
    return { minor: this.minor, state: this.#vbd.state, name: this.name };
  }

  /** What is known of the device when it stays although the tapdisk was told to end. */
  get remaining(): RemainingDevice {
    const { node, outlives } = this.#access;
    return { minor: this.minor, name: this.name, node, outlives };
  }

  /** A line on the state of the device, and one on each of its requests. */
  report(): string[] {
    return this.#vbd.report();
  }

  statistics(): DeviceStatistics {
    return { ...this.#vbd.statistics(), exports: this.#access.exports, node: this.node };
  }

  /** Serves the disk over TCP; returns where. Throws `SystemError`. */
  serve(request: ServeRequest): string {
    const served = this.#access.serve(request);
    this.#noteServed((serve) => [...serve, served]);
    return listenText(served.addresses, served.port);
  }

  /** Ends exports of the disk over TCP. Throws `SystemError`: ENOENT when there is none of these. */
  unserve(chosen: UnserveRequest): void {
    this.#access.unserve(chosen);
    this.#noteServed((serve) => serve.filter((each) => !isChosen(each, chosen)));
  }

  /** Notes for a tapdisk that takes the device over where it is served. */
  #noteServed(change: (serve: readonly ServeRequest[]) => readonly ServeRequest[]): void {
    if (this.#request === null) return;
    this.#request = { ...this.#request, serve: change(this.#request.serve) };
    this.#recordDevice();
  }

  /** Its parts, for another process to go on with them. */
  get parts(): DeviceParts {
    return {
      vbd: this.#vbd,
      access: this.#access,
      request: this.#request,
      key: this.#key,
    };
  }

  /** Releases the minor and the memory. The image must be closed. */
  release(): void {
    closeFile(this.#hold);
    this.#vbd.destroy();
  }

  /**
   * Opens an image, its frontends and its block device. Throws `SystemError` when the request is
   * refused at once.
   *
   * @param done Called with the disk, or with an error; then nothing is open.
   * @returns A function that cancels the open while an image on a server is being opened.
   */
  open(keyed: KeyedRequest, done: DoneWith<DiskInfo>): () => void {
    const { request, key } = keyed;
    this.#isAwaited = keyed.adopt === true;
    if (this.name !== "") {
      const what =
        `Cannot open ${request.image} on minor ${this.minor} (${this.name} is open on it)`;
      throw new SystemError(Errno.EALREADY, what);
    }
    const plan = { ...this.#planDevice(request), adopt: keyed.adopt };
    this.#openImage(keyed, plan, (failure) => {
      if (failure !== null) return done(failure, null);
      this.#access.open(this.#services.frontends, plan, (error) => {
        if (error !== null) return this.#vbd.close(() => done(error, null));
        this.#request = request;
        this.wasOpened = true;
        this.#key = key;
        this.events.opened(request.image);
        this.#recordDevice();
        done(null, this.#disk);
      });
    });
    return () => this.#vbd.cancelOpening();
  }

  #planDevice(request: OpenRequest): DevicePlan {
    const { plan, leftJournal, isRecorded } = planDevice(
      request,
      this.minor,
      this.#services.makers,
    );
    this.#leftJournal = leftJournal;
    this.#record.isThere = isRecorded;
    return plan;
  }

  #openImage({ request, key, pausedSectors }: KeyedRequest, plan: DevicePlan, done: Done): void {
    const { image, readOnly, direct, localCache, requestTimeoutSeconds, limits } = request;
    const { retry: policy, standby } = request;
    const changedBlocks = request.changedBlocks ?? undefined;
    const secondary = request.secondary ?? undefined;
    const findParent = (): string | null => this.#findParent(request);
    const queue = queueFor(request, plan);
    if (this.#services.contextOf(queue) !== this.#services.contextOf(this.#queue)) {
      const vbd = this.#vbdOn(queue);
      this.#vbd.destroy();
      this.#vbd = vbd;
      this.#access = this.#accessTo(vbd);
      this.#queue = queue;
    }
    const timeoutMs = requestTimeoutSeconds * 1000;
    const retry = timeoutMs === 0 ? { policy } : { policy, timeoutMs };
    const vbd = this.#vbd;
    // A descriptor that was handed over has died with the tapdisk before, and users wait for the disk.
    // Another secondary image may have data of the disk.
    const mayLackSecondary = plan.recover !== null && secondary?.startsWith("nbd:") === true;
    const second = { secondary, standby, mayLackSecondary };
    const open = { readOnly, direct, localCache, key, retry, limits };
    const options = { ...open, ...second, changedBlocks, findParent };
    const opened: Done = (error) => {
      if (error === null) this.#disk = vbd.geometry;
      done(error);
    };
    if (pausedSectors === undefined) return vbd.openLater(image, options, opened);
    vbd.adoptPaused({ name: image, options, sectors: pausedSectors });
    opened(null);
  }

  /** What the disk does in a second at most. */
  get limits(): RateLimits {
    return this.#vbd.requests.limits;
  }

  /** Changes the limits of the open disk. Throws `SystemError`: EINVAL without an image. */
  limit(limits: RateLimits): void {
    if (this.#request === null) {
      throw new SystemError(Errno.EINVAL, `Cannot limit minor ${this.minor} (it has no image)`);
    }
    this.#vbd.requests.limit(limits);
    this.#request = { ...this.#request, limits };
    this.events.limited(this.name, limits);
    this.#recordDevice();
  }

  /**
   * The disk that is read below the image, by its minor. A device that resumes while nobody serves that
   * disk reads the image's own parent, which has the same data.
   */
  #findParent({ existingParent: minor }: OpenRequest): string | null {
    if (minor === null) return null;
    try {
      return diskOfMinor(minor);
    } catch (error) {
      if (this.#request === null) throw error;
      this.#log.warn(`${messageOf(error)}; ${this.name} is opened with its own parent`);
      return null;
    }
  }

  /** This process serves the disk now, and writes the record. Its users know so many sectors, or the same. */
  servedHere(knownSectors = Infinity): void {
    this.#isAwaited = false;
    this.#recordDevice();
    if (this.#vbd.sectors > knownSectors && this.#vbd.phase === "open") this.#grew(this.#vbd);
  }

  /** Records what another tapdisk needs to take the block device or the ring over. */
  #recordDevice(): void {
    if (this.#isAwaited) return;
    const { kind, rings } = this.#access;
    const node = this.#access.node ?? rings.journal ?? this.#leftJournal;
    if (this.#request === null || node === null) return this.#record.remove();
    const changed = { image: this.name, device: kind, node, encrypted: this.#key !== undefined };
    const { hasFailed, isFull } = this.#vbd.secondary;
    // What a mirror lacks that failed, it would lack for ever.
    const secondary = hasFailed ? null : this.#request.secondary;
    const full = isFull ? { full: true } : {};
    this.#record.write({ ...this.#request, ...changed, secondary, ...full });
  }

  /** The image became full, or its mirror failed: others must know, also if this tapdisk dies. */
  #secondaryChanged(): void {
    this.#recordDevice();
    if (!this.#vbd.secondary.isFull) return;
    try {
      touchEnospcFile(this.minor);
    } catch (error) {
      this.#log.warn(messageOf(error));
    }
  }

  /** Whether the ring of a guest's device is connected. */
  serves(guest: GuestDevice): boolean {
    return this.#access.rings.has(guest);
  }

  /** Serves a guest's ring. Throws `SystemError`: EINVAL without an image. */
  connectRing(guest: GuestRing): void {
    if (this.#request === null) {
      const why = `minor ${this.minor} has no image`;
      throw new SystemError(Errno.EINVAL, `Cannot connect ${nameOfGuest(guest)} (${why})`);
    }
    this.#access.rings.connect(guest);
    this.#leftJournal = null;
    this.#recordDevice();
  }

  /** Leaves a guest's ring. */
  disconnectRing(guest: GuestDevice): void {
    this.#access.rings.disconnect(guest);
    this.#leftJournal = null;
    this.#recordDevice();
  }

  /**
   * Closes the block device, the frontends and the image. Requests in flight are answered first,
   * unless `force` says to drop the clients. It fails with EBUSY, and the device runs on, when its
   * block device is in use.
   */
  close({ force }: { force: boolean }, done: Done): void {
    const vbd = this.#vbd;
    const closeImage = (): void => {
      this.#closeImage(done);
      if (force) vbd.hurry();
    };
    if (force) this.#access.close();
    this.#access.checkUnused((inUse) => {
      if (inUse !== null) return done(inUse);
      // The kernel reads from a block device before it takes it away; a stopped vbd does not answer.
      if (vbd.phase !== "open") return closeImage();
      this.#access.detachDevice((error) => {
        if (error !== null) return done(error);
        closeImage();
      });
    });
  }

  /** A forced close is to come: one that waits for a server ends at once. */
  hurryClose(): void {
    this.#vbd.hurry();
  }

  #closeImage(done: Done): void {
    const { name } = this;
    // A guest waits for an answer that does not come; an error would make its filesystem read-only.
    this.#access.rings.hold();
    this.#vbd.close((error) => {
      if (this.name !== "") {
        this.#access.rings.goOn();
        return done(error);
      }
      // Frontends send the last answers at the end of this turn.
      this.#services.scheduler.addTimer(0, () => {
        this.#access.close();
        this.#disk = NO_DISK;
        this.#request = null;
        this.#key = undefined;
        this.#leftJournal = null;
        this.#record.remove();
        this.events.closed(name);
        done(error);
      });
    });
  }

  /**
   * Holds back requests and closes the image files. When that fails or takes longer than
   * `timeoutMs`, the device runs on.
   *
   * @returns A function that cancels the pause, if it has not ended.
   */
  pause(
    { timeoutMs, by = null }: { timeoutMs: number; by?: Actor | null },
    done: Done,
  ): () => void {
    const vbd = this.#vbd;
    const ended = this.events.pausing(this.name, by, vbd.phase === "paused");
    vbd.pause((error) => {
      ended(error);
      done(error);
    }, timeoutMs);
    return () => vbd.cancelPause();
  }

  /**
   * Puts a new image on top of the running image.
   *
   * @returns A function that cancels the snapshot while requests are drained.
   */
  snapshot(
    options: LiveSnapshotOptions,
    done: DoneWith<LiveSnapshot>,
  ): () => void {
    const vbd = this.#vbd;
    const ended: DoneWith<LiveSnapshot> = (error, made) => {
      if (error !== null) {
        this.#log.warn(error.message);
        return done(error, null);
      }
      this.events.snapshot(made);
      this.#disk = vbd.geometry;
      this.#recordDevice();
      done(null, made);
    };
    liveSnapshot(this.#services.contextOf("auto"), vbd, { ...options, done: ended });
    return () => vbd.cancelPause();
  }

  /**
   * Opens the image of a paused device again, or another that is no smaller, and releases its requests. Users
   * that come from now on see the new size. Throws `SystemError`: EINVAL when the device is not paused.
   *
   * @returns A function that cancels the open while an image on a server is being opened.
   */
  resume(
    { image, changedBlocks, secondary }: ResumeRequest,
    done: Done,
    by: Actor | null = null,
  ): () => void {
    const vbd = this.#vbd;
    if (vbd.phase !== "paused" && vbd.phase !== "failed") {
      throw new SystemError(Errno.EINVAL, `Cannot unpause minor ${this.minor} (it is not paused)`);
    }
    const opened: Done = (error) => {
      this.events.tried(error);
      if (error !== null) return done(error);
      if (this.#request !== null && changedBlocks !== undefined) {
        this.#request = { ...this.#request, changedBlocks };
      }
      if (this.#request !== null && secondary !== undefined) {
        this.#request = { ...this.#request, secondary };
      }
      const { sectors } = this.#disk;
      const isGrown = vbd.sectors !== sectors;
      const grown = isGrown ? `, of ${vbd.sectors} instead of ${sectors} sectors` : "";
      this.#disk = vbd.geometry;
      this.events.resumed(vbd.name, grown, by);
      const resumed = (): void => {
        this.#recordDevice();
        done(null);
      };
      if (isGrown) this.#access.resized(resumed);
      else resumed();
    };
    vbd.resume(image, opened, { changedBlocks, secondary });
    return () => vbd.cancelOpening();
  }
}
