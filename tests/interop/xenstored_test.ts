/** The client of xenstored, and tapback, with Xen's own xenstored. */
import assert from "node:assert/strict";
import { Errno, errnoOf } from "../../ffi/errno.ts";
import { osStorage } from "../../src/files/storage.ts";
import { checkQcow2 } from "../../src/qcow2/check.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { openQcow2 } from "../../src/qcow2/image/image.ts";
import { Xenstore } from "../../src/xenstore/store.ts";
import { commandLine, until } from "../support/control.ts";
import { Qcow2Reader } from "../support/qcow2_reader.ts";
import { needs, withTempDir } from "../support/tools.ts";
import { encodeTexts } from "../../src/xenstore/wire.ts";
import { GuestTapdisk } from "../support/xen/guest_tapdisk.ts";
import { Op, type Segment } from "../support/xen/played_guest.ts";
import { PlayedControl } from "../support/xen/played_control.ts";
import { MISSING_FOR_XENSTORED, RealXenstored } from "../support/xen/real_xenstored.ts";

const tools = needs(...MISSING_FOR_XENSTORED);

async function withXenstored(body: (folder: string) => Promise<void> | void): Promise<void> {
  await withTempDir(async (folder) => {
    const store = `${folder}/store`;
    Deno.mkdirSync(store);
    const xenstored = await RealXenstored.start(store);
    Deno.env.set("XENSTORED_PATH", xenstored.socket);
    try {
      await body(folder);
    } finally {
      Deno.env.delete("XENSTORED_PATH");
      await xenstored.end();
    }
  });
}

function errnoFrom(call: () => unknown): number {
  try {
    call();
  } catch (error) {
    return errnoOf(error);
  }
  return 0;
}

function events(store: Xenstore): string[] {
  const found: string[] = [];
  for (let event = store.nextEvent(); event !== null; event = store.nextEvent()) {
    found.push(`${event.path} ${event.token}`);
  }
  return found;
}

Deno.test({
  name: `xenstored: nodes, lists, watches and errors${tools.suffix}`,
  ignore: tools.ignore,
  fn: () =>
    withXenstored(() => {
      const store = new Xenstore();
      assert.deepEqual([store.read("/a/b"), store.list("/a")], [null, null]);
      store.write("/a/b", "one");
      store.make("/a/c");
      store.make("/a/c");
      assert.deepEqual([store.read("/a/b"), store.read("/a/c")], ["one", ""]);
      assert.deepEqual(store.list("/a"), ["b", "c"]);
      assert.deepEqual(store.permissions("/a/b"), ["n0"]);
      store.write("backend/x", "2");
      assert.equal(store.read("/local/domain/0/backend/x"), "2");
      const names = Array.from({ length: 900 }, (_, i) => `node-${i}`);
      for (const name of names) store.write(`/long/${name}`, "");
      assert.deepEqual(store.list("/long")?.sort(), names.sort());
      assert.equal(store.read("/a//b"), null);
      assert.equal(errnoFrom(() => store.write("/a b", "")), Errno.EINVAL);
      store.remove("/q/w/e");

      store.watch("backend/y", "t");
      assert.equal(errnoFrom(() => store.watch("backend/y", "t")), Errno.EEXIST);
      store.write("backend/y/1/2", "");
      store.watch("/z/1/state", "f");
      store.write("/z/1/state", "3");
      store.write("/z/1/other", "3");
      store.remove("/z");
      store.remove("backend/y");
      assert.equal(store.read("/a/b"), "one");
      assert.deepEqual(events(store), [
        "backend/y t",
        "backend/y/1/2 t",
        "/z/1/state f",
      ]);
      store.unwatch("backend/y", "t");
      store.unwatch("backend/y", "t");
      store.close();
      assert.equal(errnoFrom(() => store.read("/a")) > 0, true);
    }),
});

Deno.test({
  name: `xenstored: a transaction is done again until nobody interferes${tools.suffix}`,
  ignore: tools.ignore,
  fn: () =>
    withXenstored(() => {
      const [store, other] = [new Xenstore(), new Xenstore()];
      store.write("/count", "0");
      let others = 3;
      const add = (): boolean =>
        store.transaction((nodes) => {
          const count = Number(nodes.read("/count"));
          if (others-- > 0) other.write("/count", String(count + 10));
          nodes.write("/count", String(count + 1));
          return true;
        });
      assert.equal(add(), true);
      assert.equal(store.read("/count"), "31");
      assert.equal(
        store.transaction((nodes) => {
          nodes.remove("/count");
          return nodes.list("/count") !== null;
        }),
        false,
      );
      assert.equal(store.read("/count"), "31");
      others = Infinity;
      assert.equal(errnoFrom(add), Errno.EAGAIN);
      store.close();
      other.close();
    }),
});

/** A tapback that runs. */
function startTapback(folder: string): Deno.ChildProcess {
  const [program, ...args] = commandLine("tapback", "-d", "-v");
  const env = { BLKTAP_CONTROL_DIR: `${folder}/control` };
  return new Deno.Command(program, { args, env, stdin: "null", stdout: "null", stderr: "null" })
    .spawn();
}

/** XS_SET_PERMS of xs_wire.h: what a toolstack does. */
const SET_PERMS = 14;

/** An empty disk of 4 MiB. */
function imageOf(folder: string, type: string): string {
  if (type !== "qcow2") return "ram:4";
  createQcow2(`${folder}/disk.qcow2`, { sizeBytes: 4 << 20 });
  return `qcow2:${folder}/disk.qcow2`;
}

/** The guest's last write is in the image, and nothing is wrong with it. */
function assertSound(path: string): void {
  const image = openQcow2(path);
  const { errors, leakedClusters } = checkQcow2(image);
  image.close();
  assert.deepEqual([errors, leakedClusters], [[], 0]);
  const reader = new Qcow2Reader(osStorage, path);
  const sector = new Uint8Array(512);
  reader.read(sector, 0);
  reader.close();
  assert.ok(sector.every((byte) => byte === 4));
}

for (const type of ["ram", "qcow2"]) {
  Deno.test({
    name:
      `xenstored: a guest's disk, a ${type}, through tapback and a tapdisk, and without tapback${tools.suffix}`,
    ignore: tools.ignore,
    fn: () =>
      withXenstored(async (folder) => {
        Deno.mkdirSync(`${folder}/control/tapdisk`, { recursive: true });
        Deno.env.set("BLKTAP_CONTROL_DIR", `${folder}/control`);
        const tapdisk = new GuestTapdisk({ domain: 3, order: 1 }, imageOf(folder, type));
        const { guest, minor } = tapdisk;
        const store = new Xenstore();
        const back = "/local/domain/0/backend/vbd3/3/51712";
        const front = "/local/domain/3/device/vbd/51712";
        const put = (folder: string, nodes: Record<string, string>): void => {
          for (const [name, value] of Object.entries(nodes)) {
            store.write(`${folder}/${name}`, value);
          }
        };
        const state = (wanted: number): Promise<void> =>
          tapdisk.until(`state ${wanted}`, () => store.read(`${back}/state`) === String(wanted));
        const segments: Segment[] = [[guest.reference(8), 0, 7]];
        const useDisk = async (value: number): Promise<void> => {
          guest.sectors(8, 0, 7).fill(value);
          assert.equal(await tapdisk.request({ operation: Op.Write, id: 1n, segments }), 0);
          guest.sectors(8, 0, 7).fill(0);
          assert.equal(await tapdisk.request({ operation: Op.Read, id: 2n, segments }), 0);
          assert.ok(guest.sectors(8, 0, 7).every((byte) => byte === value));
        };
        let child = startTapback(folder);
        store.make(front);
        store.ask(SET_PERMS, encodeTexts(front, "n3", "r0"));
        store.make(back);
        // The guest may read what its backend writes, and change none of it.
        store.ask(SET_PERMS, encodeTexts(back, "n0", "r3"));
        put(front, { "device-type": "disk", state: "1" });
        put(back, { frontend: front, online: "1", mode: "w", "device-type": "disk", state: "1" });
        await state(2);
        put(back, {
          "physical-device-path": `/run/blktap-control/nbd${Deno.pid}.${minor}`,
          "hotplug-status": "connected",
        });
        put(front, { ...tapdisk.ringNodes, state: "3" });
        await state(4);
        put(front, { state: "4" });
        await useDisk(1);
        for (const name of store.list(back) ?? []) {
          assert.deepEqual(store.permissions(`${back}/${name}`), ["n0", "r3"], name);
        }
        child.kill("SIGKILL");
        await child.status;
        await useDisk(2);
        child = startTapback(folder);
        await tapdisk.until("the ring is found", () => tapdisk.log.some((l) => /EALREADY/.test(l)));
        await useDisk(3);
        // The guest resumes, with a new ring.
        guest.reset();
        put(front, { state: "3" });
        await tapdisk.until(
          "another ring",
          () => tapdisk.log.filter((line) => line.startsWith("Connected device")).length === 2,
        );
        put(front, { state: "4" });
        await useDisk(4);
        put(back, { online: "0", state: "5" });
        put(front, { state: "6" });
        await state(6);
        store.remove("/local/domain/0/backend/vbd3/3");
        child.kill("SIGTERM");
        assert.equal((await child.status).code, 0);
        store.close();
        await tapdisk.close();
        Deno.env.delete("BLKTAP_CONTROL_DIR");
        if (type === "qcow2") assertSound(`${folder}/disk.qcow2`);
      }),
  });
}

Deno.test({
  name: `xenstored: tapback serves a device from its start to its end${tools.suffix}`,
  ignore: tools.ignore,
  fn: () =>
    withXenstored(async (folder) => {
      Deno.mkdirSync(`${folder}/control/tapdisk`, { recursive: true });
      const control = new PlayedControl(`${folder}/control`, 4711, 2, 8192);
      const [program, ...args] = commandLine("tapback", "-d", "-v", "-x", "3");
      const child = new Deno.Command(program, {
        args,
        env: { BLKTAP_CONTROL_DIR: `${folder}/control` },
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn();
      const log = new Response(child.stderr).text();
      const store = new Xenstore();
      const back = "/local/domain/0/backend/vbd3/3/51712";
      const front = "/local/domain/3/device/vbd/51712";
      const put = (folder: string, nodes: Record<string, string>): void =>
        void store.transaction((inside) => {
          for (const [name, value] of Object.entries(nodes)) {
            inside.write(`${folder}/${name}`, value);
          }
          return true;
        });
      const state = (wanted: number): Promise<void> =>
        until(`state ${wanted}`, () => store.read(`${back}/state`) === String(wanted));
      put(front, { state: "1" });
      const nodes = { frontend: front, online: "1", mode: "w", "device-type": "disk", state: "1" };
      put(back, nodes);
      await state(2);
      put(back, { "physical-device-path": "/run/blktap-control/nbd4711.2" });
      put(back, { "hotplug-status": "connected" });
      put(front, { "ring-ref": "8", "event-channel": "9", protocol: "x86_64-abi", state: "3" });
      await state(4);
      assert.equal(store.read(`${back}/sectors`), "8192");
      assert.equal(control.rings.size, 1);
      put(front, { state: "4" });
      put(back, { online: "0", state: "5" });
      put(front, { state: "6" });
      await state(6);
      assert.equal(control.rings.size, 0);
      store.remove(`/local/domain/0/backend/vbd3/3`);
      store.remove("/local/domain/3");
      // It served only this domain.
      assert.equal((await child.status).code, 0, await log);
      assert.equal(store.read(back), null);
      control.close();
      store.close();
    }),
});
