import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { KeyHash } from "../format/batmap.ts";
import { readBatmapHeader } from "../image/batmap_reader.ts";
import { resolveParent } from "../image/parent.ts";
import { VhdChainError } from "../image/errors.ts";
import {
  decodeFooter,
  type Footer,
  footerFault,
  HD_FOOTER_SIZE,
  HD_TYPE_DIFF,
  HD_TYPE_FIXED,
} from "../format/footer.ts";
import { readFooter } from "../image/footer_reader.ts";
import { DD_HEADER_SIZE, decodeHeader, type DynamicHeader } from "../format/header.ts";
import { readHeader } from "../image/header_reader.ts";
import { openVhd, type VhdImage } from "../image/image.ts";
import { readLocatorName } from "../image/locator_reader.ts";
import {
  decodeParentName,
  type ParentLocator,
  PLAT_CODE_MACX,
  PLAT_CODE_NONE,
  PLAT_CODE_W2RU,
} from "../format/locator.ts";
import type { FileIdentity, Storage, StorageFile } from "../../files/storage.ts";
import { isNullUuid } from "../format/uuid.ts";

/** The result of the scan of an image. */
export interface ScannedImage {
  /** Size of the virtual disk, in bytes. */
  readonly capacityBytes: number;
  readonly hidden: number;
  /** The parent's stored name, or its path when it was found; null without a parent. */
  readonly parent: string | null;
  readonly rawParent: boolean;
  readonly marker: number;
  readonly keyhash: KeyHash | null;
}

/** An error in the scan of an image, with the step that failed. */
export class ScanError extends SystemError {
  /** @param doing The step that failed: `opening file`. */
  constructor(readonly doing: string, cause: SystemError) {
    super(cause.errno, doing, { file: cause.file ?? undefined, cause, message: cause.message });
  }
}

function attempt<T>(doing: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof SystemError) throw new ScanError(doing, error);
    throw error;
  }
}

/** Reads only the footer and the header. The parent is the file name in the header. */
export function scanFast(
  storage: Storage,
  path: string,
  { markers }: { markers: boolean },
): ScannedImage {
  const file = attempt("opening file", () => storage.open(path, "read"));
  try {
    const { footer, header } = attempt("opening file", () => {
      const { footer } = readFooter(file, {});
      return {
        footer,
        header: footer.diskType === HD_TYPE_FIXED ? null : readHeader(file, footer).header,
      };
    });
    const batmap = markers && header !== null
      ? attempt("checking markers", () => readBatmapHeader(file, footer, header))
      : null;
    const parent = header === null || footer.diskType !== HD_TYPE_DIFF
      ? null
      : headerParent(header) ?? attempt("getting parent", () => storedParent(file, header));
    return {
      ...footerFacts(footer, header),
      parent,
      marker: batmap?.marker ?? 0,
      keyhash: batmap?.keyhash ?? null,
    };
  } finally {
    file.close();
  }
}

/** Reads all metadata and locates the parent. The parent is a path when it was found. */
export function scanFully(storage: Storage, path: string): ScannedImage {
  const image = attempt(
    "opening file",
    () => openVhd(path, { storage, lenient: true, ignoreDisabled: true }),
  );
  try {
    return {
      ...footerFacts(image.footer, image.header),
      parent: image.parent === null ? null : attempt("getting parent", () => parentOf(image)),
      marker: image.batmap?.header.marker ?? 0,
      keyhash: image.batmap?.header.keyhash ?? null,
    };
  } finally {
    image.close();
  }
}

function parentOf(image: VhdImage): string {
  try {
    return resolveParent(image, { anyUuid: true });
  } catch (error) {
    if (!(error instanceof VhdChainError) || image.header === null) throw error;
    return storedParent(image.file, image.header);
  }
}

/**
 * Scans an image that starts at an offset of a device: a logical volume, which need not be active.
 * The backup footer and the header behind it are read.
 */
export function scanVolume(
  storage: Storage,
  device: string,
  { startBytes }: { startBytes: number },
): ScannedImage {
  const file = attempt("opening device", () => storage.open(device, "read"));
  try {
    const bytes = new Uint8Array(HD_FOOTER_SIZE + DD_HEADER_SIZE);
    attempt("reading headers", () => file.readAt(bytes, startBytes));
    const fault = footerFault(bytes.subarray(0, HD_FOOTER_SIZE));
    if (fault !== null) {
      const problem = `footer.${fault.field} at byte ${startBytes} is not ${fault.expected}`;
      throw new ScanError("invalid footer", invalid(device, problem));
    }
    const footer = decodeFooter(bytes.subarray(0, HD_FOOTER_SIZE));
    if (footer.diskType === HD_TYPE_FIXED) {
      return { ...footerFacts(footer, null), parent: null, marker: 0, keyhash: null };
    }
    return scanVolumeHeader(file, footer, startBytes);
  } finally {
    file.close();
  }
}

function scanVolumeHeader(file: StorageFile, footer: Footer, startBytes: number): ScannedImage {
  const view = new VolumeFile(file, startBytes);
  const header = attempt("reading header", () => {
    const bytes = new Uint8Array(DD_HEADER_SIZE);
    view.readAt(bytes, Number(footer.dataOffset));
    const header = decodeHeader(bytes);
    if (header.cookie === "cxsparse") return header;
    throw invalid(file.path, `there is no header at byte ${footer.dataOffset} of the volume`);
  });
  const batmap = attempt("checking markers", () => readBatmapHeader(view, footer, header));
  const parent = footer.diskType !== HD_TYPE_DIFF
    ? null
    : headerParent(header) ?? attempt("getting parent", () => storedParent(view, header));
  return {
    ...footerFacts(footer, header),
    parent,
    marker: batmap?.marker ?? 0,
    keyhash: batmap?.keyhash ?? null,
  };
}

function invalid(path: string, problem: string): SystemError {
  return new SystemError(Errno.EINVAL, `Cannot scan ${path}: ${problem}`);
}

/** A part of a device, from an offset to its end, for reading. */
class VolumeFile implements StorageFile {
  readonly isBlockDevice = true;
  readonly path: string;
  readonly identity: FileIdentity;
  readonly isShared = false;
  readonly #file: StorageFile;
  readonly #startBytes: number;

  constructor(file: StorageFile, startBytes: number) {
    this.path = file.path;
    this.identity = file.identity;
    this.#file = file;
    this.#startBytes = startBytes;
  }

  sizeBytes(): number {
    return this.#file.sizeBytes() - this.#startBytes;
  }

  readAt(into: Uint8Array<ArrayBuffer>, offsetBytes: number): number {
    return this.#file.readAt(into, this.#startBytes + offsetBytes);
  }

  writeAt(): void {
    throw new TypeError(`${this.path} is open for reading only`);
  }

  truncate(): void {
    this.writeAt();
  }

  allocatedRun(_offsetBytes: number, lengthBytes: number): number {
    return lengthBytes;
  }

  punchHole(): boolean {
    return false;
  }

  refuseReaders(): void {
    this.writeAt();
  }

  sync(): void {}

  close(): void {}
}

function footerFacts(
  footer: Footer,
  header: DynamicHeader | null,
): Pick<ScannedImage, "capacityBytes" | "hidden" | "rawParent"> {
  return {
    capacityBytes: Number(footer.currentSize),
    hidden: footer.hidden,
    rawParent: footer.diskType === HD_TYPE_DIFF && header !== null && isNullUuid(header.parentUuid),
  };
}

function headerParent(header: DynamicHeader): string | null {
  return decodeParentName(header.parentName) || null;
}

/** The parent name of a locator. A MACX locator is preferred. The file need not exist. */
function storedParent(file: StorageFile, header: DynamicHeader): string {
  const used = header.locators.filter(({ code }) => code !== PLAT_CODE_NONE);
  const locator: ParentLocator | undefined = used.find(({ code }) => code === PLAT_CODE_MACX) ??
    used.findLast(({ code }) => code === PLAT_CODE_W2RU) ?? used[0];
  if (locator !== undefined) {
    const name = readLocatorName(file, locator);
    if (name !== null) return name;
  }
  throw invalid(file.path, "none of its parent locators can be read");
}
