import { EPOLLIN } from "../../ffi/epoll.ts";
import { Errno, errnoOf } from "../../ffi/errno.ts";
import { closeFile } from "../../ffi/files.ts";
import { addressOf } from "../../ffi/libc.ts";
import { linkTarget, removePath } from "../../ffi/paths.ts";
import { isAlive } from "../../ffi/process.ts";
import { receiveAt, sendAt, unixConnectAtOnce } from "../../ffi/sockets.ts";
import { checkAnswer } from "../control/client/connection.ts";
import { minorHolders } from "../control/minors/holders.ts";
import { tapdevMajor } from "../control/minors/tapdev.ts";
import {
  controlFolder,
  controlSocketPath,
  minorPath,
  namesIn,
  ringJournalPath,
} from "../control/paths.ts";
import {
  decodeDiskInfo,
  decodeRingFeatures,
  type DiskInfo,
} from "../control/protocol/disk_info.ts";
import {
  encodeConnect,
  encodeDisconnect,
  type GuestDevice,
  type GuestRing,
} from "../control/protocol/guest_ring.ts";
import { encodePlain, MESSAGE_BYTES, MessageType } from "../control/protocol/message.ts";
import type { FdHandler, Scheduler } from "../scheduler/scheduler.ts";
import type { FoundDisk, Tapdisk } from "./device_events.ts";
import type { WantedDisk } from "./observation.ts";

/** What is asked of tapdisks. Each call ends later with its callback, which gets an error number. */
export interface Tapdisks {
  /**
   * Finds the disk of a minor: in the tapdisk that is named, or in the one that has it now, if it is the
   * minor that `file` tells.
   */
  find(disk: WantedDisk, file: string, done: (found: FoundDisk | number) => void): void;
  /** Connects a guest's ring. */
  connect(tapdisk: Tapdisk, ring: GuestRing, done: (errno: number) => void): void;
  /** Disconnects a guest's ring, after its requests have ended. */
  disconnect(tapdisk: Tapdisk, guest: GuestDevice, done: (errno: number) => void): void;
  /** A device was removed: no tapdisk goes on with its ring. */
  forget(guest: GuestDevice): void;
}

/** How long a tapdisk may take to answer. */
const ANSWER_TIMEOUT_MS = 10_000;
/** The same for a disconnect, before which requests end. */
const DISCONNECT_TIMEOUT_MS = 120_000;
/** After how long to connect again to a tapdisk whose backlog of connections is full. */
const CONNECT_AGAIN_MS = 20;
/** The largest number of sectors that is exact as a number. */
const MOST_SECTORS = Number.MAX_SAFE_INTEGER / 512;

/** A question to a tapdisk. */
interface Question {
  readonly pid: number;
  readonly request: Uint8Array<ArrayBuffer>;
  readonly response: number;
  readonly what: string;
  readonly timeoutMs: number;
}

/** A question that has not been answered. It delays no other one. */
class Call implements FdHandler {
  readonly failed = false;
  readonly #scheduler: Scheduler;
  readonly #question: Question;
  readonly #done: (answer: Uint8Array<ArrayBuffer> | number) => void;
  readonly #message = new Uint8Array(MESSAGE_BYTES);
  readonly #untilMs: number;
  #received = 0;
  #fd = -1;
  #timer = 0;

  constructor(
    scheduler: Scheduler,
    question: Question,
    done: (answer: Uint8Array<ArrayBuffer> | number) => void,
  ) {
    this.#scheduler = scheduler;
    this.#question = question;
    this.#done = done;
    this.#untilMs = scheduler.nowMs() + question.timeoutMs;
    // The answer comes in a later turn, also when there is no tapdisk.
    this.#timer = scheduler.addTimer(0, () => this.#begin(), this);
  }

  fault(error: unknown): void {
    this.#end(errnoOf(error));
  }

  #begin(): void {
    const { pid, request, timeoutMs } = this.#question;
    try {
      this.#fd = unixConnectAtOnce(controlSocketPath(pid));
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== Errno.EAGAIN) return this.#end(errno);
      if (this.#scheduler.nowMs() > this.#untilMs) return this.#end(Errno.ETIMEDOUT);
      this.#timer = this.#scheduler.addTimer(CONNECT_AGAIN_MS, () => this.#begin(), this);
      return;
    }
    this.#scheduler.watch(this.#fd, EPOLLIN, this, this);
    this.#timer = this.#scheduler.addTimer(timeoutMs, () => this.#end(Errno.ETIMEDOUT), this);
    // The buffer of a new socket is much larger than one request.
    const sent = sendAt(this.#fd, addressOf(request), request.length);
    if (sent !== request.length) this.#end(sent < 0 ? -sent : Errno.EPIPE);
  }

  ready(): void {
    const into = addressOf(this.#message) + this.#received;
    const got = receiveAt(this.#fd, into, MESSAGE_BYTES - this.#received);
    if (got === -Errno.EAGAIN || got === -Errno.EINTR) return;
    if (got <= 0) return this.#end(got === 0 ? Errno.EPIPE : -got);
    this.#received += got;
    if (this.#received < MESSAGE_BYTES) return;
    const { pid, response: type, what } = this.#question;
    checkAnswer(this.#message, { pid, type, what });
    this.#end(this.#message);
  }

  #end(answer: Uint8Array<ArrayBuffer> | number): void {
    this.#scheduler.cancelTimer(this.#timer);
    if (this.#fd >= 0) {
      this.#scheduler.unwatch(this.#fd);
      closeFile(this.#fd);
    }
    this.#fd = -1;
    this.#done(answer);
  }
}

/** Tapdisks of this machine, by their control sockets. */
export class LocalTapdisks implements Tapdisks {
  readonly #scheduler: Scheduler;

  constructor(scheduler: Scheduler) {
    this.#scheduler = scheduler;
  }

  find(disk: WantedDisk, file: string, done: (found: FoundDisk | number) => void): void {
    // The minor of another driver's device means another disk, or none.
    if (disk.pid === null && disk.major !== tapdevMajor()) {
      return this.#later(() => done(Errno.ENODEV));
    }
    const pid = disk.pid ?? holderOf(disk.minor, 0);
    if (pid === null) return this.#later(() => done(Errno.ESRCH));
    this.#askInfo({ pid, minor: disk.minor }, (found) => {
      // The number of a minor that was freed goes to the next disk, which is another guest's. That of a
      // process may come again, too.
      const now = minorFile(disk.minor);
      const isOther = file !== "" && now !== "" && now !== file;
      if (isOther && disk.pid !== null) return done(Errno.ESTALE);
      if (typeof found !== "number" || disk.pid === null || file === "") return done(found);
      const other = holderOf(disk.minor, disk.pid);
      if (other === null) return done(found);
      this.#askInfo({ pid: other, minor: disk.minor }, (taken) => {
        done(typeof taken !== "number" && taken.file !== file ? Errno.ESTALE : taken);
      });
    });
  }

  #later(callback: () => void): void {
    this.#scheduler.addTimer(0, callback);
  }

  #askInfo(tapdisk: Tapdisk, done: (found: FoundDisk | number) => void): void {
    const { pid, minor } = tapdisk;
    const question: Question = {
      pid,
      request: encodePlain(MessageType.DISK_INFO, minor),
      response: MessageType.DISK_INFO_RSP,
      what: `Cannot get the size of minor ${minor} of tapdisk ${pid}`,
      timeoutMs: ANSWER_TIMEOUT_MS,
    };
    new Call(this.#scheduler, question, (answer) => {
      if (typeof answer === "number") return done(answer);
      const info = decodeDiskInfo(answer);
      const ringFeatures = decodeRingFeatures(answer);
      const file = minorFile(minor);
      const found = { ...servantOf(tapdisk), info, ringFeatures, file };
      done(isDisk(info) ? found : Errno.ENOMEDIUM);
    });
  }

  connect({ pid, minor }: Tapdisk, ring: GuestRing, done: (errno: number) => void): void {
    this.#order({
      pid,
      request: encodeConnect(minor, ring),
      response: MessageType.XENBLKIF_CONNECT_RSP,
      what: `Cannot connect device ${ring.device} of domain ${ring.domain} to tapdisk ${pid}`,
      timeoutMs: ANSWER_TIMEOUT_MS,
    }, done);
  }

  disconnect({ pid, minor }: Tapdisk, guest: GuestDevice, done: (errno: number) => void): void {
    const { device, domain } = guest;
    this.#order({
      pid,
      request: encodeDisconnect(minor, guest),
      response: MessageType.XENBLKIF_DISCONNECT_RSP,
      what: `Cannot disconnect device ${device} of domain ${domain} from tapdisk ${pid}`,
      timeoutMs: DISCONNECT_TIMEOUT_MS,
    }, done);
  }

  forget(guest: GuestDevice): void {
    try {
      removePath(ringJournalPath(guest));
    } catch {
      // No tapdisk has left one, as a rule.
    }
  }

  #order(question: Question, done: (errno: number) => void): void {
    new Call(
      this.#scheduler,
      question,
      (answer) => done(typeof answer === "number" ? answer : 0),
    );
  }
}

/** Who has the disk of a tapdisk: the name of its control socket is a link when another one took it over. */
function servantOf({ pid, minor }: Tapdisk): Tapdisk & { readonly successorOf?: number } {
  try {
    const [, now] = /^ctl(\d{1,10})$/.exec(linkTarget(controlSocketPath(pid))) ?? [];
    if (now !== undefined) return { pid: Number(now), minor, successorOf: pid };
  } catch {
    // It is no link.
  }
  return { pid, minor };
}

/** Whether a tapdisk has described a disk that a guest can have. */
function isDisk({ sectors, sectorSizeBytes }: DiskInfo): boolean {
  return sectors > 0 && sectors <= MOST_SECTORS && sectorSizeBytes > 0 &&
    sectorSizeBytes % 512 === 0;
}

/** What tells the file of a minor from a later one; empty when there is none. */
function minorFile(minor: number): string {
  try {
    const { ino, birthtime } = Deno.statSync(minorPath(minor));
    return `${ino}-${birthtime?.getTime() ?? 0}`;
  } catch {
    return "";
  }
}

/** Another tapdisk than `except` that has a minor: by its lock, or by its NBD socket; or null. */
function holderOf(minor: number, except: number): number | null {
  const holder = minorHolders([minor])?.get(minor);
  if (holder !== undefined && holder > 0 && holder !== except) return holder;
  for (const name of namesIn(controlFolder())) {
    const [, pid = ""] = /^nbd(\d+)\.(\d+)$/.exec(name) ?? [];
    if (!name.endsWith(`.${minor}`) || Number(pid) === except) continue;
    if (isAlive(Number(pid))) return Number(pid);
  }
  return null;
}
