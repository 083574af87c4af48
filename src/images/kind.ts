import type { RbdMaking } from "../../ffi/rbd_images.ts";
import type { NewFile } from "../files/new_file.ts";
import type { ProgressListener } from "../files/progress.ts";
import type { Storage, StorageFile } from "../files/storage.ts";
import type { CheckResult } from "../vhd/check/check.ts";

/** Options of a new image without a parent. */
export interface NewImageOptions {
  /** Size of the disk, whole sectors. */
  readonly sizeBytes: number;
  /** All room is there from the start, where the type has both: a fixed VHD, a QCOW's table. */
  readonly fixed?: boolean;
  /** What an image on Ceph has other than the cluster's defaults. */
  readonly onCeph?: RbdMaking;
}

/** Options of a new image that is written from start to end. */
export interface SequentialOptions {
  /** Size of the disk, whole sectors. */
  readonly sizeBytes: number;
}

/** Writes bytes to a place of a file, in whole sectors. */
export type PutBytes = (bytes: Uint8Array<ArrayBuffer>, offsetBytes: number) => void;

/** A new image that is written once, from the start of the disk to its end. Calls throw `SystemError`. */
export interface SequentialImage {
  readonly file: StorageFile;
  /**
   * Writes whole sectors behind those before.
   *
   * @param put Writes part of the bytes to a place of the file, now or later, but before `finish`. By
   * default the image does that.
   */
  write(bytes: Uint8Array<ArrayBuffer>, offsetBytes: number, put?: PutBytes): void;
  /** Makes the image whole and durable, and closes it, also when that fails. */
  finish(): void;
  /** Closes an image that is not whole. */
  abandon(): void;
}

/** Such an image whose clusters can be compressed. */
export interface CompressedImage extends SequentialImage {
  readonly clusterBytes: number;
  /** Writes a compressed cluster behind what was written before. */
  writeCompressed(cluster: number, packed: Uint8Array): void;
}

/** How clusters are compressed. */
export type CompressionName = "zlib" | "zstd";

/** Facts about an image that only its type has, by name. */
export type ImageFacts = Readonly<Record<string, string | number | boolean | null>>;

/** A type of image, and what can be done with its images. What is missing cannot be done. */
export interface ImageKind {
  /** The driver's name. */
  readonly type: string;
  /** Whether images can have all their room from the start. */
  readonly hasFixed?: boolean;
  /** Makes an empty image, whose disk reads as zeros. */
  create?(storage: Storage, file: NewFile, options: NewImageOptions): void;
  /** Makes an image that is written from start to end. */
  createSequential?(storage: Storage, file: NewFile, options: SequentialOptions): SequentialImage;
  /** The same for one whose clusters are compressed. */
  createCompressed?(
    storage: Storage,
    file: NewFile,
    options: SequentialOptions & { readonly compression: CompressionName },
  ): CompressedImage;
  /** Says what is special about an image. */
  facts?(storage: Storage, path: string): ImageFacts;
  /** Looks for faults; a damaged image is a result. */
  check?(storage: Storage, path: string, onProgress?: ProgressListener): CheckResult;
  /** Mends what can be mended; returns a line for each repair. */
  repair?(storage: Storage, path: string): string[];
  /** Makes an image that holds the later writes of another. */
  readonly snapshot?: {
    /** The types of drivers that can serve what is below. */
    readonly parents: readonly string[];
    run(storage: Storage, path: string, parent: ParentImage, options: SnapshotImageOptions): void;
    /** The same on an image on Ceph, where the type can name one. */
    onCeph?(storage: Storage, path: string, parent: ParentOnCeph): void;
  };
  /** Gives the disk another size. */
  resize?(storage: Storage, path: string, options: ResizeOptions): void;
  /** Gives unused room back. */
  compact?(
    storage: Storage,
    path: string,
    onProgress?: ProgressListener,
  ): { beforeBytes: number; afterBytes: number };
  /** Changes which image is below, whatever they hold. */
  readonly rebase?: {
    readonly parents: readonly string[];
    /** Refuses an image that shows more of what is below it than its disk. */
    refuse?(storage: Storage, path: string): void;
    run(storage: Storage, path: string, parent: ParentImage): void;
  };
}

/** Options of an image on another. Not all types have them. */
export interface SnapshotImageOptions {
  /** Size of the disk; that of the image below by default. */
  readonly sizeBytes?: number;
  /** See `NewImageOptions`. */
  readonly fixed?: boolean;
}

/** An image that is to be below another. */
export interface ParentImage {
  /** The type of its driver. */
  readonly type: string;
  readonly path: string;
  /** As it was named. */
  readonly name: string;
}

/** An image on Ceph that is to be below another. */
export interface ParentOnCeph {
  /** `POOL[/NAMESPACE]/IMAGE@SNAPSHOT`. */
  readonly name: string;
  /** The user whose key is used; null for the one that is used where none is named. */
  readonly user: string | null;
  /** Size of its disk. */
  readonly sizeBytes: number;
}

/** Options of a resize. */
export interface ResizeOptions {
  readonly sizeBytes: number;
  readonly onProgress?: ProgressListener;
}
