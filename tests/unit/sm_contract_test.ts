/**
 * The calls of XenServer's storage manager (libs/sm/vhdutil.py of xapi-project/sm), with its
 * arguments in its order and its way to parse the output.
 *
 * @module
 */

import assert from "node:assert/strict";
import {
  type Answer,
  NO_INFO,
  parseHasParent,
  parseParent,
  parseScanLine,
  parseVhdInfo,
  strictInt,
  type VhdInfo,
  VhdUtil,
} from "../support/storage_manager.ts";
import { goldenImage, vhdUtil } from "../support/vhd.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1024 * 1024;

/** The calls, which must succeed, like `ioretry`. */
const sm = new VhdUtil(async (_program, args) => {
  const answer = await vhdUtil(...args);
  assert.equal(answer.code, 0, `vhd-util ${args.join(" ")}: ${answer.stdout}${answer.stderr}`);
  return answer;
});

/** The calls, which may fail. */
const mayFail = new VhdUtil((_program, args) => vhdUtil(...args));

async function textOf(call: Promise<Answer>): Promise<string> {
  return (await call).stdout;
}

async function numberOf(call: Promise<Answer>): Promise<number> {
  return strictInt(await textOf(call));
}

async function getVhdInfo(path: string, includeParent = true): Promise<VhdInfo> {
  const options = includeParent ? "-vsafp" : "-vsaf";
  return parseVhdInfo(await textOf(sm.query(path, options)), path, includeParent);
}

async function getParent(path: string): Promise<string | null> {
  return parseParent(await textOf(sm.query(path, "-p")));
}

async function hasParent(path: string): Promise<boolean> {
  return parseHasParent(await textOf(sm.readHeaders(path)));
}

/** getAllVHDs, with its second attempt after a failure. */
async function getAllVhds(
  pattern: string,
  options: { group?: string; parentsOnly?: boolean } = {},
): Promise<Map<string, VhdInfo>> {
  let { code, stdout } = await mayFail.scan(pattern, options);
  if (code !== 0) ({ stdout } = await sm.scan(pattern, { ...options, nofail: true }));
  const found = new Map<string, VhdInfo>();
  for (const line of stdout.split("\n")) {
    if (line.trim() === "") continue;
    const info = parseScanLine(line);
    assert.ok(info !== null, `parses: ${line}`);
    found.set(info.uuid, info);
  }
  return found;
}

function inFolder(name: string, body: (at: (name: string) => string) => Promise<void>): void {
  Deno.test(`the storage manager's calls: ${name}`, () =>
    withTempDir(async (folder) => {
      const real = Deno.realPathSync(folder);
      await body((file) => `${real}/${file}`);
    }));
}

inFolder("create, getVHDInfo, sizes", async (at) => {
  await sm.create(at("a.vhd"), 64);
  await sm.create(at("b.vhd"), 64, false, 2098);
  await sm.create(at("c.vhd"), 4, true);
  const info = await getVhdInfo(at("a.vhd"));
  assert.deepEqual(info, {
    ...NO_INFO,
    path: at("a.vhd"),
    uuid: "a",
    sizeVirt: 64 * MIB,
    sizePhys: 3584,
    sizeAllocated: 0,
  });
  assert.equal(await numberOf(sm.query(at("a.vhd"), "-v")) * MIB, 64 * MIB);
  assert.equal(await numberOf(sm.query(at("b.vhd"), "-S")), 2098);
  const { size } = Deno.statSync(at("a.vhd"));
  assert.equal(await numberOf(sm.query(at("a.vhd"), "-s")), size);
  assert.equal(await numberOf(sm.query(at("a.vhd"), "-a")), 0);
});

inFolder("snapshot, parents, depth", async (at) => {
  await sm.create(at("a.vhd"), 64);
  await sm.snapshot(at("b.vhd"), at("a.vhd"), { checkEmpty: false });
  await sm.snapshot(at("c.vhd"), at("b.vhd"), { msize: 128, checkEmpty: false });
  Deno.writeFileSync(at("raw"), new Uint8Array(4 * MIB));
  await sm.snapshot(at("d.vhd"), at("raw"), { raw: true });
  const info = await getVhdInfo(at("c.vhd"));
  assert.equal(info.parentPath, at("b.vhd"));
  assert.equal(info.parentUuid, "b");
  assert.equal((await getVhdInfo(at("c.vhd"), false)).hidden, 0);
  assert.equal(await getParent(at("c.vhd")), "b");
  assert.equal(await getParent(at("a.vhd")), null);
  assert.equal(await hasParent(at("c.vhd")), true);
  assert.equal(await hasParent(at("a.vhd")), false);
  const depth = await textOf(sm.query(at("c.vhd"), "-d"));
  assert.ok(depth.startsWith("chain depth:"));
  assert.equal(strictInt(depth.split(":")[1]), 3);
  // _getVHDParentNoCheck
  const line = (await textOf(sm.readHeaders(at("d.vhd")))).split("\n")
    .find((text) => text.includes("decoded name :"));
  assert.equal(line?.split(":")[1].trim(), "./raw");
});

inFolder("hidden, parent, killData, setSizePhys", async (at) => {
  await sm.create(at("a.vhd"), 64);
  await sm.setHidden(at("a.vhd"), true);
  const hidden = await textOf(sm.query(at("a.vhd"), "-f"));
  assert.equal(strictInt(hidden.split(":").at(-1) ?? ""), 1);
  await sm.setHidden(at("a.vhd"), false);
  await sm.create(at("b.vhd"), 64);
  await sm.snapshot(at("c.vhd"), at("a.vhd"), { checkEmpty: false });
  await sm.setParent(at("c.vhd"), at("b.vhd"));
  assert.equal(await getParent(at("c.vhd")), "b");
  Deno.writeFileSync(at("raw"), new Uint8Array(4 * MIB));
  await sm.setParent(at("c.vhd"), at("raw"), true);
  assert.equal(await getParent(at("c.vhd")), "raw");
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  await sm.killData(at("base.vhd"));
  const { stdoutBytes } = await vhdUtil("read", "-n", at("base.vhd"), "-r", "0", "-c", "1");
  assert.ok(stdoutBytes.every((byte) => byte === 0), "killData");
  const { size } = Deno.statSync(at("base.vhd"));
  await sm.setSizePhys(at("base.vhd"), size + MIB);
  assert.equal(Deno.statSync(at("base.vhd")).size, size + MIB);
});

inFolder("resize, journal, revert, fast resize", async (at) => {
  await sm.create(at("a.vhd"), 64, false, 128);
  await sm.resizeFast(at("a.vhd"), 128);
  assert.equal(await numberOf(sm.query(at("a.vhd"), "-v")), 128);
  await sm.resize(at("a.vhd"), 4096, at("journal"));
  assert.equal(await numberOf(sm.query(at("a.vhd"), "-v")), 4096);
  // The end of the change removed the journal, so there is nothing to revert.
  const { code } = await mayFail.revert(at("a.vhd"), at("journal"));
  assert.notEqual(code, 0);
  await sm.check(at("a.vhd"));
});

inFolder("check, repair", async (at) => {
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  await sm.check(at("base.vhd"));
  await sm.check(at("base.vhd"), { missingFooter: true, fast: true });
  const { size } = Deno.statSync(at("base.vhd"));
  Deno.truncateSync(at("base.vhd"), size - 512);
  assert.notEqual((await mayFail.check(at("base.vhd"))).code, 0);
  await sm.check(at("base.vhd"), { missingFooter: true });
  await sm.repair(at("base.vhd"));
  await sm.check(at("base.vhd"));
});

inFolder("getBlockBitmap, coalesce", async (at) => {
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  Deno.writeFileSync(at("child.vhd"), await goldenImage("child.vhd"));
  const { stdoutBytes } = await vhdUtil("read", "--debug", "-B", "-n", at("base.vhd"));
  assert.deepEqual([...stdoutBytes], [0xf0, 0x00, 0x10, 0x00]);
  const text = await textOf(sm.coalesce(at("child.vhd")));
  assert.equal(Number(/^Coalesced (\d+) sectors/.exec(text)?.[1]), 6272);
});

inFolder("getKeyHash, setKey", async (at) => {
  await sm.create(at("a.vhd"), 64);
  assert.equal((await textOf(sm.keyHash(at("a.vhd")))).trim(), "none");
  const hash = "ab".repeat(32);
  await sm.setKey(at("a.vhd"), hash);
  const values = (await textOf(sm.keyHash(at("a.vhd")))).trim().split(/\s+/);
  assert.equal(values.length, 2);
  assert.equal(values[1], hash);
});

inFolder("getAllVHDs of a folder, also with a damaged image", async (at) => {
  await sm.create(at("a.vhd"), 64);
  await sm.snapshot(at("b.vhd"), at("a.vhd"), { checkEmpty: false });
  await sm.create(at("f.vhd"), 2, true);
  let found = await getAllVhds(at("*.vhd"));
  assert.deepEqual([...found.keys()], ["a", "b", "f"]);
  assert.deepEqual(found.get("b"), {
    ...NO_INFO,
    path: "b.vhd",
    uuid: "b",
    sizeVirt: 64 * MIB,
    sizePhys: 5120,
    parentPath: "a.vhd",
    parentUuid: "a",
  });
  Deno.writeTextFileSync(at("bad.vhd"), "no image");
  found = await getAllVhds(at("*.vhd"));
  assert.deepEqual([...found.keys()].sort(), ["a", "b", "bad", "f"]);
  assert.match(found.get("bad")?.error ?? "", /scan-error=-\d+ error-message='/);
});

/** A volume group in a file: LVM's tools are scripts that print the places of the volumes in it. */
async function withVolumes(
  at: (name: string) => string,
  body: (group: string) => Promise<void>,
): Promise<void> {
  const extent = 4 * MIB;
  const device = at("device");
  Deno.writeFileSync(device, new Uint8Array(MIB));
  const images = ["VHD-1111", "VHD-2222"];
  await sm.create(at("VG_XenStorage--x-VHD--1111"), 64);
  await sm.snapshot(at("VG_XenStorage--x-VHD--2222"), at("VG_XenStorage--x-VHD--1111"), {
    checkEmpty: false,
  });
  const file = Deno.openSync(device, { write: true });
  for (const [index, name] of images.entries()) {
    file.seekSync(MIB + index * extent, Deno.SeekMode.Start);
    file.writeSync(Deno.readFileSync(at(`VG_XenStorage--x-${name.replace("-", "--")}`)));
  }
  file.truncateSync(MIB + images.length * extent);
  file.close();
  const lines = images.map((name, index) =>
    `echo '  ${name}|${extent}|linear|0|${extent}|${device}(${index})'`
  );
  const script = (name: string, text: string): void =>
    Deno.writeTextFileSync(at(name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  script("vgs", `echo '  ${extent}|${device}|${MIB}'`);
  script("lvs", [...lines, "echo '  LV-3|4096|striped|0|4096|/dev/none(0)'"].join("\n"));
  const before = Deno.env.get("PATH") ?? "";
  Deno.env.set("PATH", `${at("")}:${before}`);
  try {
    await body("VG_XenStorage-x");
  } finally {
    Deno.env.set("PATH", before);
  }
}

inFolder("getAllVHDs, getVHDInfoLVM and getParentChain of logical volumes", async (at) => {
  await withVolumes(at, async (group) => {
    const one = parseScanLine(
      (await vhdUtil("scan", "-f", "-l", group, "-m", "VHD-1111")).stdout,
    );
    assert.equal(one?.path, "VHD-1111");
    assert.equal(one?.sizePhys, 4 * MIB);
    assert.equal(one?.sizeVirt, 64 * MIB);
    assert.deepEqual([...(await getAllVhds("VHD-*", { group })).keys()], ["VHD-1111", "VHD-2222"]);
    const chain = await getAllVhds("VHD-2222", { group, parentsOnly: true });
    assert.deepEqual([...chain.keys()], ["VHD-2222", "VHD-1111"]);
    assert.equal(chain.get("VHD-2222")?.parentUuid, "VHD-1111");
    const striped = await vhdUtil("scan", "-f", "-l", group, "-m", "LV-3");
    assert.equal(striped.code, 38);
    assert.match(striped.stdout, /^vhd=LV-3 scan-error=-38 /);
  });
});
