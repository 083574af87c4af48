/**
 * Pauses, snapshots, closes and opens of devices.
 *
 * @module
 */
import { type Done, Errno, type SystemError } from "../../../../ffi/errno.ts";
import { liveSnapshot } from "../../../../src/vbd/live_snapshot.ts";
import { changeCbtLog } from "../../../../src/cbt/log_file.ts";
import { snapshot } from "../../../../src/vhd/snapshot.ts";
import { snapshotQcow2 } from "../../../../src/qcow2/snapshot.ts";
import { formatNamed, newFormat } from "../formats/registry.ts";
import type { Client } from "../client.ts";
import { ImageModel } from "../model.ts";
import { DEVICE, type Device, type World } from "../world.ts";
import { attempt, isClosed, isOpen, isPaused, someDevice, type Step } from "./step.ts";

const MOST_LAYERS = 5;
const MOST_IMAGES = 9;
/** 2040 GiB. */
const MOST_VHD_SECTORS = 1_044_480 * 4096;
/** The part of the images on VHDs and raw images that are QCOW2. */
const QCOW2_SHARE = 0.3;

function depthOf(image: ImageModel): number {
  return image.parent === null ? 1 : 1 + depthOf(image.parent);
}

/** Whether a world may have one more layer on an image. */
export function mayGrow(world: World, image: ImageModel): boolean {
  // Nothing that is made here can be on a QCOW of version 1.
  if (formatNamed(image.format).parentAs === "qcow") return false;
  return depthOf(image) < MOST_LAYERS && world.images.size < MOST_IMAGES;
}

/** What the child of an image is to be. A QCOW2 cannot be encrypted, and has no VHD on it. */
function typeOfChild(world: World, { format, sectors }: ImageModel): "vhd" | "qcow2" {
  const { parentAs, encrypted } = formatNamed(format);
  if (parentAs === "qcow2" || sectors > MOST_VHD_SECTORS) return "qcow2";
  return !encrypted && world.random.chance(QCOW2_SHARE) ? "qcow2" : "vhd";
}

/** Runs something that calls back; returns its error. */
export function call(
  world: World,
  what: string,
  start: (done: Done) => void,
): SystemError | null {
  let ended: { error: SystemError | null } | null = null;
  const isOver = (): boolean => ended !== null;
  start((error) => ended = { error });
  world.runUntil(isOver, what);
  return (ended as { error: SystemError | null } | null)?.error ?? null;
}

/** What was answered before an image was closed in order is durable, and so is its log. */
function closedInOrder(world: World, { leaf, log }: Client): void {
  leaf.flushed(world.ticks.next());
  log?.closedInOrder();
}

/** Whether something ended because its time was over. */
function isLate(error: SystemError, timeoutMs: number): boolean {
  return timeoutMs !== Infinity && error.errno === Errno.ETIMEDOUT;
}

/** Pauses a device. */
export function pause(world: World, { client }: Device, timeoutMs = Infinity): Promise<boolean> {
  return attempt(world, { what: "pause", mayBe: [] }, () => {
    const error = call(world, "A pause", (done) => client.vbd.pause(done, timeoutMs));
    if (error !== null && !isLate(error, timeoutMs)) throw error;
    if (error === null) closedInOrder(world, client);
  });
}

/** Resumes a device that is paused, with its leaf; returns whether that succeeded. */
export function resume(world: World, device: Device, isNewLog = false): Promise<boolean> {
  const { client } = device;
  const name = `${device.filter}${world.nameOf(client.leaf)}`;
  return attempt(world, { what: "resume", mayBe: [] }, () => {
    // As after a snapshot: the log belongs to it from now on, and the disk gets another.
    const next = isNewLog && client.log !== null ? world.newLog(client.leaf) : null;
    if (next === null) world.prepareLog(device);
    const options = next === null ? {} : { changedBlocks: next.path };
    // Requests that waited start within the call.
    const before = client.log;
    if (next !== null) client.log = next;
    const error = call(world, "A resume", (done) => client.vbd.resume(name, done, options));
    if (error !== null) {
      client.log = before;
      throw error;
    }
    if (next !== null && before !== null) {
      changeCbtLog(before.path, { storage: world.disk, consistent: 1 });
    }
  });
}

/** Closes a device. */
export function close(world: World, { client }: Device): Promise<boolean> {
  world.closing = true;
  return attempt(world, { what: "close", mayBe: [] }, () => {
    const isOpened = client.vbd.phase === "open";
    const error = call(world, "A close", (done) => client.vbd.close(done));
    world.closing = false;
    if (error !== null) throw error;
    if (!isOpened) return;
    closedInOrder(world, client);
    if (client.log !== null) {
      changeCbtLog(client.log.path, { storage: world.disk, consistent: 1 });
    }
  });
}

function addChild(
  world: World,
  device: Device,
  { path, type }: { path: string; type: "vhd" | "qcow2" },
): void {
  const { client } = device;
  // The one may come to have the other's name; warnings about images of others are no faults.
  const { encrypted } = formatNamed(client.leaf.format);
  const format = client.leaf.format === "made" && type === "vhd"
    ? "made"
    : newFormat({ type, encrypted, onDevice: path.endsWith(DEVICE) }).name;
  const child = new ImageModel(path, client.leaf.sectors, client.leaf, format);
  world.images.set(path, child);
  client.leaf.handOver(child, world.ticks.next());
  client.leaf = child;
}

/** A path for the child of an image; a block device mostly if the image is one. */
function placeOfChild(
  world: World,
  { path, format, sectors }: ImageModel,
  type: "vhd" | "qcow2",
): string {
  const isDevice = formatNamed(format).onDevice && world.random.chance(0.9);
  return isDevice ? world.newDevice(sectors, type) : world.newPath(`.${type}`, path);
}

async function snapshotLive(
  world: World,
  device: Device,
  { type, rename }: { type: "vhd" | "qcow2"; rename: boolean },
): Promise<void> {
  const { client } = device;
  const { path } = client.leaf;
  const added = rename ? world.newPath(`.${type}`, path) : placeOfChild(world, client.leaf, type);
  const mayBe = rename ? [added, `${path}.snapshot`] : [added];
  const timeoutMs = world.random.chance(0.8) ? Infinity : world.random.below(300);
  await attempt(world, { what: "snapshot", mayBe }, () => {
    const error = call(world, "A snapshot", (done) =>
      liveSnapshot(world.context, client.vbd, {
        path: added,
        rename,
        timeoutMs,
        childType: type,
        done: (...[failure]) => {
          if (failure === null) {
            closedInOrder(world, client);
            if (rename) renameModel(world, client.leaf, added);
            addChild(world, device, { path: rename ? path : added, type });
          }
          done(failure);
        },
      }));
    if (error !== null && !isLate(error, timeoutMs)) throw error;
  });
}

function snapshotOffline(
  { disk }: World,
  { path, leaf, type }: { path: string; leaf: ImageModel; type: "vhd" | "qcow2" },
): void {
  const { parentAs } = formatNamed(leaf.format);
  if (type === "qcow2") {
    const parent = { type: parentAs === "raw" ? "aio" : parentAs, path: leaf.path };
    return snapshotQcow2(path, { storage: disk, parent });
  }
  const rawParent = parentAs === "raw";
  snapshot(path, { storage: disk, parent: leaf.path, rawParent, keepEmptyParent: true });
}

function renameModel(world: World, image: ImageModel, path: string): void {
  world.images.delete(image.path);
  image.path = path;
  world.images.set(path, image);
}

const canGrow = (world: World, is: (device: Device) => boolean): boolean =>
  world.devices.some((device) => is(device) && mayGrow(world, device.client.leaf));

/** Steps that change the state of devices. */
export const stateSteps: readonly Step[] = [
  {
    name: "pause",
    weight: 4,
    can: ({ devices }) => devices.some(isOpen),
    async run(world, random) {
      const device = someDevice(world, random, isOpen);
      if (device === null) return;
      await pause(world, device, random.chance(0.7) ? Infinity : random.below(300));
    },
  },
  {
    name: "resume",
    weight: 12,
    can: ({ devices }) => devices.some(isPaused),
    async run(world, random) {
      const device = someDevice(world, random, isPaused);
      if (device !== null) await resume(world, device, random.chance(0.15));
    },
  },
  {
    name: "snapshot of a running disk",
    weight: 4,
    can: (world) => canGrow(world, isOpen),
    async run(world, random) {
      const device = someDevice(world, random, isOpen);
      if (device === null || !mayGrow(world, device.client.leaf)) return;
      // An image of another type in the place of one that is renamed has another name than the device.
      const { path, format } = device.client.leaf;
      const type = typeOfChild(world, device.client.leaf);
      const { parentAs, onDevice } = formatNamed(format);
      const canRename = parentAs === type && !onDevice &&
        !world.leftovers.has(`${path}.snapshot`);
      await snapshotLive(world, device, { type, rename: canRename && random.chance(0.5) });
    },
  },
  {
    name: "snapshot of a disk that is paused or closed",
    weight: 3,
    can: (world) => canGrow(world, (device) => !isOpen(device)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => isPaused(each) || isClosed(each));
      if (device === null || !mayGrow(world, device.client.leaf)) return;
      const { leaf } = device.client;
      const type = typeOfChild(world, leaf);
      const path = placeOfChild(world, leaf, type);
      const made = await attempt(
        world,
        { what: "offline snapshot", mayBe: [path] },
        () => snapshotOffline(world, { path, leaf, type }),
      );
      if (made) addChild(world, device, { path, type });
    },
  },
  {
    name: "close",
    weight: 4,
    can: ({ devices }) => devices.some((device) => !isClosed(device)),
    async run(world, random) {
      const device = someDevice(world, random, (each) => !isClosed(each));
      if (device !== null) await close(world, device);
    },
  },
  {
    name: "open",
    weight: 10,
    can: ({ devices }) => devices.some(isClosed),
    async run(world, random) {
      const device = someDevice(world, random, isClosed);
      if (device === null) return;
      await attempt(world, { what: "open", mayBe: [] }, () => world.reopen(device));
    },
  },
];
