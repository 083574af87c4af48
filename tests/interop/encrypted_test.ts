import assert from "node:assert/strict";
import { type ControlBench, isRunning, until, withControlBench } from "../support/control.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { noise } from "../support/nbd_client.ts";
import { needs, runOk } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1 << 20;
const DISK_MIB = 16;
const SECTOR_BYTES = 512;
const KEY = Uint8Array.from({ length: 64 }, (_, i) => i * 3 + 65);
const OTHER = KEY.map((byte) => byte ^ 1);

const libcrypto = hasLibcrypto() ? [] : ["libcrypto.so.3"];
const { ignore, suffix } = needs("nbdcopy", ...libcrypto);

function test(name: string, body: (bench: ControlBench) => Promise<void>): void {
  Deno.test(`encrypted disks: ${name}${suffix}`, { ignore }, () => withControlBench(body));
}

async function vhdUtilOk(...args: string[]): Promise<void> {
  const { code, stderr } = await vhdUtil(...args);
  assert.equal(code, 0, `${args.join(" ")}: ${stderr}`);
}

/** Creates an empty encrypted image and its key file; returns the path of the image. */
async function createEncrypted(bench: ControlBench): Promise<string> {
  const path = `${bench.folder}/disk.vhd`;
  const keyFile = `${bench.folder}/disk,aes-xts-plain,512.key`;
  Deno.writeFileSync(keyFile, KEY);
  await vhdUtilOk("create", "-n", path, "-s", `${DISK_MIB}`);
  await vhdUtilOk("key", "-s", "-n", path, "-k", keyFile);
  return path;
}

/** Serves an image with a key and calls `body` with its NBD URI. */
async function withDisk(
  bench: ControlBench,
  { image, key }: { image: string; key: Uint8Array<ArrayBuffer> },
  body: (uri: string, device: string) => Promise<void>,
): Promise<void> {
  const { code, stdout, stderr } = await bench.tapCtl(`create -a vhd:${image} -E`, { stdin: key });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /tapdisk-0\n$/);
  const [line] = await bench.list();
  const pid = Number(/pid=(\d+)/.exec(line)?.[1]);
  await body(`nbd+unix:///?socket=${bench.control}/nbd${pid}.0`, `-p ${pid} -m 0`);
  await bench.ok(`destroy -p ${pid} -m 0`);
  await until("tapdisk ends", () => !isRunning(pid));
}

function writeContent(path: string): Uint8Array {
  const content = new Uint8Array(DISK_MIB * MIB);
  content.set(noise(3 * MIB, 1), MIB + 3 * SECTOR_BYTES);
  content.set(noise(SECTOR_BYTES, 2), content.length - SECTOR_BYTES);
  Deno.writeFileSync(path, content);
  return content;
}

/** The offset of `part` in `whole`; -1 when it is absent. */
function find(whole: Uint8Array, part: Uint8Array): number {
  const text = (bytes: Uint8Array) => new TextDecoder("latin1").decode(bytes);
  return text(whole).indexOf(text(part));
}

test("nbdcopy writes and reads, through a snapshot and copies made offline", async (bench) => {
  const image = await createEncrypted(bench);
  const at = (name: string): string => `${bench.folder}/${name}`;
  const content = writeContent(at("content"));
  await withDisk(bench, { image, key: KEY }, async (uri, device) => {
    await runOk("nbdcopy", ["--flush", at("content"), uri]);
    await bench.ok(`pause ${device}`);
    await vhdUtilOk("snapshot", "-n", at("child.vhd"), "-p", image);
    await bench.ok(`unpause ${device} -a vhd:${at("child.vhd")}`);
    await runOk("nbdcopy", [uri, at("read")]);
  });
  assert.deepEqual(Deno.readFileSync(at("read")), content);

  const piece = content.subarray(2 * MIB, 2 * MIB + 64);
  for (const path of [image, at("child.vhd")]) {
    assert.equal(find(Deno.readFileSync(path), piece), -1, `${path} holds the data in the clear`);
  }
  const keyFile = at("disk,aes-xts-plain,512.key");
  await vhdUtilOk("copy", "-n", at("child.vhd"), "-N", at("plain.vhd"), "-K", keyFile);
  assert.ok(find(Deno.readFileSync(at("plain.vhd")), piece) > 0);
  Deno.writeFileSync(at("other.key"), OTHER);
  await vhdUtilOk("copy", "-n", at("plain.vhd"), "-N", at("again.vhd"), "-k", at("other.key"));
  await withDisk(bench, { image: at("again.vhd"), key: OTHER }, async (uri) => {
    await runOk("nbdcopy", [uri, at("read-again")]);
  });
  assert.deepEqual(Deno.readFileSync(at("read-again")), content);
});

test("a key that is wrong, missing or not wanted is refused, and never shown", async (bench) => {
  const image = await createEncrypted(bench);
  const plain = `${bench.folder}/plain.vhd`;
  await vhdUtilOk("create", "-n", plain, "-s", "8");
  const pid = await bench.spawn();
  await bench.ok("allocate");
  await bench.ok(`attach -p ${pid} -m 0`);
  const said: string[] = [];
  const refused = async (
    args: string,
    { key, code, why }: { key?: Uint8Array<ArrayBuffer>; code: number; why: RegExp },
  ): Promise<void> => {
    const result = await bench.tapCtl(`open -p ${pid} -m 0 -a ${args}`, { stdin: key });
    assert.equal(result.code, code, result.stderr);
    assert.match(result.stderr, why);
    said.push(result.stderr, result.stdout);
  };
  await refused(`vhd:${image}`, { code: 22, why: /it is encrypted and no key was given/ });
  await refused(`vhd:${image} -E`, { key: OTHER, code: 126, why: /key is not the image's/ });
  await refused(`vhd:${plain} -E`, { key: KEY, code: 22, why: /not an encrypted image/ });
  await refused(`aio:${bench.rawImage("raw")} -E`, { key: KEY, code: 22, why: /not an encrypted/ });
  await refused(`vhd:${image} -E`, { key: KEY.slice(1), code: 22, why: /63 bytes; 32 or 64/ });
  await refused(`vhd:${image} -k /none`, { code: 2, why: /\/none: No such file/ });
  await bench.ok(
    `open -p ${pid} -m 0 -a vhd:${image} -k ${bench.folder}/disk,aes-xts-plain,512.key`,
  );
  said.push(bench.log(), Deno.readTextFileSync(`/proc/${pid}/cmdline`));
  for (const text of said) {
    for (const key of [KEY, OTHER]) {
      assert.ok(!text.includes(new TextDecoder("latin1").decode(key.subarray(0, 16))));
      assert.ok(!text.toLowerCase().includes(key.slice(0, 16).toHex()));
    }
  }
  await bench.ok(`destroy -p ${pid} -m 0`);
  await until("tapdisk ends", () => !isRunning(pid));
});
