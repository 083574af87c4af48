import type { UringLoop } from "../../queue/uring_loop.ts";
import type { DeviceHost } from "../block_device.ts";
import type { UblkControl } from "./control.ts";

/** The environment of a device. */
export interface UblkHost extends DeviceHost {
  readonly uring: UringLoop;
  readonly control: UblkControl;
}
