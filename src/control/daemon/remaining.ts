/** A device that is still there after its tapdisk was told to end. */
export interface RemainingDevice {
  readonly minor: number;
  /** `type:/path` */
  readonly name: string;
  /** The node of its block device; null without one. */
  readonly node: string | null;
  /** Whether the block device waits for another tapdisk when this one is killed. */
  readonly outlives: boolean;
}

/** A log line for the administrator: why the device is still there, and what to do. */
export function adviceOn({ minor, name, node, outlives }: RemainingDevice): string {
  if (node === null) return `Minor ${minor}, ${name}, goes on: it could not be closed`;
  const first = `Minor ${minor}, ${name}, goes on: ${node} is in use. ` +
    "Unmount it or end its users, and send the signal again. ";
  const killed = outlives
    ? `the device stays and its users wait; 'tap-ctl recover -m ${minor}' puts another behind it`
    : "the kernel takes the device away and its users get errors; " +
      `'tap-ctl destroy -p ${Deno.pid} -m ${minor}' removes the rest`;
  return `${first}If this tapdisk is killed, ${killed}`;
}
