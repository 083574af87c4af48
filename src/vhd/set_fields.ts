import { Errno, SystemError } from "../../ffi/errno.ts";
import { encodeBatmapHeader } from "./format/batmap.ts";
import { encodeFooter } from "./format/footer.ts";
import { updateFooters } from "./image/footer_writer.ts";
import { openVhd, type VhdImage } from "./image/image.ts";
import { osStorage, type Storage } from "../files/storage.ts";

/** A byte that the storage manager keeps in an image. */
export type SettableField = "hidden" | "marker";

/** The field and its new value. */
export interface SetFieldOptions {
  readonly storage?: Storage;
  readonly field: SettableField;
  /** 0 or 1 for `hidden`, 0 to 255 for `marker`. */
  readonly value: number;
}

/**
 * Sets the hidden flag, which is in the footers, or the marker, which is in the batmap's header.
 *
 * @throws {SystemError} EINVAL for an invalid value; EOPNOTSUPP for the marker of an image without
 * a batmap; errors of the file system.
 */
export function setField(path: string, options: SetFieldOptions): void {
  const { storage = osStorage, field, value } = options;
  if (!isFieldValue(field, value)) {
    const range = `0 to ${LARGEST_VALUES[field]}`;
    throw new SystemError(
      Errno.EINVAL,
      `Cannot set ${field} of ${path} to ${value}, as it is ${range}`,
    );
  }
  const image = openVhd(path, { storage, readOnly: false });
  try {
    if (field === "hidden") setHidden(image, value);
    else setMarker(image, value);
  } finally {
    image.close();
  }
}

const LARGEST_VALUES: Readonly<Record<SettableField, number>> = { hidden: 1, marker: 255 };

/** Whether a value is valid for a field. The check accepts no other value. */
export function isFieldValue(field: SettableField, value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= LARGEST_VALUES[field];
}

function setHidden(image: VhdImage, value: number): void {
  image.footer.hidden = value;
  try {
    updateFooters(image);
  } catch (error) {
    const full = error instanceof SystemError && error.errno === Errno.ENOSPC;
    if (!full || value === 0 || image.type === "fixed") throw error;
    // An image is hidden before it is deleted. Hiding must work on a full disk, or the deletion
    // could not free space.
    image.file.writeAt(encodeFooter(image.footer), 0);
    image.file.sync();
  }
}

function setMarker({ batmap, file, path }: VhdImage, value: number): void {
  if (batmap === null) {
    throw new SystemError(
      Errno.EOPNOTSUPP,
      `Cannot set the marker of ${path}, which has no batmap to keep it in`,
    );
  }
  batmap.header.marker = value;
  file.writeAt(encodeBatmapHeader(batmap.header), batmap.headerOffsetBytes);
  file.sync();
}
