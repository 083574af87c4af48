import type { Findings } from "./findings.ts";
import {
  createdByTap,
  decodeFooter,
  type Footer,
  FOOTER_OFFSETS,
  footerFault,
  HD_COOKIE,
  HD_FF_VERSION,
  HD_FOOTER_SIZE,
  HD_RESERVED,
  HD_TEMPORARY,
  HD_TYPE_DIFF,
  HD_TYPE_DYNAMIC,
  HD_TYPE_FIXED,
  VHD_CURRENT_VERSION,
  VHD_NO_OFFSET,
} from "../format/footer.ts";
import { readFooterBytes } from "../image/footer_reader.ts";
import { geometryOfSize, packGeometry } from "../format/geometry.ts";
import type { StorageFile } from "../../files/storage.ts";
import { vhdTimeNow } from "../format/time.ts";
import { isNullUuid } from "../format/uuid.ts";

/**
 * The largest distance of a time stamp in the future, in seconds. The clocks of file servers may be
 * wrong.
 */
export const TIMESTAMP_MAX_SLACK = 1800;

/** Options of the check of the footers. */
export interface FooterCheckOptions {
  readonly ignoreFooter: boolean;
  readonly ignoreTimestamps: boolean;
}

/**
 * Checks the footer and its backup.
 *
 * @returns The footer to use, or null when neither is usable.
 */
export function checkFooters(
  file: StorageFile,
  findings: Findings,
  options: FooterCheckOptions,
): Footer | null {
  const primary = checkPrimary(file, findings, options);
  if (primary?.footer.diskType === HD_TYPE_FIXED) return primary.footer;
  const bytes = readFooterBytes(file, 0);
  const fault = bytes === null ? null : footerProblem(bytes, options);
  if (bytes === null) {
    findings.error("error reading backup footer", "backup.cookie", 0);
    return primary?.footer ?? null;
  }
  if (fault !== null) {
    findings.error(`backup footer invalid: ${fault.text}`, `backup.${fault.field}`, fault.at);
    return primary?.footer ?? null;
  }
  if (primary !== null) compareFooters(primary.bytes, bytes, findings);
  return primary?.footer ?? decodeFooter(bytes);
}

interface Primary {
  readonly footer: Footer;
  readonly bytes: Uint8Array;
}

/** The footer at the end, or null without one. A footer with a wrong field is returned too. */
function checkPrimary(
  file: StorageFile,
  findings: Findings,
  options: FooterCheckOptions,
): Primary | null {
  const sizeBytes = file.sizeBytes();
  const length = sizeBytes % HD_FOOTER_SIZE === 0 ? HD_FOOTER_SIZE : HD_FOOTER_SIZE - 1;
  const offsetBytes = sizeBytes - length;
  const bytes = readFooterBytes(file, offsetBytes, length);
  if (bytes === null) {
    findings.error("error reading primary footer", "footer.cookie", 0);
    return null;
  }
  const problem = footerProblem(bytes, options);
  warnOfGeometry(decodeFooter(bytes), findings, offsetBytes);
  if (problem === null) return { footer: decodeFooter(bytes), bytes };
  if (!options.ignoreFooter) {
    findings.error(
      `primary footer invalid: ${problem.text}`,
      `footer.${problem.field}`,
      offsetBytes + problem.at,
    );
  }
  return footerFault(bytes) === null ? { footer: decodeFooter(bytes), bytes } : null;
}

/**
 * Warns of a geometry beyond the disk's size. Only BIOSes use the geometry; the size counts. Azure
 * requires sizes that no geometry describes, and programs may write the largest geometry for them.
 */
function warnOfGeometry(footer: Footer, findings: Findings, offsetBytes: number): void {
  if (footer.cookie !== HD_COOKIE) return;
  if (packGeometry(geometryOfSize(Number(footer.currentSize))) >= footer.geometry) return;
  findings.warning(
    "geometry describes more than the size of the disk; the size counts",
    "footer.geometry",
    offsetBytes + FOOTER_OFFSETS.geometry,
  );
}

function compareFooters(primary: Uint8Array, backup: Uint8Array, findings: Findings): void {
  const at = primary.findIndex((byte, i) => byte !== backup[i]);
  if (at < 0) return;
  const fields = Object.entries(FOOTER_OFFSETS);
  const [field] = fields.findLast(([, offset]) => offset <= at) ?? fields[0];
  findings.error("primary and backup footers do not match", `backup.${field}`, at);
}

interface Problem {
  readonly text: string;
  readonly field: keyof typeof FOOTER_OFFSETS;
  /** Offset from the footer's start. */
  readonly at: number;
}

function footerProblem(bytes: Uint8Array, options: FooterCheckOptions): Problem | null {
  const footer = decodeFooter(bytes);
  const [field, text] = fault(footer, bytes, options) ?? [];
  return field === undefined || text === undefined
    ? null
    : { field, text, at: FOOTER_OFFSETS[field] };
}

type Fault = readonly [keyof typeof FOOTER_OFFSETS, string];

function fault(footer: Footer, bytes: Uint8Array, options: FooterCheckOptions): Fault | null {
  if (footer.cookie !== HD_COOKIE) return ["cookie", "invalid cookie"];
  if (footerFault(bytes) !== null) return ["checksum", "invalid checksum"];
  if (!(footer.features & HD_RESERVED)) return ["features", "invalid 'reserved' feature"];
  if (footer.features & ~(HD_TEMPORARY | HD_RESERVED)) {
    return ["features", "invalid extra features"];
  }
  if (footer.fileFormatVersion !== HD_FF_VERSION) {
    return ["fileFormatVersion", "invalid file format version"];
  }
  const sparse = footer.diskType === HD_TYPE_DYNAMIC || footer.diskType === HD_TYPE_DIFF;
  if (!sparse && footer.diskType !== HD_TYPE_FIXED) return ["diskType", "invalid type"];
  if (!sparse && footer.dataOffset !== VHD_NO_OFFSET) return ["dataOffset", "invalid data offset"];
  if (!options.ignoreTimestamps && footer.timestamp > vhdTimeNow() + TIMESTAMP_MAX_SLACK) {
    return ["timestamp", "creation time in future"];
  }
  if (createdByTap(footer) && footer.creatorVersion > VHD_CURRENT_VERSION) {
    return ["creatorVersion", "unsupported tap creator version"];
  }
  if (footer.savedState > 1) return ["savedState", "invalid 'saved' state"];
  if (footer.hidden > 1) return ["hidden", "invalid 'hidden' state"];
  if (footer.reserved.some((byte) => byte !== 0)) return ["reserved", "invalid 'reserved' bits"];
  if (isNullUuid(footer.uuid)) return ["uuid", "invalid (NULL) uuid"];
  return null;
}
