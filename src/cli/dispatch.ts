/**
 * `src/cli`: the commands. Each parses its arguments, calls the folders below and prints. A command
 * must not know the bytes of an image or of a control message.
 *
 * This file decides which command a call means: by the name that the binary was called under, or,
 * under any other name, by its first argument. It must not print or run anything.
 *
 * @module
 */

/** The commands of the binary. The binary can be called under each of these names. */
export const COMMAND_NAMES = [
  "tapdisk",
  "tap-ctl",
  "vhd-util",
  "cbt-util",
  "td-rated",
  "tapback",
  "td-util",
  "img2qcow",
  "qcow2raw",
  "qcow-create",
  "tapdisk-diff",
  "tapdisk-stream",
] as const;

/** Commands that have no link of their own: `blktap NAME`. */
export const OWN_NAMES = ["web", "exporter", "doctor"] as const;

/** One of {@linkcode COMMAND_NAMES} or {@linkcode OWN_NAMES}. */
export type CommandName = typeof COMMAND_NAMES[number] | typeof OWN_NAMES[number];

/** The meaning of a call. */
export type Call =
  | { readonly kind: "command"; readonly name: CommandName; readonly args: string[] }
  | { readonly kind: "help" | "version" }
  | { readonly kind: "missing" }
  | { readonly kind: "unknown"; readonly name: string };

/**
 * Decides what a call means.
 *
 * ```ts
 * import { chooseCall } from "./dispatch.ts";
 *
 * chooseCall("/usr/sbin/tap-ctl", ["list"]); // tap-ctl with ["list"]
 * chooseCall("blktap", ["tap-ctl", "list"]); // the same
 * ```
 *
 * @param argv0 The name that the program was called under, as typed.
 * @param args The arguments after it.
 */
export function chooseCall(argv0: string, args: readonly string[]): Call {
  const calledBy = commandIn(COMMAND_NAMES, argv0.slice(argv0.lastIndexOf("/") + 1));
  if (calledBy !== undefined) {
    return { kind: "command", name: calledBy, args: [...args] };
  }
  const [first, ...rest] = args;
  switch (first) {
    case undefined:
      return { kind: "missing" };
    case "help":
    case "-h":
    case "--help":
      return { kind: "help" };
    case "version":
    case "-V":
    case "--version":
      return { kind: "version" };
  }
  const name = commandIn([...COMMAND_NAMES, ...OWN_NAMES], first);
  return name === undefined
    ? { kind: "unknown", name: first }
    : { kind: "command", name, args: rest };
}

/**
 * The name that a process was called under: the first NUL-terminated string of `/proc/self/cmdline`.
 */
export function calledName(cmdline: Uint8Array): string {
  const end = cmdline.indexOf(0);
  return new TextDecoder().decode(end === -1 ? cmdline : cmdline.subarray(0, end));
}

function commandIn(names: readonly CommandName[], name: string): CommandName | undefined {
  return names.find((known) => known === name);
}
