/** The names in a folder; none when it cannot be read. */
export function namesIn(folder: string): string[] {
  try {
    return Array.from(Deno.readDirSync(folder), ({ name }) => name);
  } catch {
    // It is gone, as folders of processes are that have ended, or not ours to look at.
    return [];
  }
}

function leadsTo(link: string, node: string): boolean {
  try {
    const target = Deno.readLinkSync(link);
    return target.startsWith(node) && /^(p\d+)?$/.test(target.slice(node.length));
  } catch {
    return false;
  }
}

/**
 * A process other than this one that has a disk, or a partition of it, open; 0 for none. What the
 * kernel itself has open, and who may not be looked at, stay unknown.
 */
export function processWith(node: string): number {
  for (const name of namesIn("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === Deno.pid) continue;
    const folder = `/proc/${name}/fd`;
    if (namesIn(folder).some((fd) => leadsTo(`${folder}/${fd}`, node))) return pid;
  }
  return 0;
}
