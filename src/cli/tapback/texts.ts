import { DEFAULT_TYPE } from "./arguments.ts";

/** An option of tapback. */
export interface TapbackOption {
  readonly use: string;
  readonly text: string;
}

/** What tapback is, in a line. */
export const SUMMARY = "Connect Xen guests to the disks of tapdisks";

export const SYNOPSIS = "tapback [-d] [-v] [-b] [-n TYPE] [-x DOMAIN] [-p FILE]";

export const DESCRIPTION = [
  "tapback is the backend of block devices of Xen guests. It finds the devices in xenstore at " +
  `backend/${DEFAULT_TYPE}, tells guests the sizes of their disks, and gives the rings of the guests ` +
  "to the tapdisks, which serve them. xl makes such devices for disks with backendtype=tap, and " +
  "XenServer for all disks of its storage manager.",
  "The disk of a device is the one at the node physical-device-path, which is the NBD socket of a " +
  "tapdisk, or the one of physical-device, where that is a device of the kernel's blktap driver. When " +
  "a disk gets another size, the guest is told. When another tapdisk takes over a disk, as after " +
  "tap-ctl recover, the guest's ring moves there. A device whose path becomes another one gets that " +
  "disk: this is how media are changed.",
  "tapback runs in the background and logs to syslog. With -d it logs to standard error, which may " +
  "be the journal. SIGTERM and SIGINT end it. Guests go on with their disks meanwhile, and a tapback " +
  "that starts later goes on with the guests. SIGHUP opens the log anew.",
  "A second tapback for the same devices is refused (EBUSY): they are locked by files in the control " +
  "folder.",
  "It needs a xenstored, by its socket or by /dev/xen/xenbus. XENSTORED_PATH names another socket, " +
  "and BLKTAP_CONTROL_DIR the folder of the tapdisks.",
] as const;

export const OPTIONS: readonly TapbackOption[] = [
  {
    use: "-d, --debug",
    text: "stay in the foreground, with the log on standard error",
  },
  { use: "-v, --verbose", text: "log each change of a device, too" },
  { use: "-b, --nobarrier", text: "offer no barriers to guests" },
  {
    use: "-n, --name TYPE",
    text: `serve devices of this type in xenstore; ${DEFAULT_TYPE} by default`,
  },
  {
    use: "-x, --domain DOMAIN",
    text: "serve only this guest, and end when it has no devices any more",
  },
  {
    use: "-p, --pidfile FILE",
    text: "write the number of the process to this file, which is removed at the end",
  },
  { use: "-h, --help", text: "print this text" },
];

export const EXAMPLES = [
  "tapback -p /run/tapback.pid",
  "tapback -d -v -x 5",
] as const;

const COLUMN = 24;

function optionLine({ use, text }: TapbackOption): string {
  return `  ${use.padEnd(COLUMN - 2)}${text}`;
}

/** What `--help` prints. */
export function helpText(): string {
  return [
    `Usage: ${SYNOPSIS}`,
    `${SUMMARY}.`,
    ...DESCRIPTION,
    `Options:\n${OPTIONS.map(optionLine).join("\n")}`,
    `Examples:\n${EXAMPLES.map((line) => `  ${line}`).join("\n")}`,
  ].join("\n\n");
}
