import { peerOf } from "../../../ffi/descriptors.ts";
import { plainText } from "../../log/plain_text.ts";

/** Who gave an order. */
export interface Actor {
  readonly pid: number;
  /** The program's name; empty when the process is gone. */
  readonly command: string;
  /** The process that started it, such as a storage manager; null when that is not known. */
  readonly parent: { readonly pid: number; readonly command: string } | null;
}

/**
 * The name of the program of a process; empty when it is gone. The command line is not looked at: it may hold secrets,
 * and the kernel reads it from the process's memory, which may have to come from a disk first.
 */
function commandOf(pid: number): string {
  try {
    return plainText(Deno.readTextFileSync(`/proc/${pid}/comm`).trimEnd());
  } catch {
    return "";
  }
}

function parentOf(pid: number): Actor["parent"] {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    const parent = Number(/^PPid:\s+(\d+)/m.exec(status)?.[1] ?? 0);
    // Process 1 is parent of whatever has lost its own.
    return parent <= 1 ? null : { pid: parent, command: commandOf(parent) };
  } catch {
    return null;
  }
}

/** The process at the other end of a control connection; null when that is not known. */
export function actorAt(fd: number): Actor | null {
  try {
    const { pid } = peerOf(fd);
    // A process of another namespace has no number here.
    return pid <= 0 ? null : { pid, command: commandOf(pid), parent: parentOf(pid) };
  } catch {
    return null;
  }
}

/** Who it was, for people: `tap-ctl (process 12, started by process 11: sm)`. */
export function actorText({ pid, command, parent }: Actor): string {
  const by = parent === null
    ? ""
    : `, started by process ${parent.pid}${parent.command === "" ? "" : `: ${parent.command}`}`;
  return command === "" ? `process ${pid}${by}` : `${command} (process ${pid}${by})`;
}
