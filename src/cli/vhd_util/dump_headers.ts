import { DD_HEADER_SIZE, decodeHeader } from "../../vhd/format/header.ts";
import { decodeFooter, HD_FOOTER_SIZE, HD_TYPE_FIXED } from "../../vhd/format/footer.ts";
import { osStorage } from "../../files/storage.ts";
import type { Output } from "../subcommands/output.ts";
import { type NumberFormat, printFooter, printHeader } from "./print_headers.ts";

/** Prints the bytes at the places of a damaged image's footer and header, as fields. */
export function dumpHeaders(output: Output, path: string, format: NumberFormat): void {
  if (!osStorage.exists(path) || osStorage.status(path).kind === "directory") return;
  const file = osStorage.open(path, "read");
  try {
    const sizeBytes = file.sizeBytes();
    if (sizeBytes < HD_FOOTER_SIZE) return;
    const footerBytes = new Uint8Array(HD_FOOTER_SIZE);
    file.readAt(footerBytes, sizeBytes - HD_FOOTER_SIZE);
    const footer = decodeFooter(footerBytes);
    printFooter(output, footer, format);
    const headerBytes = new Uint8Array(DD_HEADER_SIZE);
    const inFile = footer.dataOffset + BigInt(DD_HEADER_SIZE) <= BigInt(sizeBytes);
    if (footer.diskType === HD_TYPE_FIXED || !inFile) return;
    file.readAt(headerBytes, Number(footer.dataOffset));
    printHeader(output, decodeHeader(headerBytes), format);
  } finally {
    file.close();
  }
}
