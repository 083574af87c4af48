import { type Done, Errno, SystemError } from "../../../ffi/errno.ts";
import { isAlive } from "../../../ffi/process.ts";
import { UBLK_S_DEV_LIVE } from "../../../ffi/ublk.ts";
import { sharedUringLoop } from "../../queue/uring_loop.ts";
import type { Scheduler } from "../../scheduler/scheduler.ts";
import { type Answer, UblkControl } from "./control.ts";
import { diskParameters } from "./disk_parameters.ts";
import { cannotTakeAway, userOf } from "../device_users.ts";
import { numberOfNode } from "./node.ts";

/** How often a stopped disk is checked for users, until the last has closed it. */
const USERS_POLL_MS = 200;
const SOME_DISK = diskParameters({ sectors: 8, readOnly: true });

/** Asks whether a process still has the disk of a stopped device open: -EACCES then, else 0. */
export function askUnused(control: UblkControl, number: number, answer: Answer): void {
  // There is no other way: parameters can be set again once the last user has closed the disk.
  control.setParameters(number, SOME_DISK, answer);
}

/**
 * Removes a stopped device once no process has its disk open. An earlier removal would block the
 * control commands of all processes.
 */
export function removeUnused(
  scheduler: Scheduler,
  control: UblkControl,
  number: number,
  answer: Answer,
): void {
  askUnused(control, number, (result) => {
    if (result !== -Errno.EACCES) return control.remove(number, answer);
    scheduler.addTimer(USERS_POLL_MS, () => removeUnused(scheduler, control, number, answer));
  });
}

/** Reports the result of a removal. */
export function removalEnded(node: string, result: number, done: Done): void {
  if (result === 0 || result === -Errno.ENODEV) return done(null);
  done(new SystemError(-result, `Cannot remove ${node}`, { file: node }));
}

/** Removes the device of a dead tapdisk; see `DeviceMaker.remove`. */
export function removeLeft(scheduler: Scheduler, node: string, done: Done): void {
  const number = numberOfNode(node);
  if (number < 0) return done(cannotTakeAway(node, Errno.EINVAL, "no ublk device"));
  const refuse = (why: string): void => done(cannotTakeAway(node, Errno.EBUSY, why));
  const user = userOf(node);
  if (user !== "") return refuse(user);
  const control = new UblkControl(sharedUringLoop(scheduler));
  const ended: Answer = (result) => {
    control.close();
    removalEnded(node, result, done);
  };
  control.askFeatures(() =>
    control.info(number, (result, { state, pid }) => {
      if (result < 0) return ended(result);
      if (state === UBLK_S_DEV_LIVE && isAlive(pid)) {
        control.close();
        return refuse(`process ${pid} serves it`);
      }
      control.stop(number, () => removeUnused(scheduler, control, number, ended));
    })
  );
}
