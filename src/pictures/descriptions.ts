/** An image, as pictures of chains show it. */
export interface LayerDescription {
  /** The name that is shown: a path, or `vhd:/disk.vhd`. */
  readonly name: string;
  /** `vhd`; empty when it is unknown. */
  readonly type: string;
  /** Size of the disk; null when it is unknown. */
  readonly sizeBytes: number | null;
  /** Length of the file; null for what is no file, and when it is unknown. */
  readonly fileBytes: number | null;
  /** How much of the disk the image holds itself; null when it is unknown. */
  readonly heldBytes: number | null;
  /** Words about it: `hidden`, `read-only`. */
  readonly notes: readonly string[];
  /** What is wrong with it: `missing`; null when nothing is. */
  readonly problem: string | null;
}

/** An image and the images that are made on it. */
export interface TreeDescription extends LayerDescription {
  readonly children: readonly TreeDescription[];
}

/** A range of a disk, and the image that holds it. */
export interface LayerExtent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** The number of the image: 0 for the topmost; null or negative where no image holds data. */
  readonly layer: number | null;
}

/** A disk, as its map is drawn. */
export interface DiskDescription {
  /** The name that is shown. */
  readonly name: string;
  readonly sizeBytes: number;
  /** The names of the images that are shown, the topmost first. */
  readonly layers: readonly string[];
}
