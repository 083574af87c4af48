/**
 * How a VHD names a parent that is an image on Ceph: by the path that the kernel's client gives the image
 * when it is mapped, `/dev/rbd/POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`. So all programs read the same
 * parent: where it is mapped, as a device; where it is not, it is missing for those that do not know
 * Ceph.
 *
 * @module
 */

const FOLDER = "/dev/rbd/";
/** A slash and a backslash are one in a locator; a comma begins the options of tapdisk's names. */
const NAME = /^([^/\\,@\0]+\/){1,2}[^/\\,@\0]+(@[^/\\,@\0]+)?$/;

/** The image that a path means, `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`; null for any other path. */
export function cephNameOfPath(path: string): string | null {
  if (!path.startsWith(FOLDER)) return null;
  const name = path.slice(FOLDER.length);
  return NAME.test(name) && !name.split("/").some((part) => part === "." || part === "..")
    ? name
    : null;
}

/** The path of an image; null for a name that cannot be part of one. */
export function pathOfCephName(name: string): string | null {
  const path = `${FOLDER}${name}`;
  return cephNameOfPath(path) === null ? null : path;
}
