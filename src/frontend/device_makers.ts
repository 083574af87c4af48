import { blktap2Maker } from "./blktap2/blktap2_device.ts";
import type { DeviceMaker } from "./block_device.ts";
import { nbdDeviceMaker } from "./nbd_device/nbd_device.ts";
import { ublkMaker } from "./ublk/ublk_maker.ts";

/** All kinds of block devices, in order of preference. */
export const DEVICE_MAKERS: readonly DeviceMaker[] = [blktap2Maker, ublkMaker, nbdDeviceMaker];
