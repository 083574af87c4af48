import { binaryPath, runOk } from "../support/tools.ts";
import { Tapdisks } from "../support/served.ts";
import { fio } from "../support/fio.ts";
import type { Served } from "./measure.ts";
import { startForeground } from "./nbd_servers.ts";

/** The compared servers; the first two are tapdisk. */
export const qcow2Servers = ["qcow2", "vhd", "qemu-nbd", "qemu-storage-daemon"] as const;
export type Qcow2Server = (typeof qcow2Servers)[number];

const MIB = 1 << 20;
const CLUSTER_BYTES = 65536;
/** A new tapdisk runs without machine code for a while; so long it is used before it is measured. */
const WARM_UP_SECONDS = 2;
const WARM_UP_LOADS = ["randread", "randwrite"];
const WARM_UP_SPARSE_MIB = 1 << 20;
const CHAIN_LAYERS = 30;

/** The format of a server's images, for qemu-img. */
function formatOf(server: Qcow2Server): "vpc" | "qcow2" {
  return server === "vhd" ? "vpc" : "qcow2";
}

/** Images of the benchmark, in one folder. */
export class Qcow2Images {
  readonly folder: string;
  readonly sizeMib: number;

  /** @param sizeMib Size of the disks whose data is allocated. */
  constructor(folder: string, sizeMib: number) {
    this.folder = folder;
    this.sizeMib = sizeMib;
  }

  /** An image that has nothing. */
  async empty(server: Qcow2Server, name: string, sizeMib: number): Promise<string> {
    const path = `${this.folder}/${server}-${name}`;
    if (server === "vhd") {
      await runOk(binaryPath("vhd-util"), ["create", "-n", path, "-s", `${sizeMib}`]);
    } else await runOk("qemu-img", ["create", "-q", "-f", "qcow2", path, `${sizeMib}M`]);
    return path;
  }

  /** An image all of whose clusters or blocks hold data. */
  async full(server: Qcow2Server): Promise<string> {
    const path = await this.empty(server, "full", this.sizeMib);
    const tapdisks = new Tapdisks(this.folder);
    try {
      const type = server === "vhd" ? "vhd" : "qcow2";
      const disk = await tapdisks.serve(`${type}:${path}`);
      const size = `size=${this.sizeMib}M`;
      await fio(disk.uri, ["rw=write", "bs=1m", "iodepth=4", "refill_buffers", size]);
      await tapdisks.finish();
    } finally {
      tapdisks.abandon();
    }
    return path;
  }

  /**
   * A chain of images. The lowest holds the whole disk, each one above it every 30th cluster, another
   * one each.
   */
  async chain(full: string): Promise<string> {
    let below = full;
    const clusters = this.sizeMib * MIB / CLUSTER_BYTES;
    for (let layer = 1; layer < CHAIN_LAYERS; layer++) {
      const path = `${this.folder}/layer-${layer}`;
      const backing = ["-b", below, "-F", "qcow2"];
      await runOk("qemu-img", ["create", "-q", "-f", "qcow2", ...backing, path]);
      const commands: string[] = [];
      for (let cluster = layer; cluster < clusters; cluster += CHAIN_LAYERS) {
        commands.push(`write -q -P ${layer} ${cluster * CLUSTER_BYTES} ${CLUSTER_BYTES}`);
      }
      await runOk("qemu-io", ["-f", "qcow2", path], { stdin: commands.join("\n") + "\n" });
      below = path;
    }
    return below;
  }
}

/** Starts the servers. Each kind of image of tapdisk has a process that runs as long as this lives. */
export class Qcow2Starter {
  readonly #tapdisks: Tapdisks;
  readonly #images: Qcow2Images;
  /** By kind of image. */
  readonly #pids = new Map<Qcow2Server, number>();

  constructor(images: Qcow2Images) {
    this.#images = images;
    this.#tapdisks = new Tapdisks(images.folder);
  }

  /** Starts the processes of tapdisk, and uses them for a while. */
  async warmUp(): Promise<void> {
    for (const server of ["qcow2", "vhd"] as const) {
      const path = await this.#images.empty(server, "warm-up", WARM_UP_SPARSE_MIB);
      const pid = await this.#tapdisks.spawn();
      this.#pids.set(server, pid);
      const { uri } = await this.#tapdisks.serve(`${server}:${path}`, { pid });
      for (const rw of WARM_UP_LOADS) {
        const length = ["time_based", `runtime=${WARM_UP_SECONDS}`, `size=${WARM_UP_SPARSE_MIB}M`];
        await fio(uri, [`rw=${rw}`, "bs=4k", "iodepth=32", "norandommap", ...length]);
      }
    }
  }

  /** Serves an image. */
  async start(server: Qcow2Server, path: string, sizeMib: number): Promise<Served> {
    const sizeBytes = sizeMib * MIB;
    const socket = `${path}.sock`;
    if (server === "qemu-nbd") {
      const args = ["--persistent", "--shared=8", "-f", formatOf(server), `--socket=${socket}`];
      return await startForeground("qemu-nbd", [...args, path], { socket, sizeBytes });
    }
    if (server === "qemu-storage-daemon") {
      const ready = `${path}.pid`;
      const args = [
        ["--blockdev", `driver=file,node-name=file,filename=${path}`],
        ["--blockdev", `driver=${formatOf(server)},node-name=disk,file=file`],
        ["--nbd-server", `addr.type=unix,addr.path=${socket}`],
        ["--export", "type=nbd,id=export,node-name=disk,name=,writable=on"],
        ["--pidfile", ready],
      ];
      return await startForeground(server, args.flat(), { socket, sizeBytes, ready });
    }
    const disk = await this.#tapdisks.serve(`${server}:${path}`, { pid: this.#pids.get(server) });
    const stop = (): Promise<void> => this.#tapdisks.stop(disk);
    return { pid: disk.pid, uri: disk.uri, sizeBytes, stop };
  }

  /** Ends the processes of tapdisk. */
  async finish(): Promise<void> {
    await this.#tapdisks.finish();
  }

  /** Ends what an error has left. */
  abandon(): void {
    this.#tapdisks.abandon();
  }
}
