import { Errno, SystemError } from "../../../ffi/errno.ts";
import { controlFolder, namesIn, nbdSocketPath } from "../paths.ts";
import { singleNames } from "../single_names.ts";

function isRunning(pid: number): boolean {
  try {
    Deno.statSync(`/proc/${pid}`);
    return true;
  } catch {
    return false;
  }
}

/**
 * The disk of a minor as an image, by the NBD socket of its tapdisk. sm finds the minor in this name.
 *
 * @throws {SystemError} ENOENT when no tapdisk serves the minor, EINVAL when several do.
 */
export function diskOfMinor(minor: number): string {
  const ending = `.${minor}`;
  const sockets = namesIn(controlFolder()).flatMap((name) => {
    const pid = Number(/^nbd(\d+)\.\d+$/.exec(name)?.[1]);
    return name.endsWith(ending) && isRunning(pid) ? [{ name, pid }] : [];
  });
  const pids = singleNames(sockets).map(({ pid }) => pid);
  const [pid] = pids;
  if (pids.length === 1) return `nbd:${nbdSocketPath(pid, minor)}`;
  const [errno, why] = pid === undefined
    ? [Errno.ENOENT, "no tapdisk serves it"]
    : [Errno.EINVAL, `tapdisks ${pids.join(" and ")} serve it`];
  throw new SystemError(errno, `Cannot read from the disk of minor ${minor} (${why})`);
}
