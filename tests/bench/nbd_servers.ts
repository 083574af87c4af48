import { Tapdisks, waitUntil } from "../support/served.ts";
import { findTool, runOk } from "../support/tools.ts";
import type { Served } from "./measure.ts";

/** The compared servers; the first two are tapdisk. */
export const serverNames = ["vhd", "raw", "qemu-vhd", "nbdkit-raw"] as const;
/** The disk queues of tapdisk; "auto" is the default of tapdisk. */
export const queueNames = ["auto", "libaio", "io_uring"] as const;
export type QueueName = (typeof queueNames)[number];

type OwnName = "vhd" | "raw";
/** One of the servers; for tapdisk also with a queue. */
export type ServerName =
  | (typeof serverNames)[number]
  | `${OwnName}-${Exclude<QueueName, "auto">}`;

/** The servers of these names: tapdisk once on each of the queues. */
export function serversOn(
  queues: readonly QueueName[],
  name: (typeof serverNames)[number],
): ServerName[] {
  if (name !== "vhd" && name !== "raw") return [name];
  return queues.map((queue) => queue === "auto" ? name : `${name}-${queue}` as const);
}

/** The served images. All have the same content; each server writes to its own image. */
export interface Content {
  readonly sizeBytes: number;
  pathOf(server: ServerName): string;
}

/** A server program and its command line. */
export interface Server {
  readonly title: string;
  start(folder: string, content: Content): Promise<Served>;
}

const MIB = 1024 * 1024;

/** Creates an image of random data, without holes, for each server. */
export async function makeContent(
  folder: string,
  { sizeMib, servers }: { sizeMib: number; servers: readonly ServerName[] },
): Promise<Content> {
  const source = `${folder}/source.raw`;
  const sizeBytes = sizeMib * MIB;
  writeRandom(source, sizeMib);
  const pathOf = (server: ServerName): string =>
    `${folder}/${server}.${server.includes("vhd") ? "vhd" : "raw"}`;
  for (const server of servers) {
    const path = pathOf(server);
    if (path.endsWith(".vhd")) await fillVhd(folder, { path, source, sizeMib });
    else await runOk("cp", ["--sparse=never", source, path]);
  }
  Deno.removeSync(source);
  // Writeback of the new data must not run during the load of the first server.
  await runOk("sync", []);
  return { sizeBytes, pathOf };
}

function writeRandom(path: string, sizeMib: number): void {
  using file = Deno.openSync(path, { create: true, write: true });
  const chunk = new Uint8Array(MIB);
  for (let i = 0; i < sizeMib; i++) {
    for (let at = 0; at < MIB; at += 65536) {
      crypto.getRandomValues(chunk.subarray(at, at + 65536));
    }
    file.writeSync(chunk);
  }
}

/** Both VHDs are created in the same way, so that only the server differs. */
async function fillVhd(
  folder: string,
  { path, source, sizeMib }: { path: string; source: string; sizeMib: number },
): Promise<void> {
  const tapdisks = new Tapdisks(folder);
  await runOk(new URL("../../dist/vhd-util", import.meta.url).pathname, [
    "create",
    "-n",
    path,
    "-s",
    `${sizeMib}`,
  ]);
  const disk = await tapdisks.serve(`vhd:${path}`);
  const raw = ["-f", "raw", "-O", "raw"];
  await runOk("qemu-img", ["convert", "-n", "-W", ...raw, source, disk.uri], {
    timeoutMs: 600_000,
  });
  await tapdisks.finish();
}

function tapdiskServer(name: OwnName, queue: QueueName): Server {
  const format = name === "vhd" ? "VHD" : "raw";
  const server = serversOn([queue], name)[0];
  return {
    title: queue === "auto" ? `tapdisk, ${format}` : `tapdisk, ${format}, ${queue}`,
    async start(folder, { sizeBytes, pathOf }): Promise<Served> {
      const tapdisks = new Tapdisks(folder, queue);
      const image = `${name === "vhd" ? "vhd" : "aio"}:${pathOf(server)}`;
      const { pid, uri } = await tapdisks.serve(image);
      return { pid, uri, sizeBytes, stop: () => tapdisks.finish() };
    },
  };
}

/**
 * Starts a server in the foreground.
 *
 * @param ready The file that is there when the server listens; the socket by default.
 */
export async function startForeground(
  command: string,
  args: readonly string[],
  { socket, sizeBytes, ready = socket }: { socket: string; sizeBytes: number; ready?: string },
): Promise<Served> {
  const child = new Deno.Command(findTool(command) ?? command, {
    args: [...args],
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  await waitUntil(() => exists(ready), `${command} listens`);
  return {
    pid: child.pid,
    uri: `nbd+unix:///?socket=${socket}`,
    sizeBytes,
    async stop(): Promise<void> {
      child.kill("SIGTERM");
      await child.status;
    },
  };
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** How each server is started. qemu and tapdisk use direct I/O where the filesystem supports it. */
export const SERVERS: Readonly<Record<ServerName, Server>> = {
  "vhd": tapdiskServer("vhd", "auto"),
  "raw": tapdiskServer("raw", "auto"),
  "vhd-libaio": tapdiskServer("vhd", "libaio"),
  "raw-libaio": tapdiskServer("raw", "libaio"),
  "vhd-io_uring": tapdiskServer("vhd", "io_uring"),
  "raw-io_uring": tapdiskServer("raw", "io_uring"),
  "qemu-vhd": {
    title: "qemu-nbd, VHD",
    start: (folder, { sizeBytes, pathOf }) => {
      const socket = `${folder}/qemu.sock`;
      const args = ["--persistent", "--shared=8", "-f", "vpc", `--socket=${socket}`];
      const image = pathOf("qemu-vhd");
      return startForeground("qemu-nbd", [...args, image], { socket, sizeBytes });
    },
  },
  "nbdkit-raw": {
    title: "nbdkit, raw",
    start: (folder, { sizeBytes, pathOf }) => {
      const socket = `${folder}/nbdkit.sock`;
      const args = ["--foreground", "--unix", socket, "file", pathOf("nbdkit-raw")];
      return startForeground("nbdkit", args, { socket, sizeBytes });
    },
  },
};
