import { declaredLocators, readLocatorName } from "../../vhd/image/locator_reader.ts";
import type { Footer } from "../../vhd/format/footer.ts";
import { unpackGeometry } from "../../vhd/format/geometry.ts";
import type { DynamicHeader } from "../../vhd/format/header.ts";
import type { Batmap, VhdImage } from "../../vhd/image/image.ts";
import { decodeParentName, PLAT_CODE_NONE, PLATFORM_CODE_NAMES } from "../../vhd/format/locator.ts";
import { VHD_EPOCH_START } from "../../vhd/format/time.ts";
import { formatUuid } from "../../vhd/format/uuid.ts";

/** All metadata of an image except its tables, for `--json`, under the specification's names. */
export function headersOf(image: VhdImage): Record<string, unknown> {
  const { path, type, footer, footerSource, header, batmap } = image;
  return {
    path,
    type,
    footerSource,
    footer: footerOf(footer),
    header: header && headerOf(image, header),
    batmap: batmap && batmapOf(batmap),
  };
}

function footerOf(footer: Footer): Record<string, unknown> {
  const { reserved: _, uuid, timestamp, geometry, creatorApplication, ...fields } = footer;
  return {
    ...fields,
    creatorApplication: creatorApplication.replace(/\0+$/, ""),
    time: isoTime(timestamp),
    uuid: formatUuid(uuid),
    geometry: unpackGeometry(geometry),
  };
}

function headerOf(image: VhdImage, header: DynamicHeader): Record<string, unknown> {
  const { cookie, dataOffset, tableOffset, headerVersion, maxBatEntries, blockSize, checksum } =
    header;
  const fields = {
    cookie,
    dataOffset,
    tableOffset,
    headerVersion,
    maxBatEntries,
    blockSize,
    checksum,
  };
  if (image.type !== "differencing") return fields;
  return {
    ...fields,
    parentName: decodeParentName(header.parentName),
    parentUuid: formatUuid(header.parentUuid),
    parentTime: isoTime(header.parentTimestamp),
    locators: declaredLocators(image).filter(({ code }) => code !== PLAT_CODE_NONE).map((
      locator,
    ) => ({
      code: PLATFORM_CODE_NAMES.get(locator.code) ?? locator.code,
      dataSpace: locator.dataSpace,
      dataLength: locator.dataLength,
      dataOffset: locator.dataOffset,
      name: readLocatorName(image.file, locator),
    })),
  };
}

function batmapOf({ header }: Batmap): Record<string, unknown> {
  const { keyhash, ...fields } = header;
  const key = keyhash.cookie === 1 ? { nonce: keyhash.nonce, hash: keyhash.hash } : null;
  return { ...fields, keyhash: key };
}

function isoTime(timestamp: number): string {
  return new Date((timestamp + VHD_EPOCH_START) * 1000).toISOString();
}
