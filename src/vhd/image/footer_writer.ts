import { encodeFooter, HD_FOOTER_SIZE } from "../format/footer.ts";
import type { VhdImage } from "./image.ts";

/** Bytes of the footers that early tools wrote: all but the last, which is zero. */
const SHORT_FOOTER_SIZE = 511;

/**
 * Writes changed fields of an image's footer where its footers are, and syncs the file. Nothing else
 * moves. A file without a footer at its end is one that a tapdisk let grow before it died: then it is
 * the backup alone that counts.
 */
export function updateFooters(image: VhdImage): void {
  const { file, footerSource, type } = image;
  const bytes = encodeFooter(image.footer);
  if (footerSource === "short") {
    const short = bytes.subarray(0, SHORT_FOOTER_SIZE);
    file.writeAt(short, file.sizeBytes() - SHORT_FOOTER_SIZE);
  } else if (file.isBlockDevice || footerSource === "primary") {
    file.writeAt(bytes, file.sizeBytes() - HD_FOOTER_SIZE);
  }
  if (type !== "fixed") file.writeAt(bytes, 0);
  file.sync();
}
