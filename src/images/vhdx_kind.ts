import { ImageFormatError } from "../files/format_error.ts";
import type { CheckResult } from "../vhd/check/check.ts";
import { openVhdx } from "../vhdx/image.ts";
import type { ImageFacts, ImageKind } from "./kind.ts";

/** VHDXs, which are only read. */
export const vhdxKind: ImageKind = {
  type: "vhdx",
  facts(storage, path): ImageFacts {
    const image = openVhdx(path, { storage });
    try {
      return {
        differencing: image.locator !== null,
        blockSizeBytes: image.blockBytes,
        logicalSectorBytes: image.logicalSectorBytes,
        physicalSectorBytes: image.physicalSectorBytes,
        dataWriteGuid: image.header.dataWriteGuid,
        pagesInLog: image.replayed.pages.size,
      };
    } finally {
      image.close();
    }
  },
  check(storage, path): CheckResult {
    try {
      openVhdx(path, { storage }).close();
      return { path, valid: true, findings: [] };
    } catch (error) {
      if (!(error instanceof ImageFormatError)) throw error;
      const { message, fault: { field, offsetBytes } } = error;
      const findings = [{ severity: "error", message, field, offsetBytes }] as const;
      return { path, valid: false, findings };
    }
  },
};
