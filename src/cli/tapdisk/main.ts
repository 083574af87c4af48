/**
 * tapdisk: serves disks until its last device is detached or a signal ends it. Parses, puts the
 * engine together, and turns signals into orders; the work is done below.
 *
 * @module
 */
import { Command, CommanderError, Option } from "commander";
import { Errno, errnoOf, messageOf } from "../../../ffi/errno.ts";
import { detachStandardStreams, raiseDescriptorLimit } from "../../../ffi/process.ts";
import { createDevice } from "../../control/client/lifecycle.ts";
import { type DeviceChoice, OPEN_DEFAULTS } from "../../control/protocol/open_request.ts";
import { controlSocketPath, nbdSocketPath, requireOwnFolder } from "../../control/paths.ts";
import { DAEMON_ARGUMENT, spawnTapdisk } from "../../control/client/spawn.ts";
import type { Logger } from "../../log/log.ts";
import { absoluteImage, deviceChoice, imagesHelp } from "../tap_ctl/options.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { describeFault } from "../../scheduler/faults.ts";
import { openLog } from "./logging.ts";
import { startTapdisk } from "./daemon.ts";
import { handleSignals } from "./signals.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import { printErrorLine, printLine, writeError } from "../print.ts";

interface TapdiskOptions extends ParentRootChoices {
  /** False for `-D`. */
  readonly daemon: boolean;
  /** True in the process that a daemon becomes. */
  readonly daemonChild?: boolean;
  /** The image to serve, for `-n`. */
  readonly new?: string;
  readonly device: DeviceChoice;
}

const NOTES = `
Without -D it goes on in the background, in a session of its own. Either way it prints the path of
its control socket once that takes connections; tap-ctl gives it devices and images, and it ends
when its last device is detached.

-n serves one image in the background and prints the block device's node, such as
/dev/xen/blktap-2/tapdev0; where no kind of block device can be made, it prints the path of the NBD
socket. 'tap-ctl list' shows it, 'tap-ctl destroy' ends it.

${STDIN_ARGUMENTS_NOTE}:

  printf '%s\\0' "vhd:$name" | tapdisk -n ${STDIN_ARGUMENTS}

Signals: SIGTERM and SIGINT close all disks in order and end it, at once when they come again while
that goes on. Disks whose block device is in use stay, and so does tapdisk; the log says so, and the
next signal tries again. SIGHUP opens the log anew; SIGUSR1 logs all disks, every request that has not ended, and the
statistics.

Environment: BLKTAP_CONTROL_DIR is the folder of the sockets (/run/blktap-control), BLKTAP_LOG_DIR
that of the log (/var/log/blktap, or log in BLKTAP_CONTROL_DIR). BLKTAP_PARENT_ROOTS names folders,
with colons between them, in which parents of images may be besides the folder tree of the image that is
opened; so do the lines of /etc/blktap/parent-roots; 'any' lets them be anywhere.`;

/** The command line of tapdisk. */
export function tapdiskCommand(): Command {
  return parentRootOption(new Command("tapdisk"))
    .description("Serve virtual disks.")
    .option("-D, --no-daemon", "stay in the foreground, with the log on standard error")
    .addOption(
      new Option("-n, --new <type:/path>", "serve this image, such as vhd:/srv/disk.vhd")
        .conflicts("daemon"),
    )
    .addOption(
      deviceChoice("auto", "with -n: the block device that the disk becomes").env("BLKTAP_DEVICE"),
    )
    .addOption(new Option(DAEMON_ARGUMENT).hideHelp())
    .helpOption("-h, --help", "show this help")
    .addHelpText("after", `${NOTES}\n\n${imagesHelp()}`)
    .allowExcessArguments(false)
    .showHelpAfterError()
    .configureOutput({ outputError: writeError })
    .exitOverride();
}

function parse(args: string[]): TapdiskOptions {
  const command = tapdiskCommand().parse(args, { from: "user" });
  const options = command.opts<TapdiskOptions>();
  if (options.new === undefined && command.getOptionValueSource("device") === "cli") {
    command.error("error: option '--device <kind>' goes with -n");
  }
  return options;
}

/** A low limit of descriptors is no reason not to start: it fails what needs more of them. */
function raiseLimits(log: Logger): void {
  try {
    raiseDescriptorLimit();
  } catch (error) {
    log.warn(messageOf(error));
  }
}

/** Serves in this process until it is told to end; returns the exit status. */
async function serve({ inForeground }: { inForeground: boolean }): Promise<number> {
  // The log may be in it.
  requireOwnFolder();
  const log = openLog({ onStandardError: inForeground });
  try {
    raiseLimits(log);
    const tapdisk = startTapdisk(log);
    handleSignals(tapdisk, log);
    log.info(`Ready on ${tapdisk.socketPath}`);
    printLine(tapdisk.socketPath);
    if (!inForeground) {
      detachStandardStreams();
      Deno.chdir("/");
    }
    await tapdisk.run();
    log.info("Ended");
    return 0;
  } catch (error) {
    // Standard error of a daemon leads nowhere.
    log.error(`Ended: ${describeFault(error)}`);
    throw error;
  } finally {
    log.close();
  }
}

/** An image as `-n` has always named it: drivers on top of each other may be parted by bars. */
function imageName(text: string): string {
  return absoluteImage(text.replace(/^(?:[a-z]+:\|)+/, (drivers) => drivers.replaceAll("|", "")));
}

/** Serves one image in another process, and prints where it can be used. */
async function serveImage(image: string, device: DeviceChoice): Promise<void> {
  const request = { ...OPEN_DEFAULTS, image: imageName(image), device };
  const { node, pid, minor } = await createDevice(request);
  printLine(node ?? nbdSocketPath(pid, minor));
}

/**
 * Runs tapdisk.
 *
 * @param args The arguments after the program's name.
 * @returns The exit status: 0 or a positive error number.
 */
export async function tapdiskMain(args: string[]): Promise<number> {
  try {
    const options = parse(args);
    const { daemon, daemonChild = false, new: image, device } = options;
    allowParentRoots(options);
    if (image !== undefined) {
      await serveImage(image, device);
      return 0;
    }
    if (!daemon || daemonChild) return await serve({ inForeground: !daemonChild });
    printLine(controlSocketPath(await spawnTapdisk()));
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : Errno.EINVAL;
    printErrorLine(`tapdisk: ${messageOf(error)}`);
    return errnoOf(error);
  }
}
