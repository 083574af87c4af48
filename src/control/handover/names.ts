/**
 * Names of sockets that have the number of a process in them. When another process takes over, each
 * socket gets a second name with that one's number, and the first name becomes a link to it: programs
 * that know the first process go on.
 *
 * @module
 */
import { linkTarget, pathStatus, renamePath } from "../../../ffi/paths.ts";
import { ownerOfSocket } from "../client/stale_sockets.ts";
import { controlFolder, namesIn } from "../paths.ts";

/** The path of a socket, with the number of another process. Addresses stay. */
export function renamedFor(at: string, from: number, to: number): string {
  const folder = `${controlFolder()}/`;
  const name = at.startsWith(folder) ? at.slice(folder.length) : "";
  if (ownerOfSocket(name) !== from) return at;
  return folder + name.replace(/\d+/, String(to));
}

/**
 * Removes the names of sockets with the number of a process. A link with its number is that of an earlier
 * process, whose disks others have.
 */
export function removeNamesOf(pid: number): void {
  const folder = controlFolder();
  const known = new Set(links().map(({ name }) => name));
  for (const name of namesIn(folder)) {
    if (ownerOfSocket(name) === pid && !known.has(name)) remove(`${folder}/${name}`);
  }
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // No process listens there any more, and the next tapdisk removes it.
  }
}

/** The names in the control folder that are links, with what they lead to. */
function links(): { name: string; to: string }[] {
  const folder = controlFolder();
  return namesIn(folder).flatMap((name) => {
    try {
      const path = `${folder}/${name}`;
      if (ownerOfSocket(name) === undefined) return [];
      return pathStatus(path, { link: true }).kind === "other"
        ? [{ name, to: linkTarget(path) }]
        : [];
    } catch {
      return [];
    }
  });
}

/**
 * Makes the names with the number of a process, and all links to them, links to the names with another
 * number. A name that exists leads somewhere at every moment.
 */
export function linkNames(from: number, to: number): void {
  const folder = controlFolder();
  const known = links();
  const own = new Set(known.map(({ name }) => name));
  const linked = Map.groupBy(known, (link) => link.to);
  for (const name of namesIn(folder)) {
    const path = `${folder}/${name}`;
    const target = renamedFor(path, from, to).slice(folder.length + 1);
    // A link with this number leads to the socket of another process.
    if (ownerOfSocket(name) !== from || own.has(name)) continue;
    for (const each of linked.get(name) ?? []) replaceByLink(`${folder}/${each.name}`, target);
    replaceByLink(path, target);
  }
}

/**
 * Undoes `linkNames(own, other)`, as far as that came: the sockets have their own names again.
 *
 * @param paths The paths of the sockets of the process `own`; others are left alone.
 */
export function takeNamesBack(
  paths: readonly string[],
  { own, other }: { own: number; other: number },
): void {
  const folder = `${controlFolder()}/`;
  for (const path of paths) {
    const theirs = renamedFor(path, own, other);
    if (theirs === path) continue;
    try {
      // Two names of one socket stay as they are.
      renamePath(theirs, path);
    } catch {
      // The other process has not got so far.
    }
    const [name, target] = [theirs, path].map((each) => each.slice(folder.length));
    for (const link of links()) {
      if (link.to === name) replaceByLink(folder + link.name, target);
    }
  }
}

/** Removes links that lead to a name that this process takes away. */
export function removeLinksTo(pid: number): void {
  for (const { name, to } of links()) {
    if (ownerOfSocket(to) === pid) remove(`${controlFolder()}/${name}`);
  }
}

function replaceByLink(path: string, target: string): void {
  const aside = `${path}.link`;
  try {
    remove(aside);
    Deno.symlinkSync(target, aside);
    renamePath(aside, path);
  } catch {
    // Programs that know the first process only do not reach this one.
  }
}
