/**
 * A storage migration between two hosts, by the calls that xapi (storage_smapiv1_migrate) and XenServer's
 * storage manager (FileSR) make: each host has a control folder and a folder of images of its own, and
 * the only way between them is TCP.
 *
 * @module
 */
import assert from "node:assert/strict";
import { copyBlocks, readAll } from "./copy_blocks.ts";
import { handOver, tcpPair } from "./hand_over.ts";
import { createVhd, type Disk, snapshotVhd, Tapdisks, vhdUtilOk } from "./served.ts";

/** What xapi reads of `tap-ctl stats`. */
export interface MirrorStatistics {
  readonly nbd_mirror_failed: number;
  readonly reqs_outstanding: number;
}

/** One of the two hosts. */
export class Host {
  readonly tapdisks: Tapdisks;
  readonly #images: string;

  /** @param images The folder of its images; a full one is full for this host alone. */
  constructor(folder: string, images = `${folder}/images`) {
    Deno.mkdirSync(images, { recursive: true });
    this.tapdisks = new Tapdisks(folder);
    this.#images = images;
  }

  image(name: string): string {
    return `${this.#images}/${name}.vhd`;
  }

  create(name: string, sizeMib: number): Promise<string> {
    return createVhd(this.image(name), sizeMib);
  }

  serve(name: string, ...options: string[]): Promise<Disk> {
    return this.tapdisks.serve(`vhd:${this.image(name)}`, { options });
  }

  /**
   * Makes the image `name` the base `base` of a new leaf of that name, as a snapshot does. The disk
   * must be paused or closed.
   */
  async divide(name: string, base: string): Promise<void> {
    Deno.renameSync(this.image(name), this.image(base));
    await snapshotVhd(this.image(name), this.image(base));
  }

  async statistics({ pid, minor }: Disk): Promise<MirrorStatistics> {
    return JSON.parse(await this.tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${minor}`));
  }

  pause({ pid, minor }: Disk): Promise<string> {
    return this.tapdisks.tapCtlOk("pause", "-p", `${pid}`, "-m", `${minor}`);
  }

  unpause({ pid, minor, image }: Disk, mirror?: string): Promise<string> {
    const secondary = mirror === undefined ? [] : ["-2", mirror];
    const address = ["-p", `${pid}`, "-m", `${minor}`];
    return this.tapdisks.tapCtlOk("unpause", ...address, ...secondary, "-a", image);
  }
}

/** One migration of a disk that a guest uses. */
export class Migration {
  /** The data path: the name of the descriptor. */
  readonly dp = `mirror/${crypto.randomUUID()}`;
  readonly source: Host;
  readonly disk: Disk;
  readonly destination: Host;
  readonly #sizeMib: number;
  /** The disk that receives what the guest writes. */
  #mirror: Disk | undefined;

  /** @param disk The disk on the image `leaf` of the source. */
  constructor(source: Host, disk: Disk, destination: Host, sizeMib: number) {
    this.source = source;
    this.disk = disk;
    this.destination = destination;
    this.#sizeMib = sizeMib;
  }

  /** The disk at the destination that receives what the guest writes. */
  get mirror(): Disk {
    assert.ok(this.#mirror !== undefined, "the destination is ready");
    return this.#mirror;
  }

  /** Prepares the destination (receive_start): an empty leaf on an empty snapshot, and a blank parent. */
  async receiveStart(): Promise<void> {
    const { destination } = this;
    await destination.create("leaf", this.#sizeMib);
    await destination.divide("leaf", "dummy");
    this.#mirror = await destination.serve("leaf");
    await destination.create("parent", this.#sizeMib);
  }

  /** Connects the hosts, and hands one end to the tapdisk of each (mirror_pass_fds, nbd_handler). */
  passDescriptors(): void {
    const [here, there] = tcpPair();
    const { pid, minor } = this.mirror;
    const [from, to] = [
      this.source.tapdisks.controlFolder,
      this.destination.tapdisks.controlFolder,
    ];
    handOver(`${to}/nbdserver${pid}.${minor}`, this.dp, there);
    handOver(`${from}/nbdclient${this.disk.pid}`, this.dp, here);
  }

  /** Snapshots the disk, whose new leaf is mirrored (mirror_snapshot). */
  async snapshot(): Promise<void> {
    await this.source.pause(this.disk);
    await this.source.divide("leaf", "base");
    await snapshotVhd(this.source.image("snapshot"), this.source.image("base"));
    await this.source.unpause(this.disk, `nbd:${this.dp}`);
  }

  /** Copies the snapshot to the blank parent, below the mirror (mirror_copy). Returns its bytes. */
  async copySnapshot(): Promise<number> {
    const from = await this.source.serve("snapshot", "-R");
    const to = await this.destination.serve("parent");
    const copied = await copyBlocks(from.socket, to.socket);
    await this.source.tapdisks.stop(from);
    await this.destination.tapdisks.stop(to);
    Deno.removeSync(this.source.image("snapshot"));
    return copied;
  }

  /** Waits until no request is under way (pre_deactivate_hook); returns what is known then. */
  async settle(): Promise<MirrorStatistics> {
    for (let left = 150; left > 0; left--) {
      const seen = await this.source.statistics(this.disk);
      if (seen.reqs_outstanding === 0) return seen;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    throw new Error("Requests are outstanding after 150 seconds");
  }

  /**
   * Ends the source, and puts the copied snapshot below the leaf (receive_finalize2).
   *
   * @returns The disk at the destination, and the content that the source had.
   */
  async cutOver(): Promise<{ disk: Disk; content: Uint8Array<ArrayBuffer> }> {
    const content = await readAll(this.disk.socket);
    await this.source.tapdisks.stop(this.disk);
    const { destination } = this;
    await destination.tapdisks.stop(this.mirror);
    const [leaf, parent] = [destination.image("leaf"), destination.image("parent")];
    await vhdUtilOk("modify", "-n", leaf, "-p", parent);
    Deno.removeSync(destination.image("dummy"));
    await vhdUtilOk("check", "-n", leaf);
    return { disk: await destination.serve("leaf"), content };
  }
}
