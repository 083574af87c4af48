/** Names of images on Ceph, maps of objects, and the driver's parts that need no cluster. */
import assert from "node:assert/strict";
import { threadsLeft } from "../../ffi/client_room.ts";
import { allowParentsIn } from "../../src/files/confinement.ts";
import { osStorage, type Storage } from "../../src/files/storage.ts";
import { commitImage, snapshotImage } from "../../src/images/change.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { checkImage } from "../../src/vhd/check/check.ts";
import { cephNameOfPath, pathOfCephName } from "../../src/vhd/format/ceph_path.ts";
import { encodeLocation } from "../../src/vhd/format/locator.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { locateParent, unresolvedParent } from "../../src/vhd/image/parent.ts";
import { parentOnCeph } from "../../src/vhd/image/parent_on_ceph.ts";
import { snapshotOnCeph } from "../../src/vhd/snapshot.ts";
import { librbd } from "../../ffi/librbd.ts";
import { SharedRoom } from "../../ffi/limited.ts";
import { FreeNumbers } from "../../src/driver/free_numbers.ts";
import { RbdImage } from "../../src/driver/rbd/rbd_image.ts";
import { objectBits, type RbdSession } from "../../ffi/rbd_session.ts";
import type { ImageContext, RequestSink } from "../../src/driver/driver.ts";
import { ExtentQuestions } from "../../src/driver/rbd/extent_questions.ts";
import { backingNameOnCeph, backingOnCeph } from "../../src/qcow2/image/named_files.ts";
import { prepareBelow } from "../../src/driver/rbd/prepare_below.ts";
import { OpenedImage } from "../../src/driver/rbd/opened_image.ts";
import { Operations } from "../../src/driver/rbd/operations.ts";
import { rbdDriver } from "../../src/driver/rbd/rbd_driver.ts";
import { ramDriver } from "../../src/driver/ram.ts";
import { registerDriver } from "../../src/driver/registry.ts";
import { Simulation } from "../support/sim.ts";
import { parseRbdName } from "../../src/driver/rbd/rbd_name.ts";

const MIB = 1 << 20;

Deno.test("names of images on Ceph have their parts", () => {
  const common = { readOnly: false, cluster: "ceph", user: "admin", conf: null };
  const cases = [
    ["p/i", { pool: "p", namespace: "", image: "i", snapshot: null }],
    ["p/n/i@s", { pool: "p", namespace: "n", image: "i", snapshot: "s" }],
    ["p/i@a@b", { pool: "p", namespace: "", image: "i", snapshot: "a@b" }],
    ["p/i,id=client.x,cluster=c,conf=/f=1", {
      pool: "p",
      namespace: "",
      image: "i",
      snapshot: null,
      user: "x",
      cluster: "c",
      conf: "/f=1",
    }],
  ] as const;
  for (const [name, parts] of cases) {
    const place = parseRbdName(name, { readOnly: false });
    assert.deepEqual(place, { ...common, title: `rbd:${name}`, ...parts });
  }
});

Deno.test("what is no name of an image on Ceph is refused", () => {
  const cases = [
    ["p", /named rbd:POOL\/IMAGE/],
    ["p/n/i/x", /named rbd:POOL\/IMAGE/],
    ["/i", /part of its name is empty/],
    ["p/", /part of its name is empty/],
    ["p//i", /part of its name is empty/],
    ["p/i@", /part of its name is empty/],
    ["p/@s", /part of its name is empty/],
    ["p/i,conf=ceph.conf", /absolute path/],
    ["p/i,conf=", /"conf=" is none of/],
    ["p/i,pool=x", /"pool=x" is none of/],
    ["p/i,", /"" is none of/],
    ["p/i,id=a,id=b", /id= is there twice/],
  ] as const;
  for (const [name, why] of cases) {
    assert.throws(() => parseRbdName(name, { readOnly: false }), why, name);
  }
});

Deno.test("the user of an image on Ceph is that of its name, or of the environment", () => {
  const userOf = (name: string): string => parseRbdName(name, { readOnly: true }).user;
  Deno.env.set("BLKTAP_CEPH_USER", "xen");
  try {
    assert.deepEqual([userOf("p/i"), userOf("p/i,id=other")], ["xen", "other"]);
  } finally {
    Deno.env.delete("BLKTAP_CEPH_USER");
  }
  assert.equal(userOf("p/i"), "admin");
});

Deno.test("paths of the kernel's devices are names of images on Ceph, and nothing else is", () => {
  for (const name of ["p/i", "p/i@s", "p/n/i@s", "p/.i", "p:q/i:r"]) {
    assert.equal(pathOfCephName(name), `/dev/rbd/${name}`);
    assert.equal(cephNameOfPath(`/dev/rbd/${name}`), name);
  }
  const names = ["p", "p/", "/i", "p//i", "p/n/m/i", "../i", "p/..", "p/./i", "p\\q/i", "p/i@a@b"];
  for (const name of [...names, "p/i@", "p/i,id=x", "p/i,conf=/f", "p/i\0"]) {
    assert.equal(pathOfCephName(name), null, name);
    assert.equal(cephNameOfPath(`/dev/rbd/${name}`), null, name);
  }
  for (const path of ["rbd:p/i", "p/i", "/dev/rbd0", "./dev/rbd/p/i", "/x/dev/rbd/p/i"]) {
    assert.equal(cephNameOfPath(path), null, path);
  }
});

Deno.test("a VHD on an image on Ceph is followed there only where that is allowed", () => {
  const folder = Deno.makeTempDirSync();
  const path = `${folder}/child.vhd`;
  assert.throws(
    () => snapshotOnCeph(path, { name: "p/i,conf=/f", sizeBytes: 4 * MIB }),
    /cannot store the name rbd:p\/i,conf=\/f of its parent.*EINVAL/,
  );
  snapshotOnCeph(path, { name: "pool/space/image@v1", sizeBytes: 4 * MIB });
  const look = (): string | null => {
    const image = openVhd(path);
    try {
      assert.equal(unresolvedParent(image), "/dev/rbd/pool/space/image@v1");
      return parentOnCeph(image);
    } finally {
      image.close();
    }
  };
  assert.throws(look, /its parent is rbd:pool\/space\/image@v1 \(EPERM\).*--parent-root rbd/);
  assert.equal(checkImage(path).valid, false);
  const before = allowParentsIn(["rbd"]);
  try {
    assert.equal(look(), "pool/space/image@v1");
    assert.deepEqual(checkImage(path).findings, []);
    // What reads VHDs without tapdisk's drivers has no parent, and reads nothing in its place.
    assert.throws(() => openChain(path), /rbd:pool\/space\/image@v1 is on Ceph \(ENOENT\)/);
    // A file in the tree of the child of that very name is what it was before: a parent that is there.
    Deno.mkdirSync(`${folder}/dev/rbd/pool/space`, { recursive: true });
    Deno.writeFileSync(`${folder}/dev/rbd/pool/space/image@v1`, new Uint8Array(4096));
    assert.equal(look(), null);
  } finally {
    allowParentsIn(before);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a file that any locator leads to is the parent, and no image on Ceph in its place", () => {
  const folder = Deno.makeTempDirSync();
  const path = `${folder}/child.vhd`;
  const name = "pool/image@v1";
  snapshotOnCeph(path, { name, sizeBytes: 4 * MIB });
  const look = (): { onCeph: string | null; file: string } => {
    const image = openVhd(path);
    try {
      return { onCeph: parentOnCeph(image), file: locateParent(image).path };
    } finally {
      image.close();
    }
  };
  // The second locator names a file beside the image, by a name of the same length.
  const beside = "x".repeat(`/dev/rbd/${name}`.length);
  const image = openVhd(path);
  const { dataOffset, code } = image.parent?.locators[1] ?? assert.fail();
  image.close();
  const bytes = Deno.readFileSync(path);
  bytes.set(encodeLocation(code, beside).subarray(4), Number(dataOffset));
  Deno.writeFileSync(path, bytes);
  Deno.writeFileSync(`${folder}/${beside}`, new Uint8Array(4 * MIB));
  for (const roots of [[], ["rbd"]]) {
    const before = allowParentsIn(roots);
    try {
      assert.deepEqual(look(), { onCeph: null, file: `${folder}/${beside}` });
    } finally {
      allowParentsIn(before);
    }
  }
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("a child of an image on Ceph names no configuration, and is not committed to it", async () => {
  const folder = Deno.makeTempDirSync();
  for (const option of ["conf=/f", "cluster=other", "id=x,conf=/f"]) {
    for (const type of ["vhd", "qcow2"]) {
      assert.throws(
        () => snapshotImage(`rbd:p/i@s,${option}`, `${type}:${folder}/new`),
        /an image cannot name conf= or cluster=.*EINVAL/,
      );
    }
  }
  const path = `${folder}/child.qcow2`;
  const backing = { name: "rbd:p/i", format: "raw" };
  createQcow2(path, { storage: osStorage, sizeBytes: MIB, backing });
  const commit = (): Promise<number> => commitImage(`qcow2:${path}`);
  await assert.rejects(commit, /--parent-root rbd/);
  const before = allowParentsIn(["rbd"]);
  try {
    await assert.rejects(commit, /rbd:p\/i below it is only read.*EOPNOTSUPP/);
  } finally {
    allowParentsIn(before);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("an image on Ceph is not looked for below a chain that is a loop", () => {
  const folder = Deno.makeTempDirSync();
  const path = `${folder}/loop.qcow2`;
  const backing = { name: "loop.qcow2", format: "qcow2" };
  createQcow2(path, { storage: osStorage, sizeBytes: MIB, backing });
  let opens = 0;
  const storage: Storage = Object.assign(Object.create(osStorage), {
    open: (...args: Parameters<Storage["open"]>) => {
      opens++;
      return osStorage.open(...args);
    },
  });
  const before = allowParentsIn(["rbd"]);
  try {
    const ended: unknown[] = [];
    const spec = { type: "qcow2", path, readOnly: false, direct: true };
    const { scheduler } = new Simulation({ seed: 1 });
    prepareBelow(spec, scheduler, (...[error]) => void ended.push(error), storage);
    assert.deepEqual(ended, [null]);
    assert.ok(opens >= 1 && opens <= 2, `it was opened ${opens} times`);
  } finally {
    allowParentsIn(before);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("an image on Ceph below a QCOW2 is what QEMU names, where that is allowed", () => {
  const below = (name: string, { onCeph = true, format = "raw" as string | null } = {}) =>
    backingOnCeph({
      backing: { name, format },
      path: "/d.qcow2",
      confinement: { roots: ["/"], onCeph },
    });
  assert.equal(below("rbd:p/n/i@s:id=x"), "p/n/i@s,id=x");
  assert.equal(below("rbd:p/i"), "p/i");
  assert.equal(below("base.raw"), null);
  assert.equal(below("./rbd:p/i"), null);
  assert.throws(() => below("rbd:p/i", { onCeph: false }), /--parent-root rbd/);
  assert.equal(backingNameOnCeph("/d", { name: "p/i@s", user: "x" }), "rbd:p/i@s:id=x");
  assert.equal(backingNameOnCeph("/d", { name: "p/i@s", user: null }), "rbd:p/i@s");
  for (
    const [name, user] of [["p:q/i", null], ["p/i,x", null], ["p/i", "a:b"], [
      "p/i",
      "a b",
    ]] as const
  ) {
    assert.throws(() => backingNameOnCeph("/d", { name, user }), /EINVAL|EPERM/, name);
  }
  assert.throws(() => below("rbd:p/i", { format: "qcow2" }), /is not raw/);
  assert.throws(() => below("rbd:p/i", { format: null }), /is not raw/);
  for (
    const name of [
      "p/i,conf=/f",
      "p/i:conf=/f",
      "p/i:id=x,conf=/f",
      "p/i:id=",
      "p/i:id=../../../etc/x",
      "p/i:id=$home",
      "p/i:id=a b",
      "p\\:q/i",
      "",
      "p/i:",
    ]
  ) {
    assert.throws(() => below(`rbd:${name}`), /only id= may be an option/, name);
  }
});

Deno.test("an image that was opened for another name is closed, and not served", {
  // librbd stays open.
  sanitizeResources: false,
}, () => {
  const none = "conf=/nonexistent/ceph.conf";
  const spec = { type: "rbd", path: `p/new,${none}`, readOnly: true, direct: true };
  const sink = {} as RequestSink;
  for (const other of [{ path: `p/old,${none}` }, { readOnly: false }]) {
    let closed = 0;
    const session = {
      sizeBytes: 0,
      close: () => Promise.resolve(void closed++),
    } as unknown as RbdSession;
    const prepared = new OpenedImage({ ...spec, ...other }, session);
    const context = { takePrepared: () => prepared } as unknown as ImageContext;
    assert.throws(() => rbdDriver.open(spec, context, sink), /ceph\.conf cannot be read|librbd1/);
    assert.equal(closed, 1);
  }
  const session = { sizeBytes: 0, close: () => Promise.resolve(0) } as unknown as RbdSession;
  const prepared = new OpenedImage(spec, session);
  const context = { takePrepared: () => prepared } as unknown as ImageContext;
  assert.throws(() => rbdDriver.open(spec, context, sink), /holds no whole sector/);
});

Deno.test("an image is refused where its client would get too few descriptors", async () => {
  const module = new URL("../../ffi/rbd_session.ts", import.meta.url).href;
  const place = {
    ...parseRbdName("p/i,conf=/nonexistent/ceph.conf", { readOnly: true }),
    title: "rbd:p/i",
  };
  const program = `import { openRbd } from ${JSON.stringify(module)};
    try { openRbd(${JSON.stringify(place)}); } catch (error) { console.log(error.message); }`;
  const folder = Deno.makeTempDirSync();
  Deno.writeTextFileSync(`${folder}/open.ts`, program);
  const { stdout } = await new Deno.Command("sh", {
    args: [
      "-c",
      'ulimit -n 70; exec "$@"',
      "sh",
      Deno.execPath(),
      "run",
      "-A",
      `${folder}/open.ts`,
    ],
  }).output();
  Deno.removeSync(folder, { recursive: true });
  assert.match(new TextDecoder().decode(stdout), /^Cannot open rbd:p\/i .*descriptors.*EMFILE/);
});

Deno.test("the control groups of a process and those above them say how many threads it may have", () => {
  const root = Deno.makeTempDirSync();
  const put = (path: string, text: string): void => {
    Deno.mkdirSync(`${root}/${path.replace(/[^/]+$/, "")}`, { recursive: true });
    Deno.writeTextFileSync(`${root}/${path}`, `${text}\n`);
  };
  assert.equal(threadsLeft(root), Infinity);
  put("proc/self/cgroup", "0::/a.slice/b:c.service");
  assert.equal(threadsLeft(root), Infinity);
  put("sys/fs/cgroup/a.slice/b:c.service/pids.max", "max");
  put("sys/fs/cgroup/a.slice/b:c.service/pids.current", "7");
  assert.equal(threadsLeft(root), Infinity);
  put("sys/fs/cgroup/a.slice/pids.max", "100");
  put("sys/fs/cgroup/a.slice/pids.current", "90");
  assert.equal(threadsLeft(root), 10);
  put("proc/self/cgroup", "4:cpu,pids:/x\n9:pids:/x\n1:name=systemd:/x");
  put("sys/fs/cgroup/pids/x/pids.max", "50");
  put("sys/fs/cgroup/pids/x/pids.current", "8");
  assert.equal(threadsLeft(root), 42);
  Deno.removeSync(root, { recursive: true });
});

/** A map as the cluster encodes it: 4 objects a byte, the first in the highest bits. */
function encodedMap(objects: number, bits: readonly number[]): Uint8Array {
  const head = [14, 0, 0, 0, 1, 1, 8, 0, 0, 0, objects, 0, 0, 0, 0, 0, 0, 0];
  return Uint8Array.from([...head, ...bits, 0, 0, 0, 0]);
}

Deno.test("maps of objects are decoded, and refused when they are short", () => {
  // What is beyond the last object is taken for data.
  const five = objectBits(encodedMap(5, [0b00_01_11_00, 0b00_00_00_00]));
  assert.deepEqual([...five ?? []], [0b00_01_11_00, 0b00_11_11_11]);
  const whole = encodedMap(32, [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.deepEqual([...objectBits(whole) ?? []], [1, 2, 3, 4, 5, 6, 7, 8]);
  for (let length = 0; length < whole.length - 4; length++) {
    assert.equal(objectBits(whole.subarray(0, length)), null, `${length} bytes`);
  }
  const huge = encodedMap(255, [0]);
  huge.fill(0xff, 10, 18);
  assert.equal(objectBits(huge), null);
});

/** Asks for extents of an image whose map the test answers; each extent is `+COUNT` or `-COUNT`. */
class Asked {
  readonly told: string[] = [];
  readonly questions: ExtentQuestions;
  loads = 0;
  #answers: ((map: Uint8Array | null) => void)[] = [];

  constructor(overlapBytes: number, mostExtents = Infinity) {
    const sink = {
      extent: (slot: number, sectors: number, isData: boolean): boolean => {
        this.told.push(`${slot}:${isData ? "+" : "-"}${sectors}`);
        return this.told.length < mostExtents;
      },
      statusDone: (slot: number, errno: number): void => void this.told.push(`${slot}=${errno}`),
    } as unknown as RequestSink;
    const context = {
      faults: { failed: false },
      scheduler: {
        settle: <T>(promise: Promise<T>, callback: (value: T) => void): void => {
          promise.then(callback);
        },
      },
    } as unknown as ImageContext;
    const image = {
      objectBytes: 4096,
      overlapBytes,
      hasObjectMap: true,
      loadObjectMap: (): Promise<Uint8Array | null> => {
        this.loads++;
        return new Promise((resolve) => this.#answers.push(resolve));
      },
    };
    this.questions = new ExtentQuestions(image, context, sink);
  }

  async answer(map: readonly number[] | null): Promise<void> {
    this.#answers.shift()?.(map === null ? null : Uint8Array.from(map));
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
}

Deno.test("extents are those of the map: holes, data, what a clone shows, what is beyond", async () => {
  // Objects of 8 sectors: none, exists, pending, clean, none.
  const map = [0b00_01_10_11, 0b00_00_00_00];
  const plain = new Asked(0);
  plain.questions.ask(3, 4, 40);
  assert.equal(plain.questions.asked, 1);
  await plain.answer(map);
  assert.deepEqual(plain.told, ["3:-4", "3:+24", "3:-12", "3=0"]);
  assert.equal(plain.questions.asked, 0);
  const clone = new Asked(4096);
  clone.questions.ask(0, 0, 80);
  await clone.answer(map);
  assert.deepEqual(clone.told, ["0:+32", "0:-32", "0:+16", "0=0"]);
  const none = new Asked(0);
  none.questions.ask(0, 0, 80);
  await none.answer(null);
  assert.deepEqual(none.told, ["0:+80", "0=0"]);
  const few = new Asked(0, 1);
  few.questions.ask(0, 0, 40);
  await few.answer(map);
  assert.deepEqual(few.told, ["0:-8", "0=0"]);
});

Deno.test("a request for extents is answered by a map that was asked for after it came", async () => {
  const asked = new Asked(0);
  asked.questions.ask(0, 0, 8);
  asked.questions.ask(1, 0, 8);
  assert.equal(asked.loads, 1);
  await asked.answer([0]);
  assert.deepEqual(asked.told, ["0:-8", "0=0"]);
  assert.equal(asked.loads, 2);
  asked.questions.ask(2, 0, 8);
  await asked.answer([0b01_00_00_00]);
  assert.deepEqual(asked.told.slice(2), ["1:+8", "1=0"]);
  await asked.answer([0]);
  assert.deepEqual([asked.told.slice(4), asked.questions.asked], [["2:-8", "2=0"], 0]);
});

/** Where the last image of type `growing` says that it has become larger. */
let growing: ImageContext | null = null;

registerDriver({
  ...ramDriver,
  type: "growing",
  open(spec, context, sink) {
    growing = context;
    return ramDriver.open(spec, context, sink);
  },
});

Deno.test("a disk grows with its image where nothing stands in front of it, and it runs", () => {
  const simulation = new Simulation({ seed: 1 });
  const device = simulation.open("growing:4");
  const { vbd } = device;
  let told = 0;
  vbd.whenGrown = () => told = vbd.sectors;
  assert.equal(growing?.grow?.(16384), true);
  assert.deepEqual([vbd.sectors, vbd.geometry.sectors, told], [16384, 16384, 16384]);
  device.close();
  assert.equal(growing?.grow?.(32768), false);
  const logged = simulation.open("log:growing:4");
  assert.equal(growing?.grow?.(16384), false);
  assert.equal(logged.vbd.sectors, 8192);
  logged.close();
  simulation.close();
});

Deno.test("operations are a fixed number, each known while it is in use", () => {
  const operations = new Operations(2, new Float64Array(1));
  const [a, b] = [operations.take(1, 5, 0, 8), operations.take(2, 6, 8, 16)];
  assert.deepEqual([operations.take(0, 0, 0, 1), operations.inUse], [-1, 2]);
  assert.ok(operations.isInUse(a) && operations.isInUse(b) && !operations.isInUse(2));
  operations.give(a);
  assert.deepEqual([operations.isInUse(a), operations.inUse], [false, 1]);
  for (const number of [a, 2, -1]) assert.throws(() => operations.give(number), /not in use/);
  assert.equal(operations.inUse, 1);
  assert.equal(operations.take(3, 7, 0, 1), a);
  assert.equal(new FreeNumbers(0).take(), -1);
});

Deno.test("work has its limit, and what waits has its turn, also behind work that failed", async () => {
  const limited = new SharedRoom({ most: 2, mostOfEach: 2, kept: 0 });
  const ends: ((error: Error | null) => void)[] = [];
  const begun: number[] = [];
  const all = [0, 1, 2, 3].map((i) =>
    limited.run("one", () => {
      begun.push(i);
      return new Promise<number>((resolve, reject) => {
        ends[i] = (error) => error === null ? resolve(i) : reject(error);
      });
    })
  );
  const results = Promise.allSettled(all);
  assert.deepEqual(begun, [0, 1]);
  ends[1](new Error("one"));
  await assert.rejects(all[1]);
  assert.deepEqual(begun, [0, 1, 2]);
  ends[0](null);
  await all[0];
  assert.deepEqual(begun, [0, 1, 2, 3]);
  for (const i of [2, 3]) ends[i](null);
  const statuses = (await results).map(({ status }) => status);
  assert.deepEqual(statuses, ["fulfilled", "rejected", "fulfilled", "fulfilled"]);
  assert.equal(await limited.run("one", () => Promise.resolve(5)), 5);
});

Deno.test("work that takes for ever leaves room for other owners", async () => {
  const room = new SharedRoom({ most: 6, mostOfEach: 3, kept: 2 });
  const begun: string[] = [];
  const ends = new Map<string, () => void>();
  const start = (owner: string, name: string): Promise<void> =>
    room.run(owner, () => {
      begun.push(name);
      return new Promise((resolve) => ends.set(name, resolve));
    });
  const end = async (name: string): Promise<void> => {
    ends.get(name)?.();
    for (let i = 0; i < 10; i++) await Promise.resolve();
  };
  const all = ["a1", "a2", "a3", "a4", "b1", "b2", "c1", "d1"].map((name) => start(name[0], name));
  // Four in common, and two of those that have nothing: more of b wait, and d for any room.
  assert.deepEqual(begun, ["a1", "a2", "a3", "b1", "c1", "d1"]);
  await end("c1");
  assert.deepEqual(begun.slice(6), []);
  all.push(start("e", "e1"));
  assert.deepEqual(begun.slice(6), ["e1"]);
  await end("e1");
  await end("d1");
  assert.deepEqual(begun.slice(7), []);
  await end("a1");
  assert.deepEqual(begun.slice(7), ["a4"]);
  await end("b1");
  assert.deepEqual(begun.slice(8), ["b2"]);
  for (const name of ["a2", "a3", "a4", "b2"]) await end(name);
  await Promise.all(all);
});

/** Whether librbd is installed. */
function hasLibrbd(): boolean {
  try {
    librbd();
    return true;
  } catch {
    return false;
  }
}

Deno.test({
  name: "a request that cannot be handed to librbd is not waited for",
  ignore: !hasLibrbd(),
  sanitizeResources: false,
  fn() {
    const pointer = Deno.UnsafePointer.of(new Uint8Array(8));
    const session = { sizeBytes: MIB, isLocked: true, pointer, fd: 0 } as unknown as RbdSession;
    const context = {
      faults: { failed: false },
      scheduler: { watch(): void {}, addTimer: (): number => 1, lastMs: new Float64Array(1) },
    } as unknown as ImageContext;
    const spec = { type: "rbd", path: "p/i", readOnly: false, direct: true };
    const image = new RbdImage({ spec, context, sink: {} as RequestSink, session });
    for (let i = 0; i < 200; i++) {
      // This is not I/O memory.
      assert.throws(() => image.write(0, 0, 8, 2 ** 40), { name: /Assertion|SharedState/ });
    }
    assert.equal(image.pending, 0);
  },
});

Deno.test({
  name: "clusters that do not answer leave threads for other calls",
  ignore: !hasLibrbd(),
  async fn() {
    const folder = Deno.makeTempDirSync();
    const conf = `${folder}/ceph.conf`;
    const settings = ["mon_host = 127.0.0.1:1", "auth_client_required = none"];
    const text = ["[global]", ...settings, "client_mount_timeout = 120", ""].join("\n");
    Deno.writeTextFileSync(conf, text);
    const url = (path: string): string => JSON.stringify(new URL(path, import.meta.url).href);
    const program = `import { openRbdAside } from ${url("../../ffi/rbd_session.ts")};
      import { openAside } from ${url("../../ffi/files.ts")};
      const place = ${JSON.stringify(parseRbdName(`p/i,conf=${conf}`, { readOnly: true }))};
      const opened = Array.from({ length: 40 }, () => openRbdAside(place).then(String, String));
      const file = openAside("/dev/null", 0).then(() => "the file");
      console.log(await Promise.race([file, ...opened]));
      Deno.kill(Deno.pid, "SIGKILL");`;
    Deno.writeTextFileSync(`${folder}/open.ts`, program);
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", `${folder}/open.ts`],
    }).output();
    Deno.removeSync(folder, { recursive: true });
    const decoder = new TextDecoder();
    assert.equal(decoder.decode(stdout), "the file\n", decoder.decode(stderr));
  },
});
