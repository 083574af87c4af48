/**
 * tap-ctl: starts, stops and asks the tapdisks of this machine. Parses, calls `src/control`, prints
 * what comes back, and ends with the error number of what failed. One file for each command.
 *
 * @module
 */
import type { Command } from "commander";
import { Errno, errnoOf, messageOf } from "../../../ffi/errno.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import { printErrorLine, printText, writeError } from "../print.ts";

/** Describes a command's options, and what it does. */
type Define = (command: Command) => Command;

const COMMANDS: Record<string, { summary: string; load: () => Promise<Define> }> = {
  list: {
    summary: "List tapdisks, their devices and images, and minors without a tapdisk",
    load: async () => (await import("./list.ts")).defineList,
  },
  allocate: {
    summary: "Take a free minor and print its path",
    load: async () => (await import("./allocate.ts")).defineAllocate,
  },
  free: {
    summary: "Give a minor back",
    load: async () => (await import("./free.ts")).defineFree,
  },
  create: {
    summary: "Serve an image: allocate, spawn, attach and open in one go",
    load: async () => (await import("./create.ts")).defineCreate,
  },
  destroy: {
    summary: "Stop serving an image: close, detach and free in one go",
    load: async () => (await import("./destroy.ts")).defineDestroy,
  },
  recover: {
    summary: "Take over the block devices of tapdisks that died",
    load: async () => (await import("./recover.ts")).defineRecover,
  },
  spawn: {
    summary: "Start a tapdisk and print its process number",
    load: async () => (await import("./spawn.ts")).defineSpawn,
  },
  attach: {
    summary: "Give a minor to a tapdisk",
    load: async () => (await import("./attach.ts")).defineAttach,
  },
  detach: {
    summary: "Take a minor from a tapdisk, which ends with its last one",
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
  restore: {
    summary: "Serve the disks that are listed in /etc/blktap/devices, as at boot, or stop them",
    load: async () => (await import("./restore.ts")).defineRestore,
  },
  pause: {
    summary: "Hold a device's requests back and close its image files",
    load: async () => (await import("./pause.ts")).definePause,
  },
  unpause: {
    summary: "Open the image again, or another, and let the requests go on",
    load: async () => (await import("./unpause.ts")).defineUnpause,
  },
  snapshot: {
    summary: "Put a new image on top of a running one, which keeps the disk of that moment",
    load: async () => (await import("./snapshot.ts")).defineSnapshot,
  },
  stats: {
    summary: "Print a device's statistics",
    load: async () => (await import("./stats.ts")).defineStats,
  },
  log: {
    summary: "Print which sectors of a device changed, and begin anew",
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

Starts, stops and asks the tapdisks of this machine. A tapdisk is a process that serves disks; each
of its disks is a device with a minor number and, when it is open, an image (type:/path).

Commands:
${lines.join("\n")}

'tap-ctl COMMAND --help' explains each. --debug shows the messages that are exchanged. The exit
status is 0 or an error number (errno). BLKTAP_CONTROL_DIR names the folder of the control sockets,
/run/blktap-control by default, and BLKTAP_DEVICE the kind of block device that 'create' makes.

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
  const { Command } = await import("commander");
  const { summary, load } = COMMANDS[name];
  return (await load())(
    new Command(`tap-ctl ${name}`)
      .description(summary)
      .helpOption("-h, --help", "show this help")
      .allowExcessArguments(false)
      .showHelpAfterError()
      .configureOutput({ outputError: writeError })
      .exitOverride(),
  );
}

/** All commands, for those who describe them. */
export function loadCommands(): Promise<Command[]> {
  return Promise.all(Object.keys(COMMANDS).map(loadCommand));
}

async function runCommand(name: string, args: string[]): Promise<number> {
  const { CommanderError } = await import("commander");
  const command = await loadCommand(name);
  try {
    await command.parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : Errno.EINVAL;
    if (error instanceof Deno.errors.BrokenPipe) throw error;
    printErrorLine(`tap-ctl ${name}: ${messageOf(error)}`);
    return errnoOf(error);
  }
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
  return await runCommand(name, rest);
}
