import { VALVE_FOLDER } from "../../rated/valve_protocol.ts";

/** An option of td-rated. */
export interface RatedOption {
  readonly use: string;
  readonly text: string;
}

/** What td-rated is, in a line. */
export const SUMMARY = "Share a rate of writing between disks";

export const SYNOPSES = [
  "td-rated NAME -t token [-D LEVEL] -- --rate BYTES [--cap BYTES]",
  "td-rated NAME -t leaky [-D LEVEL] -- --rate BYTES",
  "td-rated NAME -t meminfo [-D LEVEL] -- --high PERCENT --low PERCENT [--period MS] -t TYPE -- ...",
] as const;

export const DESCRIPTION = [
  "Disks whose image is named valve:NAME:TYPE:PATH, such as valve:shared:vhd:/srv/disk.vhd, ask " +
  "td-rated before they write, in any number of tapdisks. Together they write no faster than the " +
  "rate. Reads are not limited. NAME is a path, or the name of a socket in " +
  `${VALVE_FOLDER}. While no td-rated is there, everything passes; disks look for it every 2 seconds.`,
  "td-rated runs in the background and logs to syslog. SIGUSR1 logs the limiter and all disks that " +
  "are connected. SIGTERM and SIGINT end it, and remove the socket.",
  "BYTES may end in K, M, G (1000) or Ki, Mi, Gi (1024).",
] as const;

export const OPTIONS: readonly RatedOption[] = [
  { use: "-t, --type TYPE", text: "the limiter: token, leaky or meminfo" },
  {
    use: "-D, --debug LEVEL",
    text: "above 0: stay in the foreground, with the log on standard error",
  },
  { use: "-h, --help", text: "print this text" },
];

export const LIMITERS: readonly { title: string; options: readonly RatedOption[] }[] = [
  {
    title: "token: a rate on average, with bursts after a pause",
    options: [
      { use: "-r, --rate BYTES", text: "bytes in a second" },
      { use: "-c, --cap BYTES", text: "the most that passes at once after a pause; 0 by default" },
    ],
  },
  {
    title: "leaky: a constant rate",
    options: [{ use: "-r, --rate BYTES", text: "bytes in a second" }],
  },
  {
    title: "meminfo: no limit until too much of the memory waits to be written to disk",
    options: [
      { use: "-H, --high PERCENT", text: "when so much is dirty, the limiter behind it begins" },
      { use: "-L, --low PERCENT", text: "and when so little is, it ends" },
      { use: "-p, --period MS", text: "how often the memory is looked at; 100 by default" },
      {
        use: "-t, --type TYPE",
        text: "the limiter behind it, token or leaky; its options follow --",
      },
    ],
  },
];

export const EXAMPLES = [
  "td-rated shared -t leaky -- --rate=60M",
  "td-rated /run/x.sk -t token -- --rate=80M --cap=10M",
  "td-rated /run/y.sk -t meminfo -- --low=40 --high=60 -t leaky -- --rate=15M",
] as const;

const COLUMN = 24;

function optionLine({ use, text }: RatedOption): string {
  return `  ${use.padEnd(COLUMN - 2)}${text}`;
}

/** What `--help` prints. */
export function helpText(): string {
  return [
    `Usage: ${SYNOPSES.join("\n       ")}`,
    `${SUMMARY}.`,
    ...DESCRIPTION,
    `Options:\n${OPTIONS.map(optionLine).join("\n")}`,
    ...LIMITERS.map(({ title, options }) => `${title}\n${options.map(optionLine).join("\n")}`),
    `Examples:\n${EXAMPLES.map((line) => `  ${line}`).join("\n")}`,
  ].join("\n\n");
}
