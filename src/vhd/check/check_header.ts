import { TIMESTAMP_MAX_SLACK } from "./check_footer.ts";
import type { Findings } from "./findings.ts";
import { type Footer, FOOTER_OFFSETS, HD_FOOTER_SIZE, VHD_NO_OFFSET } from "../format/footer.ts";
import {
  DD_COOKIE,
  DD_HEADER_SIZE,
  DD_VERSION,
  decodeHeader,
  type DynamicHeader,
  HEADER_OFFSETS,
  headerChecksum,
} from "../format/header.ts";
import type { VhdImage } from "../image/image.ts";
import { declaredLocators } from "../image/locator_reader.ts";
import { type ParentLocator, PLAT_CODE_NONE } from "../format/locator.ts";
import type { StorageFile } from "../../files/storage.ts";
import { vhdTimeNow } from "../format/time.ts";
import { isNullUuid } from "../format/uuid.ts";

/** Checks the dynamic header that a footer points to. Returns whether it is usable. */
export function checkHeader(file: StorageFile, footer: Footer, findings: Findings): boolean {
  const sizeBytes = file.sizeBytes();
  if (footer.dataOffset + BigInt(DD_HEADER_SIZE) > BigInt(sizeBytes)) {
    findings.error("error reading header", "footer.dataOffset", FOOTER_OFFSETS.dataOffset);
    return false;
  }
  const offsetBytes = Number(footer.dataOffset);
  const bytes = new Uint8Array(DD_HEADER_SIZE);
  file.readAt(bytes, offsetBytes);
  const header = decodeHeader(bytes);
  const [field, text] = fault(header, bytes, sizeBytes) ?? [];
  if (field === undefined) {
    warnOfDataOffset(header, findings, offsetBytes);
    return true;
  }
  findings.error(
    `header is invalid: ${text}`,
    `header.${field}`,
    offsetBytes + HEADER_OFFSETS[field],
  );
  return false;
}

/** Warns of a value in the field that no version of the format uses: some programs write 32 bits. */
function warnOfDataOffset(header: DynamicHeader, findings: Findings, offsetBytes: number): void {
  if (header.dataOffset === VHD_NO_OFFSET) return;
  findings.warning(
    "the header's unused data offset is not 0xffffffffffffffff",
    "header.dataOffset",
    offsetBytes + HEADER_OFFSETS.dataOffset,
  );
}

/** A footer of 511 bytes is legal, too. */
const SHORT_FOOTER_SIZE = HD_FOOTER_SIZE - 1;

type Fault = readonly [keyof typeof HEADER_OFFSETS, string];

function isEmpty({ code, dataSpace, dataLength, reserved, dataOffset }: ParentLocator): boolean {
  return code === PLAT_CODE_NONE && dataSpace === 0 && dataLength === 0 && reserved === 0 &&
    dataOffset === 0n;
}

function fault(header: DynamicHeader, bytes: Uint8Array, sizeBytes: number): Fault | null {
  if (header.cookie !== DD_COOKIE) return ["cookie", "invalid cookie"];
  if (header.checksum !== headerChecksum(bytes)) return ["checksum", "invalid checksum"];
  if (header.headerVersion !== DD_VERSION) return ["headerVersion", "invalid header version"];
  const { tableOffset, blockSize } = header;
  const tableEnd = tableOffset + BigInt(header.maxBatEntries) * 4n;
  if (
    tableOffset <= 0n || tableOffset % 512n !== 0n ||
    tableEnd > BigInt(sizeBytes - SHORT_FOOTER_SIZE)
  ) return ["tableOffset", "invalid table offset"];
  if (blockSize === 0 || (blockSize & (blockSize - 1)) !== 0) {
    return ["blockSize", "invalid block size"];
  }
  if (header.reserved1 !== 0) return ["reserved1", "invalid reserved bits"];
  if (header.reserved2.some((byte) => byte !== 0)) return ["reserved2", "invalid reserved bits"];
  return null;
}

/** Checks the parent fields of the header. In a dynamic image they must be empty. */
export function checkParentFields(
  image: VhdImage,
  findings: Findings,
  { ignoreTimestamps }: { ignoreTimestamps: boolean },
): void {
  const { header, footer } = image;
  if (header === null) return;
  const [field, text] = parentFault(image, header, ignoreTimestamps) ?? [];
  if (field === undefined) return;
  findings.error(
    `differencing header is invalid: ${text}`,
    `header.${field}`,
    Number(footer.dataOffset) + HEADER_OFFSETS[field],
  );
}

function parentFault(
  image: VhdImage,
  header: DynamicHeader,
  ignoreTimestamps: boolean,
): Fault | null {
  if (image.type === "differencing") {
    const limit = vhdTimeNow() + TIMESTAMP_MAX_SLACK;
    if (!ignoreTimestamps && header.parentTimestamp > limit) {
      return ["parentTimestamp", "parent creation time in future"];
    }
    return null;
  }
  if (header.parentName.some((byte) => byte !== 0)) {
    return ["parentName", "invalid non-null parent name"];
  }
  if (declaredLocators(image).some((locator) => !isEmpty(locator))) {
    return ["locators", "invalid non-null parent locators"];
  }
  if (!isNullUuid(header.parentUuid)) return ["parentUuid", "invalid non-null parent uuid"];
  if (header.parentTimestamp !== 0) {
    return ["parentTimestamp", "invalid non-zero parent timestamp"];
  }
  return null;
}
