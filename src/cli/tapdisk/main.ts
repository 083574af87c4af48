/**
 * `src/cli/tapdisk`: tapdisk, which serves disks until its last device is detached or a signal ends
 * it. The folder parses arguments, puts the parts of the daemon together, and handles signals. It must
 * not serve requests or carry out control messages itself.
 *
 * @module
 */
import { Command, CommanderError, Option } from "commander";
import { Errno, errnoOf, messageOf } from "../../../ffi/errno.ts";
import { createDevice } from "../../control/client/lifecycle.ts";
import { type DeviceChoice, OPEN_DEFAULTS } from "../../control/protocol/open_request.ts";
import { controlSocketPath, nbdSocketPath } from "../../control/paths.ts";
import { DAEMON_ARGUMENT, SHARED_ARGUMENT, spawnTapdisk } from "../../control/client/spawn.ts";
import { TAKE_OVER_ARGUMENT } from "../../control/handover/successor.ts";
import { absoluteImage, imagesHelp } from "../tap_ctl/image_names.ts";
import { deviceChoice } from "../tap_ctl/image_options.ts";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { serve } from "./serving.ts";
import { STDIN_ARGUMENTS, STDIN_ARGUMENTS_NOTE } from "../stdin_arguments.ts";
import { printErrorLine, printLine, writeError } from "../print.ts";

interface TapdiskOptions extends ParentRootChoices {
  /** False for `-D`. */
  readonly daemon: boolean;
  /** True in the process that runs in the background. */
  readonly daemonChild?: boolean;
  /** True in a process that takes disks of several callers. */
  readonly shared?: boolean;
  /** The process whose disks it takes over. */
  readonly takeOver?: number;
  /** The image to serve, for `-n`. */
  readonly new?: string;
  readonly device: DeviceChoice;
}

const NOTES = `
Without -D, tapdisk runs in the background, in a session of its own. With or without -D, it prints the
path of its control socket when the socket takes connections. Use tap-ctl to attach devices and to open
images. tapdisk ends when its last device is detached.

-n serves one image in the background and prints the node of the block device, such as
/dev/xen/blktap-2/tapdev0, or the path of the NBD socket when no block device can be made.
'tap-ctl list' shows the disk, 'tap-ctl destroy' ends it.

${STDIN_ARGUMENTS_NOTE}:

  printf '%s\\0' "vhd:$name" | tapdisk -n ${STDIN_ARGUMENTS}

Signals: SIGTERM and SIGINT close all disks in order and end tapdisk. A second signal during that time
ends tapdisk at once. While a block device is in use, its disk stays open and tapdisk keeps running; the
log says so, and the next signal tries again. A tapdisk of several callers (BLKTAP_DISKS_PER_PROCESS)
ignores SIGTERM while it has disks, unless SIGCONT comes with it, as from systemd. SIGHUP opens the log file again. SIGUSR1 logs all disks,
the requests in flight, and the statistics.

Environment: BLKTAP_CONTROL_DIR is the folder of the sockets, by default /run/blktap-control.
BLKTAP_LOG_DIR is the folder of the log, by default /var/log/blktap, or log in BLKTAP_CONTROL_DIR.
BLKTAP_LOG_FORMAT is text, json (a JSON object a line), or journal (fields to systemd's journal).
Parents of an image must be in the folder tree of the image, or in one of the folders of
BLKTAP_PARENT_ROOTS (separated by colons) and /etc/blktap/parent-roots (one per line). The folder 'any'
allows all folders. BLKTAP_TLS_CERTIFICATES, BLKTAP_TLS_PSK_FILE and BLKTAP_TLS_USERNAME are the
certificates, the file of keys and the name of the key of images of the types nbds and nbds+unix, unless
their names say others. With BLKTAP_KERNEL_TLS=off, TLS is done in the process and never in the kernel.
BLKTAP_CEPH_USER is the user of images on Ceph whose names have no ,id=USER, instead of admin.`;

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
      deviceChoice("auto", "with -n: the kind of block device to make").env("BLKTAP_DEVICE"),
    )
    .addOption(new Option(DAEMON_ARGUMENT).hideHelp())
    .addOption(new Option(SHARED_ARGUMENT).hideHelp())
    .addOption(new Option(`${TAKE_OVER_ARGUMENT} <pid>`).argParser(Number).hideHelp())
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
    const { daemon, daemonChild = false, shared = false, takeOver, device } = options;
    const { new: image } = options;
    allowParentRoots(options);
    if (image !== undefined) {
      await serveImage(image, device);
      return 0;
    }
    if (!daemon || daemonChild) {
      return await serve({ inForeground: !daemonChild, shared, takeOver });
    }
    printLine(controlSocketPath(await spawnTapdisk()));
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : Errno.EINVAL;
    printErrorLine(`tapdisk: ${messageOf(error)}`);
    return errnoOf(error);
  }
}
