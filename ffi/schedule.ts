/**
 * Where and how much the kernel runs a thread. A child process has what the thread had that started it.
 *
 * @module
 */
import { Errno, lastErrno, SystemError } from "./errno.ts";
import { openLibcLater } from "./libc.ts";

const libc = /* @__PURE__ */ openLibcLater({
  // int sched_setaffinity(pid_t pid, size_t cpusetsize, const cpu_set_t *mask)
  sched_setaffinity: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  // int setpriority(int which, id_t who, int prio)
  setpriority: { parameters: ["i32", "u32", "i32"], result: "i32" },
});

const PRIO_PROCESS = 0;
/** As in a kernel with CONFIG_NR_CPUS of 8192. A shorter mask of the kernel ignores the rest. */
const MASK_BYTES = 1024;

/**
 * Lets this thread, and the processes that it starts, run on these processors only.
 *
 * @throws {SystemError} EINVAL when the machine has none of them, or this process may use none of them.
 */
export function runOn(processors: readonly number[]): void {
  const mask = new Uint8Array(MASK_BYTES);
  for (const processor of processors) mask[processor >> 3] |= 1 << (processor & 7);
  if (libc.sched_setaffinity(0, MASK_BYTES, mask) === 0) return;
  const errno = lastErrno();
  const why = errno === Errno.EINVAL ? " (this process may use none of them)" : "";
  throw new SystemError(errno, `Cannot run on processors ${processors.join(",")}${why}`);
}

/**
 * Sets the niceness of this thread, and of the processes that it starts.
 *
 * @throws {SystemError} EACCES for one that is lower than before, without CAP_SYS_NICE.
 */
export function becomeNice(niceness: number): void {
  if (libc.setpriority(PRIO_PROCESS, 0, niceness) === 0) return;
  throw new SystemError(lastErrno(), `Cannot have niceness ${niceness}`);
}

/** The niceness of this process. */
export function niceness(): number {
  const stat = Deno.readTextFileSync("/proc/self/stat");
  // The fields follow the name, which is in parentheses and may contain any character.
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16]);
}

/** The processors that this process may run on, as the kernel writes them: `0-3,8`. */
export function processorsAllowed(): string {
  const status = Deno.readTextFileSync("/proc/self/status");
  return /^Cpus_allowed_list:\t(.*)$/m.exec(status)?.[1] ?? "";
}
