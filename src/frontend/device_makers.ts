import type { DeviceMaker } from "./block_device.ts";

/** The kinds of block devices there are, the first choice first. */
export const DEVICE_MAKERS: readonly DeviceMaker[] = [];
