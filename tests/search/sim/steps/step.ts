import { SystemError } from "../../../../ffi/errno.ts";
import type { Random } from "../../../../src/testing/random.ts";
import type { Device, Operation, World } from "../world.ts";

/** Something that a world may do next. */
export interface Step {
  readonly name: string;
  /** How often it is chosen, beside the others that are possible. */
  readonly weight: number;
  /** Whether it is possible; always by default. */
  can?(world: World): boolean;
  run(world: World, random: Random): void | Promise<void>;
}

/** A device at random. */
export function someDevice(
  world: World,
  random: Random,
  is: (device: Device) => boolean = () => true,
): Device | null {
  const fitting = world.devices.filter(is);
  return fitting.length === 0 ? null : fitting[random.below(fitting.length)];
}

/** Whether a device runs. */
export function isOpen({ client }: Device): boolean {
  return client.vbd.phase === "open";
}

/** Whether nothing uses the images of a device. */
export function isClosed({ client }: Device): boolean {
  return client.vbd.phase === "closed";
}

/** Whether a device is paused. */
export function isPaused({ client }: Device): boolean {
  return client.vbd.phase === "paused";
}

/**
 * Does work that a power cut can show a part of. An error is allowed where a fault of the disk may
 * be its cause.
 *
 * @returns Whether it succeeded.
 */
export async function attempt(
  world: World,
  operation: Operation,
  work: () => unknown,
): Promise<boolean> {
  const hitsBefore = world.faults.hits;
  world.operation = operation;
  try {
    await work();
    return true;
  } catch (error) {
    world.assertWell();
    const isRefused = error instanceof SystemError && operation.refusals?.includes(error.errno);
    if (!isRefused && !world.mayFail(error, hitsBefore)) throw error;
    world.trace(() => `  failed: ${error instanceof SystemError ? error.message : error}`);
    // A name that was taken back is there again after a power cut, if its folder could not be synced.
    for (const path of [...world.disk.paths, ...operation.mayBe]) {
      if (!world.images.has(path)) world.leftovers.add(path);
    }
    return false;
  } finally {
    world.operation = null;
    world.assertWell();
  }
}
