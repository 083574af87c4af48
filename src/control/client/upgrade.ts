import { pathStatus } from "../../../ffi/paths.ts";
import { isSameFile } from "../../files/open_file.ts";
import { MessageType } from "../protocol/message.ts";
import {
  decodeUpgradeReply,
  encodeUpgrade,
  type ProgramCall,
  type UpgradeReply,
} from "../protocol/upgrade.ts";
import { withConnection } from "./connection.ts";
import { tapdiskCommand } from "./spawn.ts";
import { touchDevices, ublkNodes } from "./touch_devices.ts";

/** More than the time limits of all steps. */
const TIMEOUT_MS = 240_000;

/**
 * Has a program take over the disks of a tapdisk, whose users only wait for a moment. The tapdisk then
 * ends. Returns when users of its block devices have gone on. Throws `SystemError`, `TapdiskError`; then it
 * serves on.
 *
 * @param call The program; by default this one, as tapdisk.
 */
export function upgradeTapdisk(pid: number, call: ProgramCall = tapdiskCommand()): UpgradeReply {
  const nodes = ublkNodes(pid);
  const reply = withConnection(pid, TIMEOUT_MS, (connection) => {
    connection.send(encodeUpgrade(call));
    const what = `Cannot upgrade tapdisk ${pid}`;
    return decodeUpgradeReply(connection.expect(MessageType.UPGRADE_RSP, what));
  });
  touchDevices(nodes);
  return reply;
}

/**
 * Whether a process runs the file that this process runs. False when the file was replaced since, and
 * when that cannot be seen.
 */
export function runsThisProgram(pid: number): boolean {
  try {
    return isSameFile(pathStatus(`/proc/${pid}/exe`), pathStatus("/proc/self/exe"));
  } catch {
    return false;
  }
}
