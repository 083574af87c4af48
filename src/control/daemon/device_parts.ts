import type { Vbd } from "../../vbd/vbd.ts";
import type { DiskKey } from "../../vhd/key.ts";
import type { OpenRequest } from "../protocol/open_request.ts";
import type { DiskAccess } from "./disk_access.ts";

/** The parts of a device. */
export interface DeviceParts {
  readonly vbd: Vbd;
  readonly access: DiskAccess;
  /** How the image was opened; null without one. */
  readonly request: OpenRequest | null;
  /** The key that it was opened with, which stays the device's. */
  readonly key: DiskKey | undefined;
}
