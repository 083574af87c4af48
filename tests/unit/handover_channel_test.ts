import assert from "node:assert/strict";
import { descriptorFlags } from "../../ffi/descriptors.ts";
import { addressOf } from "../../ffi/libc.ts";
import { closeFile, O_RDONLY, O_RDWR, openFile, tryLockExclusive } from "../../ffi/files.ts";
import { sendAt, socketPair } from "../../ffi/sockets.ts";
import { touchDevices } from "../../src/control/client/touch_devices.ts";
import { HandoverChannel } from "../../src/control/handover/channel.ts";
import {
  decodeBytes,
  encodeBytes,
  newFrame,
  oldFrame,
  requireKinds,
} from "../../src/control/handover/frames.ts";
import {
  linkNames,
  removeLinksTo,
  removeNamesOf,
  renamedFor,
  takeNamesBack,
} from "../../src/control/handover/names.ts";
import { ToldNeeds } from "../../src/control/handover/tell.ts";
import { dropLocks, keepLocks } from "../../src/files/kept_locks.ts";
import { DiskKey, hashKey, receiveKey } from "../../src/vhd/key.ts";
import { openToWrite } from "../../src/files/open_file.ts";
import { openDescriptors } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";

// The runtime reports a library that is opened within a test as a leak.
hashKey(new Uint8Array(32), new Uint8Array(32));

const soon = (): number => performance.now() + 5_000;

/** Calls `body` with both ends of a channel; no descriptor may stay open. */
function withChannel(
  body: (one: HandoverChannel, other: HandoverChannel, fds: number[]) => void,
): void {
  const before = openDescriptors(Deno.pid);
  const fds = socketPair();
  const [one, other] = fds.map((fd) => new HandoverChannel(fd));
  body(one, other, fds);
  one.close();
  other.close();
  assert.equal(openDescriptors(Deno.pid), before);
}

Deno.test("a frame carries its text and its descriptors, whole and in order", () =>
  withChannel((one, other) => {
    const files = Array.from({ length: 250 }, () => openFile("/dev/null", O_RDONLY));
    one.send({ a: 1 }, files.slice(0, 3), soon());
    one.send({ b: "x".repeat(40_000) }, [], soon());
    one.send({ c: 3 }, files, soon());
    const frames = [other.receive(soon()), other.receive(soon()), other.receive(soon())];
    assert.deepEqual(frames.map(({ descriptors }) => descriptors.length), [3, 0, 250]);
    assert.deepEqual(frames.map(({ value }) => Object.keys(value as object)), [["a"], ["b"], [
      "c",
    ]]);
    assert.equal(other.take(), null);
    for (const fd of [...files, ...frames.flatMap(({ descriptors }) => descriptors)]) closeFile(fd);
  }));

Deno.test("the end, silence, a full socket and nonsense are errors", () => {
  withChannel((one, other, [fd]) => {
    assert.throws(() => other.receive(performance.now() + 10), /does not answer/);
    assert.throws(() => {
      for (;;) one.send({ a: "x".repeat(100_000) }, [], performance.now() + 10);
    }, /does not answer/);
    assert.ok(fd >= 0);
  });
  for (
    const bytes of [[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], [2, 0, 0, 0, 9, 0, 0, 0, 123, 125], [
      1,
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      64,
    ]]
  ) {
    withChannel((_one, other, [fd]) => {
      const rubbish = Uint8Array.from(bytes);
      sendAt(fd, addressOf(rubbish), rubbish.length);
      assert.throws(() => other.take(), /makes no sense/);
    });
  }
  const [a, b] = socketPair();
  closeFile(a);
  const channel = new HandoverChannel(b);
  assert.throws(() => channel.take(), /has ended/);
  channel.close();
});

Deno.test("descriptors of a frame that nobody took are closed with the channel", () =>
  withChannel((one, _other) => {
    const file = openFile("/dev/null", O_RDONLY);
    one.send({ a: 1 }, [file, file], soon());
    closeFile(file);
  }));

Deno.test("frames of unknown kinds, and disks that make no sense, are refused", () => {
  for (const value of [null, 1, {}, { kind: "what" }, { kind: "disk", request: { image: 3 } }]) {
    assert.throws(() => oldFrame(value), /makes no sense/);
  }
  assert.deepEqual(oldFrame({ kind: "open" }), { kind: "open" });
  assert.throws(() => newFrame({ kind: "opened" }, "serving"), /makes no sense/);
  assert.throws(
    () => newFrame({ kind: "failed", errno: 2, message: "Why not" }, "opened"),
    /^\w+: Why not$/,
  );
  newFrame({ kind: "serving" }, "serving");
  const bytes = Uint8Array.from({ length: 70_000 }, (_, i) => (i * 7) & 0xff);
  assert.deepEqual(decodeBytes(encodeBytes(bytes)), bytes);
});

Deno.test("kinds of frames that a later version needs are refused before users wait", () => {
  requireKinds(["paused", "key"]);
  assert.throws(() => requireKinds(["paused", "spaceship"]), /does not know: spaceship/);
  assert.throws(() => requireKinds(["toString"]), /EPROTONOSUPPORT/);
});

Deno.test("what becomes needed after the first word is told before the disks, and nothing twice", () => {
  const needs = new ToldNeeds();
  assert.deepEqual(needs.news([]), []);
  assert.deepEqual(needs.news(["tls"]), ["tls"]);
  assert.deepEqual(needs.news(["tls", "ublk"]), ["ublk"], "a block device was made meanwhile");
  assert.deepEqual(needs.news(["ublk"]), []);
});

Deno.test("a block device that has gone since a tapdisk was upgraded is no error", () => {
  touchDevices(["/dev/ublkb-none", "/dev/null"]);
});

Deno.test("a key is received once from its descriptor, and by nobody else", () => {
  const before = openDescriptors(Deno.pid);
  const bytes = Uint8Array.from({ length: 64 }, (_, i) => i);
  const key = new DiskKey(bytes);
  const fd = key.forAnother();
  const received = receiveKey(fd);
  const nonce = new Uint8Array(32);
  assert.ok(received.matches({ cookie: 1, nonce, hash: hashKey(bytes, nonce) }));
  assert.throws(() => receiveKey(fd), /EINVAL/);
  closeFile(fd);
  for (const each of [key, received]) each.wipe();
  assert.throws(() => key.forAnother(), /overwritten/);
  const file = openFile("/dev/null", O_RDONLY);
  assert.throws(() => receiveKey(file), /Cannot receive a key/);
  closeFile(file);
  assert.equal(openDescriptors(Deno.pid), before);
});

Deno.test("a lock that is kept outlasts its file, and is had again by its path", () =>
  withTempDir((folder) => {
    const path = `${folder}/image`;
    Deno.writeFileSync(path, new Uint8Array(512));
    const canLock = (): boolean => {
      const fd = openFile(path, O_RDWR);
      const got = tryLockExclusive(fd);
      closeFile(fd);
      return got;
    };
    const { fd } = openToWrite(path);
    const kept = keepLocks();
    assert.ok(kept.length >= 1);
    closeFile(fd);
    assert.equal(canLock(), false);
    const again = openToWrite(path);
    assert.equal(descriptorFlags(again.fd) & O_RDWR, O_RDWR);
    assert.equal(canLock(), false);
    dropLocks();
    assert.equal(canLock(), false);
    closeFile(again.fd);
    assert.equal(canLock(), true);
    assert.throws(() => openToWrite(`${folder}/none`), /ENOENT/);
  }));

Deno.test("a kept descriptor that cannot be closed does not keep the others open", () =>
  withTempDir((folder) => {
    const opened = ["a", "b"].map((name) => {
      Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(512));
      return openToWrite(`${folder}/${name}`).fd;
    });
    const before = openDescriptors(Deno.pid);
    const kept = keepLocks();
    // As by a server that has no room for what was written: close(2) fails, and the descriptor is gone.
    closeFile(kept[0]);
    dropLocks();
    assert.equal(openDescriptors(Deno.pid), before);
    for (const fd of opened) closeFile(fd);
  }));

Deno.test("a name at which another file is now is not the kept one", () =>
  withTempDir((folder) => {
    const path = `${folder}/image`;
    Deno.writeFileSync(path, new Uint8Array(512));
    const { fd } = openToWrite(path);
    keepLocks();
    closeFile(fd);
    Deno.renameSync(path, `${folder}/moved`);
    Deno.writeFileSync(path, new Uint8Array(1024));
    const other = openToWrite(path);
    assert.equal(other.status.sizeBytes, 1024);
    closeFile(other.fd);
    dropLocks();
  }));

/** Calls `body` with a control folder of its own. */
async function withControlFolder(body: (folder: string) => void): Promise<void> {
  await withTempDir((folder) => {
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", folder);
    try {
      body(folder);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    }
  });
}

Deno.test("links of an earlier process stay when another one gets its number", () =>
  withControlFolder((folder) => {
    // 1 handed over to 20. Another tapdisk has the number 1 now, and hands over to 30.
    Deno.symlinkSync("nbd20.0", `${folder}/nbd1.0`);
    for (const name of ["nbd20.0", "ctl1", "ctl30"]) {
      Deno.writeTextFileSync(`${folder}/${name}`, "");
    }
    linkNames(1, 30);
    assert.equal(Deno.readLinkSync(`${folder}/nbd1.0`), "nbd20.0");
    assert.equal(Deno.readLinkSync(`${folder}/ctl1`), "ctl30");
    // A process with that number was to take over, and failed.
    Deno.writeTextFileSync(`${folder}/nbd1.5`, "");
    removeNamesOf(1);
    assert.equal(Deno.readLinkSync(`${folder}/nbd1.0`), "nbd20.0");
    assert.throws(() => Deno.lstatSync(`${folder}/nbd1.5`));
  }));

Deno.test("names with a process number become links, also after several processes", () =>
  withControlFolder((folder) => {
    assert.equal(renamedFor(`${folder}/nbd12.3`, 12, 40), `${folder}/nbd40.3`);
    assert.equal(renamedFor(`${folder}/ctl12`, 13, 40), `${folder}/ctl12`);
    assert.equal(renamedFor("tcp:[::]:10809", 10809, 40), "tcp:[::]:10809");
    for (const name of ["ctl1", "nbdserver-new1.0", "other"]) {
      Deno.writeTextFileSync(`${folder}/${name}`, "1");
    }
    const next = (from: number, to: number): void => {
      for (const stem of ["ctl", "nbdserver-new"]) {
        const end = stem === "ctl" ? "" : ".0";
        Deno.linkSync(`${folder}/${stem}${from}${end}`, `${folder}/${stem}${to}${end}`);
      }
      linkNames(from, to);
    };
    next(1, 22);
    next(22, 333);
    for (const name of ["ctl1", "ctl22"]) {
      assert.equal(Deno.readLinkSync(`${folder}/${name}`), "ctl333");
    }
    assert.equal(Deno.readLinkSync(`${folder}/nbdserver-new1.0`), "nbdserver-new333.0");
    removeLinksTo(333);
    assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name).sort(), [
      "ctl333",
      "nbdserver-new333.0",
      "other",
    ]);
  }));

Deno.test("names are taken back from a process that made them links, and ended", () =>
  withControlFolder((folder) => {
    const paths = ["ctl22", "nbd22.0", "nbd22.1"].map((name) => `${folder}/${name}`);
    const own = { own: 22, other: 333 };
    for (const path of paths) Deno.writeTextFileSync(path, path);
    Deno.symlinkSync("ctl22", `${folder}/ctl1`);
    const before = Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
    const check = (): void => {
      takeNamesBack([...paths, "tcp:[::]:22"], own);
      removeNamesOf(333);
      for (const path of paths) {
        assert.ok(Deno.lstatSync(path).isFile);
        assert.equal(Deno.readTextFileSync(path), path);
      }
      assert.equal(Deno.readLinkSync(`${folder}/ctl1`), "ctl22");
      assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name).sort(), before);
    };
    const begin = (): void => {
      for (const path of paths) Deno.linkSync(path, renamedFor(path, 22, 333));
    };
    begin();
    linkNames(22, 333);
    assert.equal(Deno.readLinkSync(`${folder}/ctl1`), "ctl333");
    check();
    // It was ended before it made links, and within that.
    begin();
    check();
    begin();
    Deno.removeSync(`${folder}/ctl1`);
    Deno.symlinkSync("ctl333", `${folder}/ctl1`);
    check();
  }));
