/**
 * Images whose close fails: the device reports an error, and the log has the image and the reason.
 */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { DiskFile, DiskFiles } from "../../src/queue/disk_files.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import type { Storage } from "../../src/files/storage.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { Vbd } from "../../src/vbd/vbd.ts";
import { Simulation } from "../support/sim.ts";

/** Files whose close returns EIO, which is possible on NFS. */
function closedWithEio(files: DiskFiles): DiskFiles {
  return {
    storage: files.storage,
    openCached: (path) => files.openCached(path),
    open: (path, options): DiskFile => {
      const file = files.open(path, options);
      const close = file.close.bind(file);
      file.close = (): void => {
        close();
        throw new SystemError(Errno.EIO, `Cannot close ${path}`);
      };
      return file;
    },
  };
}

for (const name of ["vhd:/disk.vhd", "aio:/disk.raw", "log:bc:4:vhd:/disk.vhd"]) {
  for (const readOnly of [false, true]) {
    const how = readOnly ? "that was only read" : "that was written";
    Deno.test(`an error of closing ${name} ${how} is told, with the file's name`, () => {
      const simulation = new Simulation({ seed: 1 });
      const { context } = simulation;
      const { storage } = context.files;
      createDynamic("/disk.vhd", { storage, sizeBytes: 4 << 20 });
      const raw = storage.open("/disk.raw", "create-new");
      raw.truncate(4 << 20);
      raw.close();
      const vbd = new Vbd({ ...context, files: closedWithEio(context.files) }, 0);
      vbd.open(name, { readOnly });
      let ended: unknown[] | null = null;
      vbd.close((error) => ended = [error?.message]);
      simulation.runUntil(() => ended !== null, "Closing");
      vbd.destroy();
      assert.match(JSON.stringify(ended), /Cannot close .* in order \(see the log\)/);
      const path = name.replace(/^.*:/, "");
      const line = `Cannot close ${path} in order: Cannot close ${path}: Input/output error (EIO)`;
      assert.deepEqual(simulation.log, [line]);
      simulation.close();
    });
  }
}

/** Files of metadata whose close returns EIO as soon as `isArmed`. */
function metadataClosedWithEio(storage: Storage, isArmed: () => boolean): Storage {
  const open: Storage["open"] = (path, mode, options) => {
    const file = storage.open(path, mode, options);
    const close = file.close.bind(file);
    file.close = (): void => {
      close();
      if (isArmed()) throw new SystemError(Errno.EIO, `Cannot close ${path}`);
    };
    return file;
  };
  return new Proxy(storage, {
    get(target, name): unknown {
      if (name === "open") return open;
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

for (const type of ["vhd", "qcow2"]) {
  Deno.test(`an error of closing the metadata of a ${type} leaves no file open, and no lock`, () => {
    const simulation = new Simulation({ seed: 1 });
    const { context } = simulation;
    const { files } = context;
    const path = `/disk.${type}`;
    if (type === "vhd") createDynamic(path, { storage: files.storage, sizeBytes: 4 << 20 });
    else createQcow2(path, { storage: files.storage, sizeBytes: 4 << 20 });
    let isArmed = false;
    const storage = metadataClosedWithEio(files.storage, () => isArmed);
    const vbd = new Vbd({
      ...context,
      files: {
        storage,
        openCached: (name) => files.openCached(name),
        open: (name, options) => files.open(name, options),
      },
    }, 0);
    vbd.open(`${type}:${path}`);
    isArmed = true;
    let errno: number | null = null;
    vbd.close((error) => errno = error?.errno ?? 0);
    simulation.runUntil(() => errno !== null, "Closing");
    vbd.destroy();
    assert.equal(errno, Errno.EIO);
    // The lock is free.
    simulation.open(`${type}:${path}`).close();
    simulation.close();
  });
}
