import { batmapChecksum, type BatmapHeader, type KeyHash } from "../../vhd/format/batmap.ts";
import { declaredLocators, readLocatorName } from "../../vhd/image/locator_reader.ts";
import {
  encodeFooter,
  type Footer,
  footerChecksum,
  HD_CR_OS_MACINTOSH,
  HD_CR_OS_WINDOWS,
  HD_RESERVED,
  HD_TEMPORARY,
  HD_TYPE_FIXED,
} from "../../vhd/format/footer.ts";
import { unpackGeometry } from "../../vhd/format/geometry.ts";
import { type DynamicHeader, encodeHeader, headerChecksum } from "../../vhd/format/header.ts";
import type { VhdImage } from "../../vhd/image/image.ts";
import { decodeParentName, PLAT_CODE_NONE, PLATFORM_CODE_NAMES } from "../../vhd/format/locator.ts";
import { plainText } from "../../log/plain_text.ts";
import { formatVhdTime } from "../../vhd/format/time.ts";
import { formatUuid } from "../../vhd/format/uuid.ts";
import type { Output } from "../subcommands/output.ts";

/** Formats a number: decimal, or hexadecimal with `-x`. */
export type NumberFormat = (value: number | bigint) => string;

/** Decimal. */
export function decimal(value: number | bigint): string {
  return String(value);
}

/** As printf's `%#x`: no prefix for zero. */
export function hexadecimal(value: number | bigint): string {
  return Number(value) === 0 ? "0" : `0x${value.toString(16)}`;
}

const TYPE_NAMES = [
  "None",
  "Reserved (deprecated)",
  "Fixed hard disk",
  "Dynamic hard disk",
  "Differencing hard disk",
  "Reserved (deprecated)",
  "Reserved (deprecated)",
];

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

function checksumLine(stored: number, right: number): string {
  return `Checksum            : ${hex(stored)}|${hex(right)} (${
    stored === right ? "Good!" : "Bad!"
  })\n`;
}

function text(bytes: string): string {
  const end = bytes.indexOf("\0");
  return plainText(end < 0 ? bytes : bytes.slice(0, end));
}

function version(value: number): string {
  return `Major: ${value >>> 16}, Minor: ${value & 0xffff}`;
}

function sizeText(bytes: bigint, format: NumberFormat): string {
  return `${format(bytes >> 20n)} MB (${format(bytes)} Bytes)`;
}

/**
 * The UUID of a fixed image is in capitals. The original cannot print these footers. Its transcripts
 * number lower-case UUIDs in order, so this one must look different.
 */
function uuidText({ diskType, uuid }: Footer): string {
  return diskType === HD_TYPE_FIXED ? formatUuid(uuid).toUpperCase() : formatUuid(uuid);
}

/** Prints a footer, field by field. */
export function printFooter(output: Output, footer: Footer, format: NumberFormat): void {
  const { cylinders, heads, sectorsPerTrack } = unpackGeometry(footer.geometry);
  const sectors = BigInt(cylinders * heads * sectorsPerTrack);
  const temporary = footer.features & HD_TEMPORARY ? "<TEMP>" : "";
  const reserved = footer.features & HD_RESERVED ? "<RESV>" : "";
  const os = footer.creatorHostOs === HD_CR_OS_WINDOWS
    ? "Windows"
    : footer.creatorHostOs === HD_CR_OS_MACINTOSH
    ? "Macintosh"
    : "Unknown!";
  output.print(
    "VHD Footer Summary:\n-------------------\n" +
      `Cookie              : ${text(footer.cookie)}\n` +
      `Features            : (0x${
        footer.features.toString(16).padStart(8, "0")
      }) ${temporary}${reserved}\n` +
      `File format version : ${version(footer.fileFormatVersion)}\n` +
      `Data offset         : ${format(footer.dataOffset)}\n` +
      `Timestamp           : ${formatVhdTime(footer.timestamp)}\n` +
      `Creator Application : '${text(footer.creatorApplication)}'\n` +
      `Creator version     : ${version(footer.creatorVersion)}\n` +
      `Creator OS          : ${os}\n` +
      `Original disk size  : ${sizeText(footer.originalSize, format)}\n` +
      `Current disk size   : ${sizeText(footer.currentSize, format)}\n` +
      `Geometry            : Cyl: ${format(cylinders)}, Hds: ${format(heads)}, ` +
      `Sctrs: ${format(sectorsPerTrack)}\n` +
      `                    : = ${format(sectors >> 11n)} MB (${format(sectors << 9n)} Bytes)\n` +
      `Disk type           : ${TYPE_NAMES[footer.diskType] ?? "Unknown type!\n"}\n` +
      checksumLine(footer.checksum, footerChecksum(encodeFooter(footer))) +
      `UUID                : ${uuidText(footer)}\n` +
      `Saved state         : ${footer.savedState === 0 ? "No" : "Yes"}\n` +
      `Hidden              : ${footer.hidden}\n\n`,
  );
}

/** Prints a dynamic header, field by field. */
export function printHeader(output: Output, header: DynamicHeader, format: NumberFormat): void {
  output.print(
    "VHD Header Summary:\n-------------------\n" +
      `Cookie              : ${text(header.cookie)}\n` +
      `Data offset (unusd) : ${format(header.dataOffset)}\n` +
      `Table offset        : ${format(header.tableOffset)}\n` +
      `Header version      : 0x${header.headerVersion.toString(16).padStart(8, "0")}\n` +
      `Max BAT size        : ${format(header.maxBatEntries)}\n` +
      `Block size          : ${format(header.blockSize)} (${
        format(header.blockSize >>> 20)
      } MB)\n` +
      `Parent name         : ${plainText(decodeParentName(header.parentName))}\n` +
      `Parent UUID         : ${formatUuid(header.parentUuid)}\n` +
      `Parent timestamp    : ${formatVhdTime(header.parentTimestamp)}\n` +
      checksumLine(header.checksum, headerChecksum(encodeHeader(header))) + "\n",
  );
}

/** Prints the parent locators in use and the paths in them. */
export function printLocators(output: Output, image: VhdImage, format: NumberFormat): void {
  output.print("VHD Parent Locators:\n--------------------\n");
  for (const [index, locator] of declaredLocators(image).entries()) {
    if (locator.code === PLAT_CODE_NONE) continue;
    const name = readLocatorName(image.file, locator);
    output.print(
      `locator:            : ${index}\n` +
        `       code         : ${PLATFORM_CODE_NAMES.get(locator.code) ?? "UNKOWN"}\n` +
        `       data_space   : ${format(locator.dataSpace)}\n` +
        `       data_length  : ${format(locator.dataLength)}\n` +
        `       data_offset  : ${format(locator.dataOffset)}\n` +
        (name === null
          ? "failed to read parent name\n"
          : `       decoded name : ${plainText(name)}\n`) +
        "\n",
    );
  }
}

/** Prints the batmap's header. */
export function printBatmap(
  output: Output,
  { header, bits }: { header: BatmapHeader; bits: Uint8Array },
  format: NumberFormat,
): void {
  output.print(
    "VHD Batmap Summary:\n-------------------\n" +
      `Batmap offset       : ${format(header.batmapOffset)}\n` +
      `Batmap size (secs)  : ${format(header.batmapSectors)}\n` +
      `Batmap version      : 0x${header.batmapVersion.toString(16).padStart(8, "0")}\n` +
      keyhashLines(header.keyhash) +
      checksumLine(header.checksum, batmapChecksum(bits, header.batmapVersion)) + "\n",
  );
}

function keyhashLines({ cookie, nonce, hash }: KeyHash): string {
  if (cookie !== 1) return "";
  return `Batmap keyhash nonce: ${nonce.toHex()}\nBatmap keyhash hash : ${hash.toHex()}\n`;
}
