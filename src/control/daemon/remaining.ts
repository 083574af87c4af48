/** A device that stays although its tapdisk was told to end. */
export interface RemainingDevice {
  readonly minor: number;
  /** `type:/path` */
  readonly name: string;
  /** Of its block device; null without one. */
  readonly node: string | null;
  /** Whether that waits for another tapdisk when this one is killed. */
  readonly outlives: boolean;
}

/** What an administrator is told of a device that stays, and what can be done. */
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
