/** An option of the exporter. */
export interface ExporterOption {
  readonly use: string;
  readonly text: string;
}

/** What the exporter is, in a line. */
export const SUMMARY = "Serve metrics of all disks of this machine for Prometheus";

export const SYNOPSIS = "blktap exporter --listen HOST:PORT [--name NAME]... | --socket PATH";

export const DESCRIPTION = [
  "It answers GET /metrics by HTTP with the metrics of all tapdisks, as tap-ctl metrics prints them. Each " +
  "answer is made anew, from one question to each tapdisk; those that do not answer within a second have " +
  "blktap_tapdisk_up 0, and are asked again after five seconds.",
  "It stays in the foreground and logs to standard error, which may be the journal. SIGTERM and SIGINT end it.",
  "There is no encryption and no password: whoever can connect learns names of images and what disks " +
  "do, and can change nothing. Listen at a loopback address or at a socket, and put a proxy in front where " +
  "others must be kept out.",
  "BLKTAP_CONTROL_DIR names the folder of the tapdisks.",
] as const;

export const OPTIONS: readonly ExporterOption[] = [
  {
    use: "--listen HOST:PORT",
    text: "serve by TCP at this address; an IPv6 address stands in brackets",
  },
  {
    use: "--socket PATH",
    text: "serve at this UNIX socket, which only this user and group can connect to",
  },
  {
    use: "--name NAME",
    text:
      "answer only under this name, localhost, addresses, the name in --listen and that of this machine, so that no " +
      "site in a browser can lead its own name here. At a loopback address it is so without this option",
  },
  { use: "-h, --help", text: "print this text" },
];

export const EXAMPLES = [
  "blktap exporter --listen 127.0.0.1:9742",
  "blktap exporter --socket /run/blktap-metrics",
] as const;

const COLUMN = 24;

/** What `--help` prints. */
export function helpText(): string {
  return [
    `Usage: ${SYNOPSIS}`,
    `${SUMMARY}.`,
    ...DESCRIPTION,
    `Options:\n${OPTIONS.map(({ use, text }) => `  ${use.padEnd(COLUMN - 2)}${text}`).join("\n")}`,
    `Examples:\n${EXAMPLES.map((line) => `  ${line}`).join("\n")}`,
  ].join("\n\n");
}
