/**
 * poll(2): waiting for a few descriptors outside of the event loop, which `epoll.ts` serves. The
 * calling thread does nothing else meanwhile.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int poll(struct pollfd *fds, nfds_t nfds, int timeout)
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
});

/** Events of poll(2) (asm-generic/poll.h). */
export const POLLIN = 0x001;
export const POLLOUT = 0x004;
/** The peer has closed its end, or will send no more. */
export const POLLRDHUP = 0x2000;

// struct pollfd (asm-generic/poll.h): i32 fd @0, i16 events @4, i16 revents @6.
const POLLFD_BYTES = 8;
/** The longest timeout that one call takes, milliseconds; a longer wait takes several calls. */
const LONGEST_POLL_MS = 0x7fff_ffff;

/**
 * Waits until a descriptor is ready, has failed or has ended.
 *
 * @param events A union of POLL* bits; 0 waits for an error or a hang-up only.
 * @param timeoutMs Infinity waits without a limit.
 * @returns False when `timeoutMs` passed first.
 * @throws {SystemError}
 */
export function waitForDescriptor(fd: number, events: number, timeoutMs: number): boolean {
  return waitForDescriptors([fd], events, timeoutMs).length > 0;
}

/**
 * Waits until at least one of several descriptors is ready, has failed or has ended.
 *
 * @param events A union of POLL* bits, for all of them.
 * @param timeoutMs Infinity waits without a limit.
 * @returns Those that are ready; none when `timeoutMs` passed first.
 * @throws {SystemError}
 */
export function waitForDescriptors(
  fds: readonly number[],
  events: number,
  timeoutMs: number,
): number[] {
  const polled = new Uint8Array(POLLFD_BYTES * fds.length);
  const view = new DataView(polled.buffer);
  fds.forEach((fd, index) => {
    view.setInt32(POLLFD_BYTES * index, fd, true);
    view.setInt16(POLLFD_BYTES * index + 4, events, true);
  });
  const untilMs = performance.now() + timeoutMs;
  for (;;) {
    const leftMs = Math.max(0, untilMs - performance.now());
    const waitMs = Math.min(Math.ceil(leftMs), LONGEST_POLL_MS);
    const ready = libc.poll(polled, fds.length, leftMs === Infinity ? -1 : waitMs);
    if (ready > 0 || (ready === 0 && leftMs <= LONGEST_POLL_MS)) {
      return fds.filter((_, index) => view.getInt16(POLLFD_BYTES * index + 6, true) !== 0);
    }
    if (ready < 0 && lastErrno() !== Errno.EINTR) {
      throw new SystemError(lastErrno(), `Cannot wait for descriptors ${fds.join(", ")}`);
    }
  }
}
