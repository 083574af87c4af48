import { SystemError, systemError } from "../../../ffi/errno.ts";
import { uringMissing } from "../../../ffi/uring_probe.ts";
import type { DeviceMaker } from "../block_device.ts";
import { attachUblk } from "./attach.ts";
import { controlMissing } from "./control.ts";
import { removeLeft } from "./removal.ts";

/** Creates block devices of the kernel's ublk driver. */
export const ublkMaker: DeviceMaker = {
  kind: "ublk",
  missing: () => controlMissing() ?? uringMissing(),
  attach(host, recover, done, wanted): void {
    try {
      attachUblk(host, { recover, wanted }, done);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      done(error, null);
    }
  },
  adopt(host, node, done): void {
    try {
      attachUblk(host, { recover: node, adopt: true }, done);
    } catch (error) {
      done(systemError(error, `Cannot go on with ${node}`), null);
    }
  },
  remove: removeLeft,
};
