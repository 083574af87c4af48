import type { RbdSession } from "../../../ffi/rbd_session.ts";
import type { ImageSpec, Prepared } from "../driver.ts";

/** An image that is open, and whose requests have not begun. */
export class OpenedImage implements Prepared {
  readonly session: RbdSession;
  readonly #spec: ImageSpec;

  constructor(spec: ImageSpec, session: RbdSession) {
    this.session = session;
    this.#spec = spec;
  }

  /**
   * Whether it is the image that is to be opened. The image above may name another one since this was
   * opened, and a device may have more than one image on a cluster.
   */
  isThatOf({ path, readOnly }: ImageSpec): boolean {
    return path === this.#spec.path && readOnly === this.#spec.readOnly;
  }

  discard(): void {
    letGo(this.session);
  }
}

/** Closes an image to which nothing was written, without waiting for the end. */
export function letGo(session: RbdSession): void {
  session.close({ flush: false }).catch(() => {});
}
