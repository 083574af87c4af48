import { type ClusterMap, Holds } from "./cluster_map.ts";

/** Clusters of which it is known which image has them; a power of 2. */
const KNOWN_CLUSTERS = 65536;
/** With fewer images it is as fast to ask each. */
const FEWEST_LAYERS = 3;

/** An image of a chain that is only read. */
interface Layer<Disk> {
  readonly disk: Disk;
  readonly map: ClusterMap;
  readonly sectors: number;
}

/**
 * Remembers which image of a chain has a cluster, so that a read does not ask all images above it.
 * The images are QCOW2 images one below the other, which are only read: what their tables say does
 * not change while they are open. A program that merges one into another below it moves no cluster
 * that is not in one of them, and leaves the upper one as it is.
 */
export class DeepReads<Disk> {
  #layers: readonly Layer<Disk>[];
  /** Sectors that all images below the first have. Behind them a read asks one after the other. */
  #covered = Infinity;
  /** By the lower bits of a cluster: the upper bits + 1 of the one that is known, and its layer. */
  #known = new Uint32Array(0);
  #layerOf = new Uint8Array(0);

  constructor(layer: Layer<Disk>) {
    this.#layers = [layer];
  }

  /** Puts the images of another chain below this one; false when their clusters have another size. */
  takeBelow(below: DeepReads<Disk>): boolean {
    const [{ map }] = this.#layers;
    const [first] = below.#layers;
    if (map.geometry.clusterSectors !== first.map.geometry.clusterSectors) return false;
    this.#layers = [...this.#layers, ...below.#layers];
    this.#covered = Math.min(first.sectors, below.#covered);
    return true;
  }

  /**
   * The image from which sectors of one cluster are to be read, which goes on below where it has
   * nothing: all images in front of it have nothing of the cluster.
   */
  diskOf(sector: number, count: number): Disk {
    const layers = this.#layers;
    if (layers.length < FEWEST_LAYERS || sector + count > this.#covered) return layers[0].disk;
    if (this.#known.length === 0) this.#makeRoom();
    const cluster = layers[0].map.clusterOf(sector);
    const index = cluster & (KNOWN_CLUSTERS - 1);
    const tag = Math.floor(cluster / KNOWN_CLUSTERS) + 1;
    if (this.#known[index] === tag) return layers[this.#layerOf[index]].disk;
    return layers[this.#find(cluster, index, tag)].disk;
  }

  #makeRoom(): void {
    this.#known = new Uint32Array(KNOWN_CLUSTERS);
    this.#layerOf = new Uint8Array(KNOWN_CLUSTERS);
  }

  /** The first layer that has something of a cluster, or that has to read a table to know. */
  #find(cluster: number, index: number, tag: number): number {
    const layers = this.#layers;
    const last = layers.length - 1;
    let layer = 0;
    for (; layer < last; layer++) {
      const holds = layers[layer].map.holds(cluster);
      if (holds === Holds.Unknown) return layer;
      if (holds === Holds.Something) break;
    }
    this.#known[index] = tag;
    this.#layerOf[index] = layer;
    return layer;
  }
}
