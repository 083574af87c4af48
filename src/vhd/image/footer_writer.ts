import { encodeFooter, HD_FOOTER_SIZE } from "../format/footer.ts";
import type { VhdImage } from "./image.ts";

/** Length of the footers that early tools wrote. The missing last byte counts as zero. */
const SHORT_FOOTER_SIZE = 511;

/**
 * Writes the changed fields of a footer to all of the image's footers, and syncs the file. No
 * footer moves. A file without a footer at its end was extended by a tapdisk that then died: only
 * the backup is valid, and only the backup is written.
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
