import { type Command, InvalidArgumentError } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type DeviceAddress, pauseDevice, resumeDevice } from "../../control/client/client.ts";
import { inventory } from "../../control/client/inventory.ts";
import { deviceStatistics } from "../../control/client/questions.ts";
import { resizeImage, resizeOf } from "../../images/change.ts";
import { imageInfo } from "../../images/info.ts";
import { interruptible } from "../interruption.ts";
import { parseDiskSize } from "../sizes.ts";
import { deviceOptions, timeLimit, timeLimitOption } from "./options.ts";

interface ResizeChoices extends DeviceAddress {
  readonly size: number;
  readonly timeout?: number;
}

/** What of a disk's statistics decides whether it can be resized. */
interface ServedDisk {
  /** `TYPE:PATH` */
  readonly name: string;
  readonly changed_blocks: string | null;
  readonly secondary: unknown;
}

const NOTES = `
Makes a running disk larger: its requests wait while its image is made larger, and what is added reads
as zeros. SIZE is in bytes; 20Gi and 20G are 20 GiB. Users see the new size as they do after unpause.
When the image cannot be made larger, the disk continues with the size that it had. When tap-ctl is
killed meanwhile, the disk stays paused; unpause it.`;

function diskSize(text: string): number {
  const bytes = parseDiskSize(text);
  if (bytes !== null) return bytes;
  throw new InvalidArgumentError("It must be whole sectors of 512 bytes, such as 10Gi or 512Mi.");
}

function refused(what: string, why: string, hint: string): SystemError {
  return new SystemError(Errno.EOPNOTSUPP, `${what} (${why})`, { hint });
}

async function resize({ size, timeout, ...device }: ResizeChoices): Promise<void> {
  const disk: ServedDisk = JSON.parse(deviceStatistics(device));
  const what = `Cannot resize ${disk.name}`;
  if (disk.changed_blocks !== null) {
    const hint =
      "pause it, resize the image by td-util and the log by cbt-util set -s, and unpause it";
    throw refused(what, `its changed blocks are noted in ${disk.changed_blocks}`, hint);
  }
  if (disk.secondary !== null) {
    throw refused(what, "it is written to a second image too", "end that by unpause -2 null");
  }
  if (inventory(device).some(({ state }) => state !== 0)) {
    // Another program may have paused it; only that program resumes it.
    throw new SystemError(Errno.EBUSY, `${what} (it does not run)`, { hint: "see tap-ctl list" });
  }
  // What cannot be resized is not paused.
  resizeOf(disk.name);
  const { layers: [{ sizeBytes }] } = await imageInfo(disk.name);
  if (sizeBytes !== null && size < sizeBytes) {
    const why = `it has ${sizeBytes} bytes, and a running disk is never made smaller`;
    throw new SystemError(Errno.EINVAL, `${what} to ${size} bytes (${why})`);
  }
  // A signal during the pause ends the command after the disk has been resumed.
  await interruptible(async () => {
    pauseDevice(device, timeLimit({ timeout }));
    try {
      await resizeImage(disk.name, { sizeBytes: size });
    } finally {
      resumeDevice(device, { image: null });
    }
  });
}

/** `tap-ctl resize`. */
export function defineResize(command: Command): Command {
  return timeLimitOption(deviceOptions(command))
    .requiredOption("-s, --size <size>", "the new size, in whole sectors of 512 bytes", diskSize)
    .addHelpText("after", NOTES)
    .action(resize);
}
