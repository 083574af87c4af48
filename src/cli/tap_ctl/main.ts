/**
 * `src/cli/tap_ctl`: tap-ctl, which starts, stops and queries the tapdisks of this machine. Each
 * command has a file: it parses, calls `src/control`, prints the result, and ends with an error number
 * as its exit status. It must not speak the control protocol itself.
 *
 * @module
 */
import type { Command } from "commander";
import { Errno } from "../../../ffi/errno.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import { printErrorLine, printText } from "../print.ts";
import type { Define } from "./run.ts";

const COMMANDS: Record<string, { summary: string; load: () => Promise<Define> }> = {
  list: {
    summary: "List tapdisks, their devices and images, and minors without a tapdisk",
    load: async () => (await import("./list.ts")).defineList,
  },
  allocate: {
    summary: "Allocate a free minor and print its path",
    load: async () => (await import("./allocate.ts")).defineAllocate,
  },
  free: {
    summary: "Free a minor",
    load: async () => (await import("./free.ts")).defineFree,
  },
  create: {
    summary: "Serve an image: allocate, spawn, attach and open in one step",
    load: async () => (await import("./create.ts")).defineCreate,
  },
  destroy: {
    summary: "Stop serving an image: close, detach and free in one step",
    load: async () => (await import("./destroy.ts")).defineDestroy,
  },
  recover: {
    summary: "Bring back disks after a fault: those of tapdisks that died, and single ones",
    load: async () => (await import("./recover.ts")).defineRecover,
  },
  upgrade: {
    summary: "Let the installed version take over the disks of running tapdisks",
    load: async () => (await import("./upgrade.ts")).defineUpgrade,
  },
  spawn: {
    summary: "Start a tapdisk and print its process number",
    load: async () => (await import("./spawn.ts")).defineSpawn,
  },
  attach: {
    summary: "Attach a minor to a tapdisk",
    load: async () => (await import("./attach.ts")).defineAttach,
  },
  detach: {
    summary: "Detach a minor from a tapdisk; the tapdisk ends with its last minor",
    load: async () => (await import("./detach.ts")).defineDetach,
  },
  open: {
    summary: "Open an image on a minor",
    load: async () => (await import("./open.ts")).defineOpen,
  },
  close: {
    summary: "Close the image of a minor",
    load: async () => (await import("./close.ts")).defineClose,
  },
  serve: {
    summary: "Serve a running disk by NBD over TCP, with or without TLS",
    load: async () => (await import("./serve.ts")).defineServe,
  },
  unserve: {
    summary: "Stop serving a disk over TCP",
    load: async () => (await import("./unserve.ts")).defineUnserve,
  },
  restore: {
    summary: "Serve the disks in /etc/blktap/devices, as at boot, or stop serving them",
    load: async () => (await import("./restore.ts")).defineRestore,
  },
  pause: {
    summary: "Hold back a device's requests and close its image files",
    load: async () => (await import("./pause.ts")).definePause,
  },
  unpause: {
    summary: "Open the image of a paused device, or another image, and release the requests",
    load: async () => (await import("./unpause.ts")).defineUnpause,
  },
  snapshot: {
    summary: "Snapshot a running disk: its image keeps the present data, a new one takes writes",
    load: async () => (await import("./snapshot.ts")).defineSnapshot,
  },
  resize: {
    summary: "Make a running disk larger",
    load: async () => (await import("./resize.ts")).defineResize,
  },
  limit: {
    summary: "Limit the requests and bytes that a disk serves in a second, or print the limits",
    load: async () => (await import("./limit.ts")).defineLimit,
  },
  stats: {
    summary: "Print a device's statistics",
    load: async () => (await import("./stats_command.ts")).defineStatsCommand,
  },
  explain: {
    summary: "Say what a device waits for, and what to do about it",
    load: async () => (await import("./explain.ts")).defineExplain,
  },
  trace: {
    summary: "Record what becomes of each request of a device, for Perfetto or as text",
    load: async () => (await import("./trace.ts")).defineTrace,
  },
  top: {
    summary: "Show what the disks of this machine do, as a table that is drawn anew",
    load: async () => (await import("./top.ts")).defineTop,
  },
  metrics: {
    summary: "Print metrics of all disks in the text format of Prometheus",
    load: async () => (await import("./metrics.ts")).defineMetrics,
  },
  log: {
    summary: "Print the changed sectors of a device, and optionally start a new log",
    load: async () => (await import("./log.ts")).defineLog,
  },
  major: {
    summary: "Print the major number of blktap block devices",
    load: async () => (await import("./major.ts")).defineMajor,
  },
  check: {
    summary: "Check whether tapdisk can run here",
    load: async () => (await import("./check.ts")).defineCheck,
  },
};

function help(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length));
  const lines = Object.entries(COMMANDS)
    .map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`);
  return `Usage: tap-ctl COMMAND [OPTION…] [--debug]

Starts, stops and queries the tapdisks of this machine. A tapdisk is a process that serves disks. Each
of its disks is a device with a minor number and, when it is open, an image (type:/path).

Commands:
${lines.join("\n")}

'tap-ctl COMMAND --help' explains a command. --debug prints the control messages. The exit status is 0
or an error number (errno). BLKTAP_CONTROL_DIR is the folder of the control sockets, by default
/run/blktap-control. BLKTAP_DEVICE is the default of 'create --device'.

${STDIN_ARGUMENTS_NOTE}:

  printf 'vhd:%s\\0' "$name" | tap-ctl create -a ${STDIN_ARGUMENTS}`;
}

async function trace(): Promise<void> {
  const { traceMessages } = await import("../../control/client/connection.ts");
  const { messageCookie, messageName, messageType } = await import(
    "../../control/protocol/message.ts"
  );
  traceMessages((direction, message) => {
    const name = messageName(messageType(message));
    printErrorLine(`${direction} '${name}' message (minor ${messageCookie(message)})`);
  });
}

async function loadCommand(name: string): Promise<Command> {
  const { bareCommand } = await import("./run.ts");
  const { summary, load } = COMMANDS[name];
  return (await load())(bareCommand(name, summary));
}

/** All commands, for the manual page and the completion. */
export function loadCommands(): Promise<Command[]> {
  return Promise.all(Object.keys(COMMANDS).map(loadCommand));
}

async function runNamed(name: string, args: string[]): Promise<number> {
  const { runCommand } = await import("./run.ts");
  const command = await loadCommand(name);
  return await runCommand(name, () => command, args) ?? Errno.EINVAL;
}

/**
 * Runs tap-ctl.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function tapCtlMain(args: string[]): Promise<number> {
  const [name, ...rest] = args.filter((arg) => arg !== "--debug");
  if (name === undefined || ["help", "-h", "--help"].includes(name)) {
    printText(help());
    return 0;
  }
  if (!Object.hasOwn(COMMANDS, name)) {
    printErrorLine(`tap-ctl: Unknown command '${name}': 'tap-ctl --help' lists them`);
    return Errno.EINVAL;
  }
  if (args.includes("--debug")) await trace();
  return await runNamed(name, rest);
}
