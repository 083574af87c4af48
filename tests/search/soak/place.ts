/**
 * Images of a soak's disks, and where they are served.
 *
 * @module
 */
import type { Group, Soak } from "./context.ts";
import { MOST_MIB, type SoakDisk } from "./disk.ts";
import { IDLE_KIND } from "./plan.ts";
import { RemoteServer } from "./servers.ts";
import { warmUp } from "./warm.ts";

/** Makes the images of a disk; starts its server. */
export async function makeImages(soak: Soak, disk: SoakDisk): Promise<RemoteServer | null> {
  const { base, sizeMib, snapshots, isEncrypted, filters } = disk.plan;
  Deno.mkdirSync(disk.folder);
  if (base === "ram") {
    disk.image = `${filters}ram:${sizeMib}`;
    return null;
  }
  if (base === "nbdkit" || base === "qemu-nbd") {
    const server = new RemoteServer(soak, disk);
    await server.create();
    disk.image = base === "nbdkit"
      ? `${filters}nbd:unix:${server.socket}`
      : `${filters}nbd+unix:///?socket=${server.socket}`;
    return server;
  }
  // The name of a key's file begins with that of its image.
  let path = `${disk.folder}/disk.${base === "raw" ? "raw" : "vhd"}`;
  if (base === "raw") {
    Deno.writeFileSync(path, new Uint8Array(0));
    Deno.truncateSync(path, sizeMib * 2 ** 20);
  } else {
    // A dynamic image has room for a larger table, so that a resize needs no journal.
    const how = base === "fixed" ? ["-r"] : ["-S", `${MOST_MIB}`];
    await soak.vhdUtil(disk.name, "create", "-n", path, "-s", `${sizeMib}`, ...how);
  }
  if (isEncrypted) {
    const key = crypto.getRandomValues(new Uint8Array(64));
    Deno.writeFileSync(disk.keyFile, key, { mode: 0o600 });
    await soak.vhdUtil(disk.name, "key", "-s", "-n", path, "-k", disk.keyFile);
  }
  for (let i = 0; i < snapshots; i++) path = await makeSnapshot(soak, disk, path);
  disk.image = disk.imageOf(path);
  return null;
}

/** Makes an image on top of another one with vhd-util. */
export async function makeSnapshot(soak: Soak, disk: SoakDisk, parent: string): Promise<string> {
  const before = disk.model.moment();
  const path = disk.newPath();
  const raw = parent.endsWith(".raw") ? ["-m"] : [];
  await soak.vhdUtil(disk.name, "snapshot", "-n", path, "-p", parent, "-e", ...raw);
  disk.pushLayer({ path: parent, before, after: before });
  return path;
}

/** Options of `tap-ctl open` for a disk. */
function openOptions(disk: SoakDisk): string[] {
  return disk.plan.isEncrypted
    ? [...disk.plan.options, "-k", disk.keyFile]
    : [...disk.plan.options];
}

/** Serves a disk that is not served, in the tapdisk of its group; starts one if there is none. */
export async function serve(soak: Soak, group: Group, disk: SoakDisk): Promise<void> {
  soak.requireNoFinding();
  if (group.isRestored) return await restore(soak, group, disk);
  if (group.pid === 0) group.pid = await spawn(soak, group);
  const { pid, image } = { pid: group.pid, image: disk.image };
  const served = await soak.tapdisks.serve(image, { pid, options: openOptions(disk) });
  soak.journal.note(disk.name, `opened ${image} in ${pid} as minor ${served.minor}`);
  if (!group.isKilled && disk.plan.kind !== IDLE_KIND) await warmUp(pid, served.socket);
  disk.served(served);
}

async function spawn(soak: Soak, { name }: Group): Promise<number> {
  const pid = await soak.tapdisks.spawn();
  soak.processes.set(pid, `tapdisk of ${name}`);
  soak.journal.note(name, `tapdisk ${pid} started`);
  return pid;
}

/**
 * Opens a disk with each of the kernel's interfaces. A tapdisk keeps the descriptors of both until it
 * ends, so they belong to what it takes at the start.
 */
export async function useBothQueues(soak: Soak, disk: SoakDisk): Promise<void> {
  for (const queue of [["--queue", "io_uring"], ["--queue", "libaio"], disk.plan.options]) {
    await soak.tapCtl(disk.name, "close", ...disk.address);
    await soak.tapCtl(disk.name, "open", ...disk.address, "-a", disk.image, ...queue);
  }
}

/** Serves a disk by the list of disks that are served at boot. */
async function restore(soak: Soak, group: Group, disk: SoakDisk): Promise<void> {
  const list = `${soak.folder}/devices.${disk.name}`;
  Deno.writeTextFileSync(list, `${disk.name} ${disk.image} device=none\n`);
  const output = await soak.tapCtl(disk.name, "restore", disk.name, "--file", list);
  const match = /^\S+: (\S+\/nbd(\d+)\.(\d+))/.exec(output);
  if (match === null) throw new Error(`tap-ctl restore printed ${output}`);
  const [, socket, pid, minor] = match;
  group.pid = Number(pid);
  soak.processes.set(group.pid, `tapdisk of ${group.name}`);
  disk.served({ socket, pid: group.pid, minor: Number(minor) });
}

/** Stops serving a disk, whose clients lose their connections. */
export async function unserve(soak: Soak, group: Group, disk: SoakDisk): Promise<void> {
  const { address } = disk;
  const { pid } = group;
  disk.interrupt();
  const isLast = group.disks.every(({ place }) => place === null);
  if (isLast) {
    soak.processes.delete(pid);
    group.pid = 0;
  }
  if (group.isRestored) await soak.tapCtl(disk.name, "restore", "--stop", disk.name);
  else await soak.tapCtl(disk.name, "destroy", ...address);
  if (disk.isVolatile) disk.model.reset();
}
