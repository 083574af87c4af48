/** States of both ends of a device (enum xenbus_state of Xen's public io/xenbus.h). */
export const XenbusState = {
  UNKNOWN: 0,
  INITIALISING: 1,
  INIT_WAIT: 2,
  INITIALISED: 3,
  CONNECTED: 4,
  CLOSING: 5,
  CLOSED: 6,
  RECONFIGURING: 7,
  RECONFIGURED: 8,
} as const;

const NAMES = [
  "unknown",
  "initialising",
  "init wait",
  "initialised",
  "connected",
  "closing",
  "closed",
  "reconfiguring",
  "reconfigured",
] as const;

/** A state for people, such as `4 (connected)`. */
export function stateName(state: number): string {
  return `${state} (${NAMES[state] ?? "no state"})`;
}

/** The state that a text means; UNKNOWN for a text that means none. */
export function stateOf(text: string): number {
  return /^[0-8]$/.test(text) ? Number(text) : XenbusState.UNKNOWN;
}

/** The most characters of another domain's text that are shown. */
const SHOWN_CHARACTERS = 48;

/** A text that a guest wrote, for the log: quoted, and not longer than a line. */
export function shown(text: string): string {
  const cut = text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text;
  return JSON.stringify(cut);
}
