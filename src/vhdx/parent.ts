import { Errno } from "../../ffi/errno.ts";
import { locateNamed, type NamedFile } from "../qcow2/image/named_files.ts";
import { SystemError } from "../../ffi/errno.ts";
import { vhdxUnknown } from "./errors.ts";
import { guidAt, VHDX_LOCATOR, wideTextAt } from "./format.ts";
import { openVhdx, type OpenVhdxOptions, type VhdxImage } from "./image.ts";

/** The most entries of a locator; known ones have five. */
const MOST_ENTRIES = 64;

/** What a differencing image says of its parent. */
interface ParentNames {
  /** GUIDs one of which the parent's data has. */
  readonly linkages: readonly string[];
  /** Names of its file, the best one first. */
  readonly paths: readonly string[];
}

/** The parent of an image. */
export interface FoundVhdxParent extends NamedFile {
  readonly linkages: readonly string[];
}

/**
 * Reads the names of an image's parent; null without one. Names of Windows are turned into names from
 * the image's folder.
 *
 * @throws {SystemError} EOPNOTSUPP for a locator of an unknown type.
 */
function parentNames(image: VhdxImage): ParentNames | null {
  const { locator } = image;
  if (locator === null) return null;
  const view = new DataView(locator.buffer, locator.byteOffset, locator.byteLength);
  const type = locator.length < 20 ? "(none)" : guidAt(view, 0);
  if (type !== VHDX_LOCATOR) throw vhdxUnknown(image.path, `a parent of the unknown type ${type}`);
  const values = new Map<string, string>();
  const count = Math.min(view.getUint16(18, true), MOST_ENTRIES);
  for (let i = 0; i < count && 20 + 12 * (i + 1) <= locator.length; i++) {
    const at = 20 + 12 * i;
    const key = wideTextAt(locator, view.getUint32(at, true), view.getUint16(at + 8, true));
    const value = wideTextAt(locator, view.getUint32(at + 4, true), view.getUint16(at + 10, true));
    values.set(key, value);
  }
  const linkages = ["parent_linkage", "parent_linkage2"].flatMap((key) =>
    values.get(key)?.replace(/[{}]/g, "").toLowerCase() ?? []
  );
  const relative = values.get("relative_path")?.replaceAll("\\", "/");
  const absolute = ["absolute_win32_path", "volume_path"].flatMap((key) =>
    values.get(key)?.split(/[\\/]/).at(-1) ?? []
  );
  const named = [...(relative === undefined ? [] : [relative]), ...absolute];
  const paths = named.filter((name) => name !== "" && !name.includes("\0"));
  return { linkages, paths: [...new Set(paths)] };
}

/**
 * Finds the parent of an image; null without one.
 *
 * @throws {SystemError} ENOENT when no name leads to a file; EPERM for a place that is not allowed.
 */
export function locateVhdxParent(image: VhdxImage): FoundVhdxParent | null {
  const names = parentNames(image);
  if (names === null) return null;
  let first: unknown = null;
  for (const name of names.paths) {
    try {
      return {
        ...locateNamed(image, name.replace(/^\.\//, ""), "parent"),
        linkages: names.linkages,
      };
    } catch (error) {
      first ??= error;
    }
  }
  if (first !== null) throw first;
  throw new SystemError(Errno.EINVAL, `Cannot open ${image.path}: it does not name its parent`);
}

/**
 * Opens the parent that was located, and checks that it is the one that the child was made from.
 *
 * @throws {SystemError} EINVAL for another image, or one that was changed since; errors of `openVhdx`.
 */
export function openVhdxParent(
  { path, device, inode, childPath, confinement, linkages }: FoundVhdxParent,
  options: OpenVhdxOptions,
): VhdxImage {
  const image = openVhdx(path, { ...options, same: { device, inode }, confinement });
  const { dataWriteGuid } = image.header;
  if (linkages.includes(dataWriteGuid)) return image;
  image.close();
  const expected = linkages.length === 0 ? "nothing" : linkages.join(" or ");
  throw new SystemError(
    Errno.EINVAL,
    `Cannot follow the chain from ${childPath}: the data of ${path} is ${dataWriteGuid}, but the child ` +
      `was made from ${expected}`,
  );
}
