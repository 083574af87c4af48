/** What `blktap doctor` says of itself: in its help, its manual page and its completion. */

export const SUMMARY = "Look for what is wrong with this host, and say how to mend it";
export const SYNOPSIS = "blktap doctor [--all] [--json] [FOLDER...]";

export const DESCRIPTION = [
  "Looks at kernel drivers, limits, asynchronous I/O, LVM, what tapdisks that died have left, disks that " +
  "wait to be recovered, disks in trouble, room on the filesystems of images, block devices, programs and " +
  "libraries, units of systemd, rules of udev and multipath, and opens the images of all disks, and of " +
  "/etc/blktap/devices, to see whether their chains are whole. Images of each FOLDER are opened, too.",
  "Nothing is changed. Nothing is waited for without a limit: an image whose server does not answer is a " +
  "finding. Any user may run it; what needs root is named.",
  "Each finding is an error, a warning or a note, with where it is and a command that mends it. The exit " +
  "status is 0 without warnings and errors, 1 with some, and EINVAL (22) for a wrong command line.",
];

/** An option. */
export interface DoctorOption {
  readonly name: string;
  readonly text: string;
}

export const OPTIONS: readonly DoctorOption[] = [
  { name: "all", text: "print also what is in order" },
  { name: "json", text: "print JSON: an array of all findings" },
  { name: "help", text: "print this text" },
];

export const EXAMPLE = `$ blktap doctor
warning  leftovers
  A tapdisk that died has left this socket; the next one that starts removes
  it
  at:   /run/blktap-control/ctl4711
  mend: rm /run/blktap-control/ctl4711
0 errors, 1 warning, 0 notes`;

/** What `--help` prints. */
export function helpText(): string {
  const options = OPTIONS.map(({ name, text }) => `  ${`--${name}`.padEnd(8)}  ${text}`);
  return [
    `Usage: ${SYNOPSIS}`,
    ...DESCRIPTION.flatMap((text) => ["", ...wrapped(text, 80)]),
    "",
    "Options:",
    ...options,
    "",
    "Example:",
    ...EXAMPLE.split("\n").map((line) => `  ${line}`),
  ].join("\n");
}

/** A text in lines of at most so many characters, where its words allow that. */
export function wrapped(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines[lines.length - 1] === "" ? word : `${lines[lines.length - 1]} ${word}`;
    if (longer.length <= width || lines[lines.length - 1] === "") lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}
