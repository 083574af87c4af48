/**
 * What a device does just now:
 *
 * - `closed`: it has no image.
 * - `open`: it has an image, and its requests run.
 * - `pausing`: requests wait; those at the image end, and then the images are closed.
 * - `paused`: requests wait, and the images are closed.
 * - `closing`: requests fail; those at the image end, and then the images are closed.
 * - `failed`: a fault has ended it; requests fail until `resume` opens its images again.
 */
export type VbdPhase = "closed" | "open" | "pausing" | "paused" | "closing" | "failed";

/** State bits of the control protocol (TD_VBD_* of tapdisk-vbd.h). */
const StateBit = {
  Dead: 0x0001,
  Closed: 0x0002,
  QuiesceRequested: 0x0004,
  Quiesced: 0x0008,
  PauseRequested: 0x0010,
  Paused: 0x0020,
  ShutdownRequested: 0x0040,
  ResumeFailed: 0x0200,
} as const;

const PHASE_BITS: Readonly<Record<VbdPhase, number>> = {
  closed: StateBit.Closed,
  open: 0,
  pausing: StateBit.PauseRequested | StateBit.QuiesceRequested,
  paused: StateBit.Closed | StateBit.Quiesced | StateBit.Paused,
  closing: StateBit.ShutdownRequested,
  failed: StateBit.Dead,
};

/** Whether a state is that of a device that a fault has ended, and that `resume` opens again. */
export function isEndedByFault(state: number): boolean {
  return (state & StateBit.Dead) !== 0 && (state & StateBit.ShutdownRequested) === 0;
}

/** Whether a state is that of a disk that its user has paused: requests wait until `resume`. */
export function isPausedState(state: number): boolean {
  return (state & StateBit.Paused) !== 0;
}

/** A device's state as the control protocol has it. */
export function stateBits(
  { phase, wasOpened, failed, resumeFailed }: {
    phase: VbdPhase;
    /** Whether the device ever had an image; before that it is not closed. */
    wasOpened: boolean;
    /** Whether a fault has ended the device, which may be closing since. */
    failed: boolean;
    /** Whether the last attempt to resume it failed. */
    resumeFailed: boolean;
  },
): number {
  if (!wasOpened) return 0;
  const dead = failed && phase === "closing" ? StateBit.Dead : 0;
  return PHASE_BITS[phase] | dead | (resumeFailed ? StateBit.ResumeFailed : 0);
}
