/**
 * epoll(7) and eventfd(2): waiting for many descriptors at once, for the event loop.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { openLibc, openLibcLater } from "./libc.ts";

const setUp = /* @__PURE__ */ openLibcLater({
  // int epoll_create1(int flags)
  epoll_create1: { parameters: ["i32"], result: "i32" },
  // int eventfd(unsigned int initval, int flags)
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  // int close(int fd)
  close: { parameters: ["i32"], result: "i32" },
});

const libc = /* @__PURE__ */ openLibc({
  // int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
  epoll_ctl: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
  epoll_wait: { parameters: ["i32", "buffer", "i32", "i32"], result: "i32" },
});

/** Events of epoll_ctl(2) (sys/epoll.h). */
export const EPOLLIN = 0x001;
export const EPOLLOUT = 0x004;
export const EPOLLERR = 0x008;
export const EPOLLHUP = 0x010;
export const EPOLLET = 0x80000000;

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const EPOLL_CLOEXEC = 0o2000000;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

// struct epoll_event (linux/eventpoll.h), packed on x86-64: u32 events @0, u64 data @4.
const EVENT_BYTES = 12;

/** A set of watched descriptors and the events of the last wait. */
export class Epoll {
  readonly #fd: number;
  readonly #change = new DataView(new ArrayBuffer(EVENT_BYTES));
  readonly #changeBytes = new Uint8Array(this.#change.buffer);
  readonly #events: DataView<ArrayBuffer>;
  readonly #eventBytes: Uint8Array<ArrayBuffer>;
  readonly #most: number;

  /**
   * @param most The most events of one wait.
   * @throws {SystemError}
   */
  constructor(most: number) {
    this.#most = most;
    this.#events = new DataView(new ArrayBuffer(most * EVENT_BYTES));
    this.#eventBytes = new Uint8Array(this.#events.buffer);
    this.#fd = setUp.epoll_create1(EPOLL_CLOEXEC);
    if (this.#fd < 0) throw new SystemError(lastErrno(), "Cannot create an epoll instance");
  }

  #control(operation: number, fd: number, events: number): void {
    this.#change.setUint32(0, events, true);
    this.#change.setInt32(4, fd, true);
    if (libc.epoll_ctl(this.#fd, operation, fd, this.#changeBytes) < 0) {
      throw new SystemError(lastErrno(), `Cannot watch descriptor ${fd}`);
    }
  }

  /** Starts to watch a descriptor. Throws `SystemError`. */
  add(fd: number, events: number): void {
    this.#control(EPOLL_CTL_ADD, fd, events);
  }

  /** Changes the events a descriptor is watched for. Throws `SystemError`. */
  modify(fd: number, events: number): void {
    this.#control(EPOLL_CTL_MOD, fd, events);
  }

  /** Stops watching a descriptor. Throws `SystemError`. */
  remove(fd: number): void {
    this.#control(EPOLL_CTL_DEL, fd, 0);
  }

  /**
   * Waits for events.
   *
   * @param timeoutMs -1 for no limit.
   * @returns How many events there are, or -EINTR.
   * @throws {SystemError} Any other error.
   */
  wait(timeoutMs: number): number {
    const count = libc.epoll_wait(this.#fd, this.#eventBytes, this.#most, timeoutMs);
    if (count >= 0) return count;
    if (lastErrno() === Errno.EINTR) return -Errno.EINTR;
    throw new SystemError(lastErrno(), "Cannot wait for events");
  }

  /** The descriptor of event `index` of the last wait. */
  fdOf(index: number): number {
    return this.#events.getInt32(index * EVENT_BYTES + 4, true);
  }

  /** The EPOLL* bits of event `index` of the last wait. */
  eventsOf(index: number): number {
    return this.#events.getUint32(index * EVENT_BYTES, true);
  }

  /** Closes the instance. */
  close(): void {
    setUp.close(this.#fd);
  }
}

/** Creates a non-blocking eventfd(2) with count 0. Throws `SystemError`. */
export function createEventFd(): number {
  const fd = setUp.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw new SystemError(lastErrno(), "Cannot create an eventfd");
  return fd;
}
