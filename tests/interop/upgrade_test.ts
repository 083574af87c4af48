/**
 * A new tapdisk takes over the disks of a running one, whose users go on.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Errno } from "../../ffi/errno.ts";
import { closeFile, O_RDWR, openFile, tryLockExclusive } from "../../ffi/files.ts";
import { pathExists } from "../../ffi/paths.ts";
import { decodeResponse } from "../../src/control/protocol/answers.ts";
import {
  encodePlain,
  MESSAGE_BYTES,
  MessageType,
  messageType,
} from "../../src/control/protocol/message.ts";
import {
  decodeUpgradeReply,
  encodeTakeOver,
  encodeUpgrade,
  type ProgramCall,
} from "../../src/control/protocol/upgrade.ts";
import { fio } from "../support/fio.ts";
import { Cmd, infoContent, NbdClient, Opt, requestHeader } from "../support/nbd_client.ts";
import {
  createVhd,
  isRunning,
  needsServed,
  openDescriptors,
  privateMemoryKib,
  settledDescriptors,
  snapshotVhd,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { type Step, STEPS } from "../support/successor.ts";
import { binaryPath, runOk } from "../support/tools.ts";

const { ignore, suffix } = needsServed();
const withFio = needsServed("fio");
const KIB = 1024;
/** A machine for tests may be busy; an idle one needs less than 200 ms. */
const LONGEST_STALL_MS = 30_000;

function upgradeTest(
  name: string,
  fn: (tapdisks: Tapdisks, folder: string) => Promise<void>,
  needed = { ignore, suffix },
): void {
  Deno.test({
    name: `upgrade: ${name}${needed.suffix}`,
    ignore: needed.ignore,
    fn: () => withTapdisks(fn),
  });
}

/** Sends a control message, and returns the answer. */
async function ask(tapdisks: Tapdisks, pid: number, message: Uint8Array): Promise<Uint8Array> {
  const path = `${tapdisks.controlFolder}/ctl${pid}`;
  using connection = await Deno.connect({ transport: "unix", path });
  await connection.write(message);
  const answer = new Uint8Array(MESSAGE_BYTES);
  for (let got = 0; got < MESSAGE_BYTES;) {
    const more = await connection.read(answer.subarray(got));
    if (more === null) throw new Error("It hung up");
    got += more;
  }
  return answer;
}

/** Asks a tapdisk to hand over to a program; returns the error, or the new process. */
async function upgradeTo(
  tapdisks: Tapdisks,
  pid: number,
  call: ProgramCall,
): Promise<{ error: string } | { pid: number }> {
  const answer = await ask(tapdisks, pid, encodeUpgrade(call));
  if (messageType(answer) === MessageType.UPGRADE_RSP) return decodeUpgradeReply(answer);
  assert.equal(messageType(answer), MessageType.ERROR);
  return { error: decodeResponse(answer).message };
}

function playing(step: Step): ProgramCall {
  const script = new URL("../support/successor.ts", import.meta.url).pathname;
  return { program: Deno.execPath(), args: ["run", "--quiet", "--allow-all", script, step] };
}

/** Upgrades by tap-ctl; returns the new process. */
async function upgrade(tapdisks: Tapdisks, pid: number): Promise<number> {
  const now = Number(await tapdisks.tapCtlOk("upgrade", "-p", `${pid}`));
  await waitUntil(() => !isRunning(pid), `process ${pid} ends`);
  tapdisks.upgraded(pid, now);
  return now;
}

/** Upgrades while a client sends. On a busy machine it may be slow to send the rest of a request. */
async function upgradeUnderLoad(tapdisks: Tapdisks, pid: number): Promise<number> {
  for (let tries = 1;; tries++) {
    try {
      return await upgrade(tapdisks, pid);
    } catch (error) {
      const isSlow = /a part of a request only.*ETIMEDOUT/.test(String(error));
      if (!isSlow || tries === 20) throw error;
    }
  }
}

/** Whether a process has a handler of a signal (proc(5), SigCgt). */
function catches(pid: number, signal: number): boolean {
  const [, mask] = /^SigCgt:\s+([0-9a-f]+)$/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`)) ??
    [];
  return (BigInt(`0x${mask}`) >> BigInt(signal - 1) & 1n) === 1n;
}

function logOf(tapdisks: Tapdisks): string {
  return Deno.readTextFileSync(`${tapdisks.controlFolder}/log/tapdisk.log`);
}

/** How long users waited in each upgrade, milliseconds, by the log. */
function stalls(tapdisks: Tapdisks): number[] {
  return Array.from(logOf(tapdisks).matchAll(/users waited ([\d.]+) ms/g), ([, ms]) => Number(ms));
}

async function write(client: NbdClient, sector: number, value: number): Promise<void> {
  const payload = new Uint8Array(512).fill(value);
  await client.request({ command: Cmd.Write, offset: sector * 512, payload });
  assert.equal((await client.reply()).error, 0);
}

async function expectSector(client: NbdClient, sector: number, value: number): Promise<void> {
  await client.request({ command: Cmd.Read, offset: sector * 512, length: 512 });
  const { error, data } = await client.reply();
  assert.equal(error, 0);
  assert.deepEqual(data, new Uint8Array(512).fill(value));
}

/** Tries to take the lock of a file that is there, all the time; `stop` tells how often that worked. */
function lockThief(path: string): { stop: () => number } {
  let taken = 0;
  let isOn = true;
  (async () => {
    while (isOn) {
      if (pathExists(path)) {
        const fd = openFile(path, O_RDWR);
        if (tryLockExclusive(fd)) taken++;
        closeFile(fd);
      }
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
  })();
  return {
    stop(): number {
      isOn = false;
      return taken;
    },
  };
}

upgradeTest(
  "a new process that goes wrong at any step leaves the old one serving",
  async (tapdisks, folder) => {
    const path = await createVhd(`${folder}/d.vhd`, 16);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const { client } = await NbdClient.open(disk.socket);
    await write(client, 0, 1);
    const names = (): string[] =>
      Array.from(Deno.readDirSync(tapdisks.controlFolder), ({ name }) => name).sort();
    const before = names();
    const descriptors = await settledDescriptors(disk.pid);
    const thief = lockThief(path);
    let value = 1;
    for (const step of STEPS) {
      const outcome = await upgradeTo(tapdisks, disk.pid, playing(step));
      assert.ok(
        "error" in outcome && outcome.error.startsWith("Cannot"),
        `${step}: ${JSON.stringify(outcome)}`,
      );
      await expectSector(client, 0, value);
      await write(client, 0, ++value);
      const { client: other } = await NbdClient.open(disk.socket);
      await expectSector(other, 0, value);
      other[Symbol.dispose]();
      assert.deepEqual(names(), before, step);
    }
    assert.equal(thief.stop(), 0, "the image was without its lock");
    assert.equal(await settledDescriptors(disk.pid), descriptors);
    const last = await upgradeTo(tapdisks, disk.pid, playing("exits"));
    assert.ok("error" in last && last.error.includes("no luck today"), JSON.stringify(last));
    client[Symbol.dispose]();
  },
);

upgradeTest(
  "a disk that is an image of the same tapdisk over TCP is open again when the new process fails",
  async (tapdisks, folder) => {
    const inner = await tapdisks.serve(`vhd:${await createVhd(`${folder}/i.vhd`, 16)}`);
    const address = ["-p", `${inner.pid}`, "-m", `${inner.minor}`];
    const where = await tapdisks.tapCtlOk("serve", ...address, "--listen", "127.0.0.1:0");
    const outer = await tapdisks.serve(`nbd:${where}`, { pid: inner.pid });
    const outcome = await upgradeTo(tapdisks, inner.pid, playing("dies when it has opened"));
    assert.ok("error" in outcome);
    const { client } = await NbdClient.open(outer.socket);
    await write(client, 5, 5);
    await expectSector(client, 5, 5);
    client[Symbol.dispose]();
    await tapdisks.stop(outer);
  },
);

upgradeTest("SIGKILL of the new process while the old one waits", async (tapdisks, folder) => {
  const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
  const { client } = await NbdClient.open(disk.socket);
  const outcome = upgradeTo(tapdisks, disk.pid, playing("waits"));
  const log = `${tapdisks.controlFolder}/log/tapdisk.log`;
  const started = (): string | undefined =>
    /process (\d+), to take over/.exec(Deno.readTextFileSync(log))?.[1];
  await waitUntil(() => started() !== undefined, "the program runs");
  // Another process asks in its place, and another upgrade is asked for.
  const intruder = decodeResponse(await ask(tapdisks, disk.pid, encodeTakeOver(1)));
  assert.match(intruder.message, /is not the one that was started for that/);
  const second = await upgradeTo(tapdisks, disk.pid, playing("waits"));
  assert.ok("error" in second && second.error.includes("another upgrade is under way"));
  await write(client, 1, 7);
  Deno.kill(Number(started()), "SIGKILL");
  const end = await outcome;
  // Or a message to it finds that it has ended.
  assert.match("error" in end ? end.error : "", /SIGKILL|has ended/);
  await expectSector(client, 1, 7);
  client[Symbol.dispose]();
});

upgradeTest(
  "what a new process that serves too late may have carried out is not carried out again",
  async (tapdisks, folder) => {
    const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
    const { client } = await NbdClient.open(disk.socket);
    await write(client, 0, 1);
    const upgrading = upgradeTo(tapdisks, disk.pid, playing("serves too late"));
    const note = `${tapdisks.controlFolder}/asked-${disk.pid}`;
    await waitUntil(() => pathExists(note), "the old process is asked");
    const path = `${tapdisks.controlFolder}/ctl${disk.pid}`;
    using command = await Deno.connect({ transport: "unix", path });
    const message = encodePlain(MessageType.PAUSE, disk.minor);
    await command.write(message.subarray(0, 8));
    // This is asked behind it, so its beginning is there.
    await tapdisks.tapCtlOk("list");
    Deno.removeSync(note);
    const outcome = await upgrading;
    assert.ok("error" in outcome && outcome.error.includes("makes no sense"));
    await assert.rejects(
      client.request({ command: Cmd.Read, offset: 0, length: 512 }).then(() => client.reply()),
    );
    client[Symbol.dispose]();
    const isHungUp = await command.write(message.subarray(8))
      .then(() => command.read(new Uint8Array(1)))
      .then((got) => got === null, () => true);
    assert.ok(isHungUp, "the rest of the command makes it one of the old process");
    const { client: again } = await NbdClient.open(disk.socket);
    await expectSector(again, 0, 1);
    await write(again, 0, 2);
    again[Symbol.dispose]();
    assert.match(logOf(tapdisks), /Hung up on 1 callers of tap-ctl: process \d+ had begun/);
  },
);

upgradeTest(
  "a signal to the old process in the last step reaches the new one",
  async (tapdisks) => {
    const pid = await tapdisks.spawn();
    const outcome = await upgradeTo(tapdisks, pid, playing("waits for a signal"));
    assert.ok("pid" in outcome, JSON.stringify(outcome));
    tapdisks.upgraded(pid, outcome.pid);
    const note = `${tapdisks.controlFolder}/signal-${pid}`;
    await waitUntil(() => pathExists(note), "the new process is told");
    await waitUntil(() => !isRunning(pid), "the old process ends");
  },
);

upgradeTest("hostile messages end their connection, or get an error", async (tapdisks, folder) => {
  const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
  const { client } = await NbdClient.open(disk.socket);
  await write(client, 0, 1);
  const path = `${tapdisks.controlFolder}/ctl${disk.pid}`;
  const text = (value: string): Uint8Array => {
    const bytes = new TextEncoder().encode(value);
    const message = encodeUpgrade({ program: "/", args: [] }).slice(0, MESSAGE_BYTES);
    new DataView(message.buffer).setUint32(8, bytes.length, true);
    return new Uint8Array([...message, ...bytes]);
  };
  const refused = [
    encodeTakeOver(1),
    encodeTakeOver(0xffff_ffff),
    text(""),
    text("{"),
    text("[]"),
    text('{"program":"sh","args":[]}'),
    text('{"program":"/bin/true","args":[1]}'),
    text('{"program":"/bin/\\u0000","args":[]}'),
    text('{"program":"/bin/true","args":["\\u0000"]}'),
    text('{"program":"/not/there","args":[]}'),
    text('{"program":"/","args":[]}'),
    text('{"program":"/bin/false","args":[]}'),
    text('{"program":"/bin/true","args":[]}'),
    new Uint8Array([
      ...text("").slice(0, 8),
      0xff,
      0xff,
      0xff,
      0xff,
      ...new Uint8Array(MESSAGE_BYTES - 12),
    ]),
  ];
  const answerTo = async (message: Uint8Array): Promise<void> => {
    const answer = await ask(tapdisks, disk.pid, message);
    assert.equal(messageType(answer), MessageType.ERROR);
    assert.match(decodeResponse(answer).message, /^Cannot/);
  };
  for (const message of refused) await answerTo(message);
  const descriptors = await settledDescriptors(disk.pid);
  for (const message of refused) {
    await answerTo(message);
    for (const cut of [1, 8, 11, MESSAGE_BYTES - 1, MESSAGE_BYTES + 1, message.length - 1]) {
      if (cut >= message.length) continue;
      using connection = await Deno.connect({ transport: "unix", path });
      await connection.write(message.subarray(0, cut));
    }
  }
  assert.equal(await settledDescriptors(disk.pid), descriptors);
  await expectSector(client, 0, 1);
  const now = await upgrade(tapdisks, disk.pid);
  await expectSector(client, 0, 1);
  client[Symbol.dispose]();
  assert.ok(isRunning(now));
});

upgradeTest(
  "a disk that is paused stays so, and its images are left alone",
  async (tapdisks, folder) => {
    const path = await createVhd(`${folder}/d.vhd`, 16);
    const disk = await tapdisks.serve(`vhd:${path}`);
    const other = await tapdisks.serve(`vhd:${await createVhd(`${folder}/o.vhd`, 16)}`, {
      pid: disk.pid,
    });
    const { client } = await NbdClient.open(disk.socket);
    const { client: beside } = await NbdClient.open(other.socket);
    await write(client, 0, 1);
    await write(beside, 0, 11);
    const of = (pid: number): string[] => ["-p", `${pid}`, "-m", `${disk.minor}`];
    await tapdisks.tapCtlOk("pause", ...of(disk.pid));
    const listed = async (): Promise<string[]> =>
      (await tapdisks.tapCtlOk("list")).replaceAll(/pid=\d+ /g, "").split("\n").sort();
    const before = await listed();
    const canLock = (): boolean => {
      const fd = openFile(path, O_RDWR);
      const got = tryLockExclusive(fd);
      closeFile(fd);
      return got;
    };
    assert.ok(canLock());
    // An upgrade that fails runs on what it has paused itself.
    const failed = await upgradeTo(tapdisks, disk.pid, playing("dies when it has opened"));
    assert.ok("error" in failed);
    assert.deepEqual(await listed(), before);
    await expectSector(beside, 0, 11);
    assert.ok(canLock());
    // Somebody puts another image in its place meanwhile.
    const leaf = await snapshotVhd(`${folder}/leaf.vhd`, path);
    const first = await upgrade(tapdisks, disk.pid);
    const now = await upgrade(tapdisks, first);
    assert.deepEqual(await listed(), before);
    await expectSector(beside, 0, 11);
    assert.ok(canLock());
    await client.request({ command: Cmd.Read, offset: 0, length: 512 });
    const counts = async (): Promise<{ reqs_outstanding: number; secs: number[] }> =>
      JSON.parse(await tapdisks.tapCtlOk("stats", ...of(now)));
    while ((await counts()).reqs_outstanding === 0) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.equal((await counts()).secs[1], 1);
    await tapdisks.tapCtlOk("unpause", ...of(now), "-a", `vhd:${leaf}`);
    const { error, data } = await client.reply();
    assert.deepEqual([error, data], [0, new Uint8Array(512).fill(1)]);
    await write(client, 1, 2);
    const last = await upgrade(tapdisks, now);
    assert.match(await tapdisks.tapCtlOk("list"), new RegExp(`pid=${last} .*vhd:${leaf}`));
    await expectSector(client, 1, 2);
    client[Symbol.dispose]();
    beside[Symbol.dispose]();
  },
);

upgradeTest(
  "an encrypted disk crosses over with its key, running and paused",
  async (tapdisks, folder) => {
    const path = `${folder}/disk.vhd`;
    const keyFile = `${folder}/disk,aes-xts-plain,512.key`;
    const key = Uint8Array.from({ length: 64 }, (_, i) => 0x41 + (i % 53));
    Deno.writeFileSync(keyFile, key);
    await createVhd(path, 16);
    await runOk(binaryPath("vhd-util"), ["key", "-s", "-n", path, "-k", keyFile]);
    Deno.removeSync(keyFile);
    const pid = await tapdisks.spawn();
    await tapdisks.tapCtlOk("allocate");
    const of = (pid: number): string[] => ["-p", `${pid}`, "-m", "0"];
    await tapdisks.tapCtlOk("attach", ...of(pid));
    const opening = new Deno.Command(binaryPath("tap-ctl"), {
      args: ["open", ...of(pid), "-a", `vhd:${path}`, "-E"],
      env: { BLKTAP_CONTROL_DIR: tapdisks.controlFolder },
      stdin: "piped",
      stdout: "null",
    }).spawn();
    const input = opening.stdin.getWriter();
    await input.write(key);
    await input.close();
    assert.equal((await opening.status).code, 0);
    const { client } = await NbdClient.open(`${tapdisks.controlFolder}/nbd${pid}.0`);
    await write(client, 0, 7);
    const failed = await upgradeTo(tapdisks, pid, playing("dies when it has opened"));
    assert.ok("error" in failed);
    await expectSector(client, 0, 7);
    let now = await upgrade(tapdisks, pid);
    await expectSector(client, 0, 7);
    await write(client, 1, 8);
    await tapdisks.tapCtlOk("pause", ...of(now));
    now = await upgrade(tapdisks, await upgrade(tapdisks, now));
    await tapdisks.tapCtlOk("unpause", ...of(now));
    await expectSector(client, 0, 7);
    await expectSector(client, 1, 8);
    client[Symbol.dispose]();
    // The data was encrypted all the time, and the key is in no file.
    const text = new TextDecoder("latin1");
    const secret = text.decode(key.subarray(0, 16));
    const image = text.decode(Deno.readFileSync(path));
    assert.ok(!image.includes("\x07".repeat(512)) && !image.includes("\x08".repeat(512)));
    const files = [
      path,
      `${tapdisks.controlFolder}/log/tapdisk.log`,
      `${tapdisks.controlFolder}/tapdisk/tapdisk-0`,
    ];
    for (const file of files) {
      assert.ok(
        !text.decode(Deno.readFileSync(file)).includes(secret),
        file,
      );
    }
    assert.ok(!logOf(tapdisks).toLowerCase().includes(key.slice(0, 16).toHex()));
    // Its key has gone with the image.
    await tapdisks.tapCtlOk("close", ...of(now));
    now = await upgrade(tapdisks, now);
    await tapdisks.tapCtlOk("detach", ...of(now));
    await tapdisks.tapCtlOk("free", "-m", "0");
  },
);

/** A program of another version: a copy in which a line of the log differs. */
function anotherVersion(path: string): void {
  const bytes = Deno.readFileSync(binaryPath("blktap"));
  const line = "users waited ";
  const at = Buffer.from(bytes.buffer).indexOf(line);
  assert.ok(at > 0);
  bytes.set(new TextEncoder().encode(line.replace("users", "USERS")), at);
  Deno.writeFileSync(path, bytes, { mode: 0o755 });
}

upgradeTest(
  "when a package replaces the program, tapdisks of the version before go on in the new one",
  async (tapdisks, folder) => {
    const program = `${folder}/blktap`;
    anotherVersion(program);
    for (const name of ["tapdisk", "tap-ctl"]) Deno.symlinkSync(program, `${folder}/${name}`);
    const env = { BLKTAP_CONTROL_DIR: tapdisks.controlFolder, BLKTAP_DEVICE: "none" };
    const installed = async (...args: string[]): Promise<string> =>
      (await runOk(`${folder}/tap-ctl`, args, { env })).trim();
    const path = await createVhd(`${folder}/d.vhd`, 16);
    const pids: number[] = [];
    for (const minor of [0, 1]) {
      const pid = Number(await installed("spawn"));
      pids.push(pid);
      await installed("allocate");
      await installed("attach", "-p", `${pid}`, "-m", `${minor}`);
    }
    const [first] = pids;
    await installed("open", "-p", `${first}`, "-m", "0", "-a", `vhd:${path}`);
    const { client } = await NbdClient.open(`${tapdisks.controlFolder}/nbd${first}.0`);
    await write(client, 0, 1);
    assert.equal(await installed("upgrade"), "", "they run what is installed");
    // As by dpkg: the new file gets the name, and the old one stays until no process runs it.
    Deno.copyFileSync(binaryPath("blktap"), `${program}.new`);
    Deno.renameSync(`${program}.new`, program);
    const upgraded = (await installed("upgrade")).split("\n").map((line) =>
      line.split(" ").map(Number)
    );
    for (const [was, now] of upgraded) tapdisks.upgraded(was, now);
    assert.deepEqual(upgraded.map(([was]) => was).sort(), pids.toSorted());
    assert.equal(logOf(tapdisks).match(/USERS waited/g)?.length, 2);
    for (const [, now] of upgraded) {
      assert.equal(Deno.statSync(`/proc/${now}/exe`).ino, Deno.statSync(program).ino);
    }
    await expectSector(client, 0, 1);
    await write(client, 1, 2);
    assert.equal(await installed("upgrade"), "", "all run the new one");
    client[Symbol.dispose]();
    for (const minor of [0, 1]) {
      await installed("destroy", "-p", `${pids[minor]}`, "-m", `${minor}`);
    }
  },
);

upgradeTest(
  "half a header, clients in the handshake, and a chain cross over",
  async (tapdisks, folder) => {
    const base = await createVhd(`${folder}/base.vhd`, 16);
    const disk = await tapdisks.serve(`vhd:${await snapshotVhd(`${folder}/leaf.vhd`, base)}`);
    const { client } = await NbdClient.open(disk.socket, { structured: true });
    const greeted = await NbdClient.connect(disk.socket);
    await greeted.greet();
    const silent = await NbdClient.connect(disk.socket);
    const header = requestHeader({ command: Cmd.Read, cookie: 77, offset: 0, length: 512 });
    await client.send(header.subarray(0, 14));
    await upgrade(tapdisks, disk.pid);
    await client.send(header.subarray(14));
    const head = await client.receive(20);
    assert.equal(head.getUint32(0), 0x668e33ef);
    assert.equal(Number(head.getBigUint64(8)), 77);
    greeted[Symbol.dispose]();
    silent[Symbol.dispose]();
    client[Symbol.dispose]();
    const { client: later } = await NbdClient.open(disk.socket);
    await write(later, 3, 9);
    await expectSector(later, 3, 9);
    later[Symbol.dispose]();
  },
);

upgradeTest(
  "a client that has sent half a write keeps the old tapdisk",
  async (tapdisks, folder) => {
    const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
    const { client } = await NbdClient.open(disk.socket);
    const payload = new Uint8Array(64 * KIB).fill(5);
    await client.send(requestHeader({ command: Cmd.Write, cookie: 9, length: payload.length }));
    await client.send(payload.subarray(0, 1000));
    const refused = await tapdisks.tapCtl("upgrade", "-p", `${disk.pid}`);
    assert.notEqual(refused.code, 0);
    assert.match(refused.stderr, /minor 0: a client has sent a part of a request only/);
    await client.send(payload.subarray(1000));
    assert.equal((await client.receive(16)).getUint32(4), 0);
    await expectSector(client, 127, 5);
    await upgrade(tapdisks, disk.pid);
    await expectSector(client, 127, 5);
    client[Symbol.dispose]();
  },
);

upgradeTest(
  "writes of a client that said goodbye and hung up are carried out before the disk crosses over",
  async (tapdisks, folder) => {
    const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
    const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
    await tapdisks.tapCtlOk("limit", ...address, "--write-iops", "1");
    const { client } = await NbdClient.open(disk.socket);
    const sectors = [0, 1, 2, 3];
    const bytes = sectors.flatMap((sector) => [
      ...requestHeader({ command: Cmd.Write, offset: sector * 512, length: 512 }),
      ...new Uint8Array(512).fill(7),
    ]);
    // All at once: a server that has not read the goodbye when its first answer fails gives up the rest.
    await client.send(Uint8Array.from([...bytes, ...requestHeader({ command: Cmd.Disc })]));
    client[Symbol.dispose]();
    let now = 0;
    while (now === 0) {
      const { code, stdout, stderr } = await tapdisks.tapCtl("upgrade", "-p", `${disk.pid}`);
      if (code === 0) now = Number(stdout);
      else assert.match(stderr, /its requests do not end/);
    }
    await waitUntil(() => !isRunning(disk.pid), "the old process ends");
    tapdisks.upgraded(disk.pid, now);
    const { client: other } = await NbdClient.open(disk.socket);
    for (const sector of sectors) await expectSector(other, sector, 7);
    other[Symbol.dispose]();
  },
);

upgradeTest(
  "what cannot be taken over is refused, and nothing changes",
  async (tapdisks, folder) => {
    const refusal = async (pid: number): Promise<string> => {
      const { code, stderr } = await tapdisks.tapCtl("upgrade", "-p", `${pid}`);
      assert.notEqual(code, 0);
      assert.ok(isRunning(pid));
      return stderr;
    };
    const paused = await tapdisks.serve(`vhd:${await createVhd(`${folder}/p.vhd`, 16)}`);
    const { client: waiting } = await NbdClient.open(paused.socket);
    const address = ["-p", `${paused.pid}`, "-m", `${paused.minor}`];
    await tapdisks.tapCtlOk("pause", ...address);
    await waiting.request({ command: Cmd.Read, offset: 0, length: 512 });
    const outstanding = async (): Promise<boolean> =>
      JSON.parse(await tapdisks.tapCtlOk("stats", ...address)).reqs_outstanding === 1;
    while (!await outstanding()) await new Promise((resolve) => setTimeout(resolve, 10));
    assert.match(await refusal(paused.pid), /its disk is paused, and requests wait/);
    await tapdisks.tapCtlOk("unpause", ...address);
    assert.equal((await waiting.reply()).error, 0);
    waiting[Symbol.dispose]();
    const ram = await tapdisks.serve("ram:8");
    assert.match(await refusal(ram.pid), /ram:8 is in the memory of this process/);
    const log = await tapdisks.serve(`log:vhd:${await createVhd(`${folder}/l.vhd`, 16)}`);
    assert.match(await refusal(log.pid), /log is in the memory of this process/);
    const copy = await createVhd(`${folder}/m2.vhd`, 16);
    const mirror = await tapdisks.serve(`vhd:${await createVhd(`${folder}/m1.vhd`, 16)}`, {
      options: ["-2", `vhd:${copy}`],
    });
    assert.match(await refusal(mirror.pid), /its secondary image is in the state mirror/);
    // The same tapdisk serves a disk and an image of it.
    const inner = await tapdisks.serve(`vhd:${await createVhd(`${folder}/i.vhd`, 16)}`);
    const outer = await tapdisks.serve(`nbd:unix:${inner.socket}`, { pid: inner.pid });
    assert.match(await refusal(inner.pid), /is another disk of this process/);
    await tapdisks.stop(outer);
    // An image that is not at its path any more is missed before the disk is paused.
    const gone = await tapdisks.serve(`vhd:${await createVhd(`${folder}/g.vhd`, 16)}`);
    const { client } = await NbdClient.open(gone.socket);
    Deno.renameSync(`${folder}/g.vhd`, `${folder}/h.vhd`);
    assert.match(await refusal(gone.pid), /Cannot open .*g\.vhd/);
    await write(client, 2, 2);
    // Another image under its name has not what the disk has.
    await createVhd(`${folder}/g.vhd`, 16);
    assert.match(await refusal(gone.pid), /g\.vhd is not the file that is open and has the data/);
    await expectSector(client, 2, 2);
    Deno.renameSync(`${folder}/h.vhd`, `${folder}/g.vhd`);
    await upgrade(tapdisks, gone.pid);
    await expectSector(client, 2, 2);
    client[Symbol.dispose]();
  },
);

upgradeTest(
  "a signal to a new process that does not serve yet ends it alone",
  async (tapdisks) => {
    // The test plays the old process, which has a disk.
    Deno.mkdirSync(tapdisks.controlFolder, { mode: 0o700 });
    const path = `${tapdisks.controlFolder}/ctl${Deno.pid}`;
    using listener = Deno.listen({ transport: "unix", path });
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      const child = new Deno.Command(binaryPath("tapdisk"), {
        args: ["--daemon-child", "--take-over", `${Deno.pid}`],
        env: { BLKTAP_CONTROL_DIR: tapdisks.controlFolder },
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn();
      using connection = await listener.accept();
      // It has asked for the disks, and its handlers of signals are there.
      await connection.read(new Uint8Array(MESSAGE_BYTES));
      await waitUntil(
        () => [2, 15].every((each) => catches(child.pid, each)),
        "it handles signals",
      );
      child.kill(signal);
      const { code, stderr } = await child.output();
      assert.equal(code, Errno.EINTR);
      assert.match(new TextDecoder().decode(stderr), /Cannot take over .* a signal ended/);
    }
  },
);

upgradeTest("a tapdisk without disks, and minors without images", async (tapdisks) => {
  const pid = await tapdisks.spawn();
  const minor = (await tapdisks.tapCtlOk("allocate")).replace(/^.*-/, "");
  const empty = await upgrade(tapdisks, pid);
  await tapdisks.tapCtlOk("attach", "-p", `${empty}`, "-m", minor);
  const now = await upgrade(tapdisks, empty);
  assert.equal(await tapdisks.tapCtlOk("list"), `pid=${now} minor=${minor} state=0`);
  await tapdisks.tapCtlOk("detach", "-p", `${pid}`, "-m", minor);
  await tapdisks.tapCtlOk("free", "-m", minor);
});

upgradeTest("a disk on a TCP port keeps its clients", async (tapdisks, folder) => {
  const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 16)}`);
  const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
  const where = await tapdisks.tapCtlOk(
    "serve",
    ...address,
    "--listen",
    "127.0.0.1:0",
    "--export-name",
    "one",
  );
  const port = Number(where.replace(/^.*:/, ""));
  const connection = await Deno.connect({ port });
  const client = NbdClient.on(connection as unknown as Deno.UnixConn);
  await client.greet();
  await client.acknowledged(Opt.Go, infoContent("one"));
  await write(client, 4, 4);
  // Anybody can connect, say nothing, and would so keep the old program running for ever.
  const silent = await Deno.connect({ port });
  assert.equal(await silent.read(new Uint8Array(18)), 18);
  const pid = await upgrade(tapdisks, disk.pid);
  assert.equal(await silent.read(new Uint8Array(1)), null);
  silent.close();
  await expectSector(client, 4, 4);
  const stats = async (): Promise<{ listen: string; clients: number }[]> =>
    JSON.parse(await tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${disk.minor}`)).exports;
  assert.deepEqual((await stats()).map(({ listen, clients }) => [listen, clients]), [[where, 1]]);
  client[Symbol.dispose]();
  while ((await stats())[0].clients > 0) await new Promise((resolve) => setTimeout(resolve, 10));
  await Deno.connect({ port }).then((again) => again.close());
});

upgradeTest("20 upgrades under a verifying load", async (tapdisks, folder) => {
  const disk = await tapdisks.serve(`vhd:${await createVhd(`${folder}/d.vhd`, 64)}`);
  const load = fio(disk.uri, [
    "rw=randwrite",
    "bssplit=4k/60:64k/30:1m/10",
    "iodepth=16",
    "size=48m",
    "time_based",
    "runtime=30",
    "verify=crc32c",
    "verify_backlog=512",
    "verify_fatal=1",
  ]);
  const first = disk.pid;
  let pid = disk.pid;
  let known: { descriptors: number; kib: number } | null = null;
  for (let i = 0; i < 20; i++) {
    // An upgrade takes half a second: a list at another moment of each.
    const listed = new Promise((resolve) => setTimeout(resolve, 25 * i))
      .then(() => tapdisks.tapCtlOk("list"));
    pid = await upgradeUnderLoad(tapdisks, pid);
    // Whenever the disk is looked for, it is there, and once: sm refuses a disk of two tapdisks.
    assert.match(await listed, new RegExp(`^pid=\\d+ minor=${disk.minor} .*$`));
    // A program that knows the first process only.
    JSON.parse(await tapdisks.tapCtlOk("stats", "-p", `${first}`, "-m", `${disk.minor}`));
    if (i === 2) known = { descriptors: openDescriptors(pid), kib: privateMemoryKib(pid) };
  }
  const [{ error }] = await load;
  assert.equal(error, 0);
  assert.ok(known !== null);
  // The client of the load has left.
  assert.ok(await settledDescriptors(pid) < known.descriptors);
  assert.ok(privateMemoryKib(pid) < 1.5 * known.kib);
  const waited = stalls(tapdisks);
  console.log(`    users waited ${Math.max(...waited)} ms at most, ${waited.length} upgrades`);
  assert.equal(waited.length, 20);
  assert.ok(Math.max(...waited) < LONGEST_STALL_MS, `${waited}`);
  assert.deepEqual((await tapdisks.tapCtlOk("list")).split("\n").length, 1);
  const written =
    JSON.parse(await tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${disk.minor}`)).secs[1];
  assert.ok(written > 1000, "the counters go on");
}, withFio);
