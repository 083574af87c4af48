import { Errno, SystemError } from "../../../ffi/errno.ts";
import { closeFile, O_RDWR, openFile } from "../../../ffi/files.ts";
import { Arena } from "../../../ffi/memory.ts";
import {
  DEVICE_INFO_BYTES,
  type DeviceInfo,
  type DiskParameters,
  encodedControlCommand,
  getDeviceInfo,
  PARAMETERS_BYTES,
  putControlCommand,
  putDeviceInfo,
  putParameters,
  UBLK_ANY_DEVICE,
  UBLK_CMD_ADD_DEV,
  UBLK_CMD_DEL_DEV,
  UBLK_CMD_END_USER_RECOVERY,
  UBLK_CMD_GET_DEV_INFO,
  UBLK_CMD_GET_FEATURES,
  UBLK_CMD_SET_PARAMS,
  UBLK_CMD_START_DEV,
  UBLK_CMD_START_USER_RECOVERY,
  UBLK_CMD_STOP_DEV,
  UBLK_CMD_TRY_STOP_DEV,
  UBLK_CMD_UPDATE_SIZE,
  UBLK_CONTROL_PATH,
  UBLK_F_CMD_IOCTL_ENCODE,
  UBLK_F_SAFE_STOP_DEV,
  UBLK_F_UPDATE_SIZE,
} from "../../../ffi/ublk.ts";
import type { UringLoop, UringUser } from "../../queue/uring_loop.ts";

const FEATURES_BYTES = 8;

/** Called with the result of a command: zero or above, or a negative errno. */
export type Answer = (result: number) => void;

interface Command {
  /** `cmd_op`, encoded if the kernel wants that. */
  readonly number: number;
  readonly device: number;
  /** Bytes of memory that the kernel reads or writes. */
  readonly lengthBytes?: number;
  readonly data?: number;
  /** Writes the memory that the kernel reads. */
  readonly fill?: (view: DataView) => void;
  readonly answer: Answer;
}

/** The methods of `UringLoop` that commands need. */
export type ControlRing = Pick<UringLoop, "add" | "remove" | "prepareCommand" | "commands">;

/**
 * Sends commands to /dev/ublk-control, one at a time. Some take long: the kernel reads from the
 * disk or waits for its users. They run on threads of the kernel, and the loop continues.
 */
export class UblkControl implements UringUser {
  readonly #uring: ControlRing;
  readonly #fd: number;
  readonly #ringTag: number;
  /** The memory that commands read and write. */
  readonly #memory = new Arena(DEVICE_INFO_BYTES);
  #features = 0;
  #underWay: Command | null = null;
  readonly #waiting: Command[] = [];
  #isClosed = false;

  /** Throws `SystemError`. */
  constructor(uring: ControlRing, path = UBLK_CONTROL_PATH) {
    this.#uring = uring;
    this.#fd = openFile(path, O_RDWR);
    this.#ringTag = uring.add(this);
  }

  /** Whether the kernel takes encoded numbers of commands. */
  get encoded(): boolean {
    return (this.#features & UBLK_F_CMD_IOCTL_ENCODE) !== 0;
  }

  /** Whether the kernel can change the size of a device in use. */
  get canResize(): boolean {
    return (this.#features & UBLK_F_UPDATE_SIZE) !== 0;
  }

  /** Whether the kernel can refuse to stop a device in use. */
  get canStopSafely(): boolean {
    return (this.#features & UBLK_F_SAFE_STOP_DEV) !== 0;
  }

  #queue(command: Command): void {
    if (this.#underWay === null) this.#send(command);
    else this.#waiting.push(command);
  }

  #send(command: Command): void {
    const { number, device, lengthBytes = 0, data = 0, fill } = command;
    this.#underWay = command;
    fill?.(this.#memory.view);
    const address = lengthBytes > 0 ? this.#memory.address : 0;
    const at = this.#uring.prepareCommand(this.#fd, number, 0, this.#ringTag);
    putControlCommand(this.#uring.commands, at, { device, address, lengthBytes, data });
  }

  /** Queues a command by its plain number. */
  #command(number: number, rest: Omit<Command, "number">): void {
    this.#queue({ number: this.encoded ? encodedControlCommand(number) : number, ...rest });
  }

  uringDone(_id: number, result: number): void {
    const ended = this.#underWay;
    this.#underWay = null;
    // The callback reads the memory, and may call `close`.
    ended?.answer(result);
    if (this.#underWay !== null) return;
    const next = this.#waiting.shift();
    if (next !== undefined) this.#send(next);
  }

  /**
   * Asks for the features of the kernel; the first command. Kernels before 6.5 do not report them.
   */
  askFeatures(done: () => void): void {
    this.#queue({
      number: encodedControlCommand(UBLK_CMD_GET_FEATURES),
      device: UBLK_ANY_DEVICE,
      lengthBytes: FEATURES_BYTES,
      answer: (result) => {
        this.#features = result < 0 ? 0 : this.#memory.view.getUint32(0, true);
        done();
      },
    });
  }

  /** Adds a device. The kernel may change properties: the callback receives the actual ones. */
  add(
    wanted: Omit<DeviceInfo, "state" | "pid">,
    answer: (result: number, info: DeviceInfo) => void,
  ): void {
    this.#command(UBLK_CMD_ADD_DEV, {
      device: wanted.device,
      lengthBytes: DEVICE_INFO_BYTES,
      fill: (view) => putDeviceInfo(view, 0, wanted),
      answer: (result) => answer(result, getDeviceInfo(this.#memory.view, 0)),
    });
  }

  /** Gets the properties of a device. */
  info(device: number, answer: (result: number, info: DeviceInfo) => void): void {
    this.#command(UBLK_CMD_GET_DEV_INFO, {
      device,
      lengthBytes: DEVICE_INFO_BYTES,
      answer: (result) => answer(result, getDeviceInfo(this.#memory.view, 0)),
    });
  }

  /**
   * Sets the parameters of a device that has not started. -EACCES while a process has the previous
   * disk of a stopped device open.
   */
  setParameters(device: number, disk: DiskParameters, answer: Answer): void {
    this.#command(UBLK_CMD_SET_PARAMS, {
      device,
      lengthBytes: PARAMETERS_BYTES,
      fill: (view) => putParameters(view, 0, disk),
      answer,
    });
  }

  /**
   * Starts the device: the kernel creates the disk and reads its partition table. All requests must
   * have been fetched.
   */
  start(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_START_DEV, { device, data: Deno.pid, answer });
  }

  /**
   * Prepares a device for a new server; -EBUSY until the kernel has noticed that the old one died.
   */
  startRecovery(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_START_USER_RECOVERY, { device, answer });
  }

  /** Resumes a device. The kernel first sends again what the dead server had not answered. */
  endRecovery(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_END_USER_RECOVERY, { device, data: Deno.pid, answer });
  }

  /** Sets the size of a started device, sectors. */
  updateSize(device: number, sectors: number, answer: Answer): void {
    this.#command(UBLK_CMD_UPDATE_SIZE, { device, data: sectors, answer });
  }

  /** Removes the disk even if it is in use, and completes all commands of the queues. */
  stop(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_STOP_DEV, { device, answer });
  }

  /** The same, but -EBUSY while the disk is in use. Requires `canStopSafely`. */
  tryStop(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_TRY_STOP_DEV, { device, answer });
  }

  /** Removes a device. The kernel waits until no process has its disk or its own file open. */
  remove(device: number, answer: Answer): void {
    this.#command(UBLK_CMD_DEL_DEV, { device, answer });
  }

  /**
   * Closes the control device. No command may be in flight. A second call does nothing: a device that is
   * discarded closes it, and so does whoever hears that this was needed.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#uring.remove(this.#ringTag);
    closeFile(this.#fd);
    this.#memory.release();
  }
}

/** Why the control device cannot be opened; null when it can be. */
export function controlMissing(): string | null {
  try {
    closeFile(openFile(UBLK_CONTROL_PATH, O_RDWR));
    return null;
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    if (error.errno === Errno.ENOENT) return "the kernel has no ublk_drv; try 'modprobe ublk_drv'";
    if (error.errno === Errno.ENODEV || error.errno === Errno.ENXIO) {
      return `${UBLK_CONTROL_PATH} exists, but ublk_drv is not loaded; try 'modprobe ublk_drv'`;
    }
    return error.message;
  }
}
