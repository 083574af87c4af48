import { Tapdisks, waitUntil } from "../support/served.ts";
import { findTool, runOk } from "../support/tools.ts";

/** The servers that are compared; the first two are ours. */
export const serverNames = ["vhd", "raw", "qemu-vhd", "nbdkit-raw"] as const;
/** What moves the bytes under our own; "auto" is what they take when nobody says. */
export const queueNames = ["auto", "libaio", "io_uring"] as const;
/** One of `queueNames`. */
export type QueueName = (typeof queueNames)[number];

type OwnName = "vhd" | "raw";
/** One of the servers; ours also with the queue that they were told to take. */
export type ServerName =
  | (typeof serverNames)[number]
  | `${OwnName}-${Exclude<QueueName, "auto">}`;

/** The servers that are called so: ours once on each of the queues. */
export function serversOn(
  queues: readonly QueueName[],
  name: (typeof serverNames)[number],
): ServerName[] {
  if (name !== "vhd" && name !== "raw") return [name];
  return queues.map((queue) => queue === "auto" ? name : `${name}-${queue}` as const);
}

/** A server at work. */
export interface Served {
  readonly pid: number;
  readonly uri: string;
  readonly sizeBytes: number;
  stop(): Promise<void>;
}

/** The images that are served. All hold the same; each server has one of its own to write to. */
export interface Content {
  readonly sizeBytes: number;
  pathOf(server: ServerName): string;
}

/** A way to serve them. */
export interface Server {
  /** What it is in a table. */
  readonly title: string;
  start(folder: string, content: Content): Promise<Served>;
}

const MIB = 1024 * 1024;

/** Makes an image of random data for each server; nothing of it is a hole. */
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
  // What was just written is not to be written back under the first server's load.
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

/** Both VHDs are made the same way, so that they differ by nothing but who serves them. */
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

/** Starts a server that stays in the foreground and has a socket at the end. */
async function startForeground(
  command: string,
  args: readonly string[],
  { socket, sizeBytes }: { socket: string; sizeBytes: number },
): Promise<Served> {
  const child = new Deno.Command(findTool(command) ?? command, {
    args: [...args],
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  await waitUntil(() => exists(socket), `${command} listens`);
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

/** How each is started. qemu and tapdisk go past the page cache where the filesystem can. */
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
