import { blktap2Maker } from "./blktap2/blktap2_device.ts";
import type { DeviceMaker } from "./block_device.ts";
import { nbdDeviceMaker } from "./nbd_device/nbd_device.ts";
import { ublkMaker } from "./ublk/ublk_maker.ts";

/** The kinds of block devices there are, the first choice first. */
export const DEVICE_MAKERS: readonly DeviceMaker[] = [blktap2Maker, ublkMaker, nbdDeviceMaker];
