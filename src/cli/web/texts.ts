import { DEFAULT_LISTEN } from "./arguments.ts";

/** An option of `blktap web`. */
export interface WebOption {
  readonly use: string;
  readonly text: string;
}

/** What the command is, in a line. */
export const SUMMARY = "Show the disks of this host in a browser";

export const SYNOPSIS =
  "blktap web [--listen HOST:PORT | --socket PATH] [--token-file FILE] [--name NAME]... " +
  "[--images FOLDER]... [--allow-changes]";

export const DESCRIPTION = [
  `The page is at http://${DEFAULT_LISTEN}/ unless an option says otherwise. It lists all disks with ` +
  "live charts. A disk has a page of its own: load, latency over time, the slowest requests just now, " +
  "its chain with sizes, which image holds what, and what happened to it.",
  "It asks tapdisks over their control sockets, once a second while somebody looks. It is not in the " +
  "way of any request of a disk. It runs in the foreground. SIGTERM and SIGINT end it.",
  "It changes nothing, unless --allow-changes is given. Then it can make snapshots, each after a " +
  "question.",
  "On a UNIX socket, only those can see it who may open the socket: its owner and root. On an address " +
  "of this machine, such as localhost, only processes of root and of the user who started it, unless " +
  "there is a token. On any other address it needs a token: from --token-file, or one that is made " +
  "and printed with the page's address. A browser shows the token once, in the address or in a form; " +
  'other clients send "Authorization: Bearer TOKEN". There is no TLS: over a network, use ssh -L or a ' +
  "proxy with TLS.",
] as const;

export const OPTIONS: readonly WebOption[] = [
  { use: "--listen HOST:PORT", text: `the address; ${DEFAULT_LISTEN} by default` },
  { use: "--socket PATH", text: "a UNIX socket in place of an address" },
  {
    use: "--token-file FILE",
    text: "the token: the first line of this file, at least 16 characters",
  },
  {
    use: "--name NAME",
    text:
      "a name by which browsers ask for the page, beside localhost, addresses and the name in --listen",
  },
  { use: "--images FOLDER", text: "look in this folder for images that are not served" },
  { use: "--allow-changes", text: "allow the page to make snapshots" },
  { use: "-h, --help", text: "print this text" },
];

export const EXAMPLES = [
  "blktap web",
  "blktap web --socket /run/blktap-web.sock --images /srv/images",
  "blktap web --listen 192.0.2.7:9753 --token-file /etc/blktap/web-token --allow-changes",
] as const;

const COLUMN = 24;

function optionLine({ use, text }: WebOption): string {
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
