import { Errno } from "../../../ffi/errno.ts";
import { ON_CEPH } from "../../files/confinement.ts";
import { cephNameOfPath } from "../format/ceph_path.ts";
import { VhdChainError } from "./errors.ts";
import type { VhdImage } from "./image.ts";
import { readLocatorName } from "./locator_reader.ts";
import { findParent } from "./parent.ts";

/**
 * The image on Ceph that is an image's parent, `POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]`; null when the parent
 * is a file or a device of this machine, or there is none: what any locator leads to is the parent, as for
 * programs that do not know Ceph. So where the kernel has mapped the image, and devices may be parents, it
 * is a device as before.
 *
 * @throws {VhdChainError} EPERM when images on Ceph are not allowed.
 */
export function parentOnCeph(image: VhdImage): string | null {
  const named = namedOnCeph(image);
  if (named === null || image.confinement.onCeph) return named;
  const problem = `its parent is rbd:${named} (EPERM); allow images on Ceph by --parent-root ` +
    ON_CEPH;
  throw new VhdChainError(image.path, Errno.EPERM, problem);
}

/** The same whether it is allowed or not. */
export function namedOnCeph(image: VhdImage): string | null {
  const { parent, file, confinement, storage } = image;
  if (parent?.raw !== true) return null;
  let named: string | null = null;
  for (const locator of parent.locators) {
    const path = readLocatorName(file, locator);
    if (path === null) continue;
    const { found, refusal } = findParent(image, path);
    if (found !== null) return null;
    const name = cephNameOfPath(path);
    // A device that is refused is no reason to look for another parent than it.
    const isDevice = refusal !== null && storage.exists(path);
    if (confinement.onCeph || !isDevice) named ??= name;
  }
  return named;
}
