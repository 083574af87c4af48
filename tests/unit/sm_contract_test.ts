/**
 * The calls of XenServer's storage manager (libs/sm/vhdutil.py of xapi-project/sm), with its
 * arguments in its order and its way to parse the output.
 *
 * @module
 */

import assert from "node:assert/strict";
import { goldenImage, vhdUtil } from "../support/vhd.ts";
import { withTempDir } from "../support/tools.ts";

const DEBUG = "--debug";
const MIB = 1024 * 1024;
const BLOCK = 2 * MIB;

/** Runs a command that must succeed, like `ioretry`; returns its output. */
async function call(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vhdUtil(...args);
  assert.equal(code, 0, `vhd-util ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

function strictInt(text: string): number {
  assert.match(text.trim(), /^-?\d+$/);
  return Number(text.trim());
}

/** As in the file SR: the name without folder and extension. */
function extractUuid(path: string): string {
  const name = path.slice(path.lastIndexOf("/") + 1).trim();
  return name.replace(/\.vhd$/, "");
}

interface VhdInfo {
  path: string;
  uuid: string;
  sizeVirt: number;
  sizePhys: number;
  sizeAllocated: number;
  hidden: number;
  parentPath: string;
  parentUuid: string;
  error: string;
}

const NO_INFO: VhdInfo = {
  path: "",
  uuid: "",
  sizeVirt: -1,
  sizePhys: -1,
  sizeAllocated: -1,
  hidden: 0,
  parentPath: "",
  parentUuid: "",
  error: "",
};

/** getVHDInfo */
async function getVhdInfo(path: string, includeParent = true): Promise<VhdInfo> {
  const options = includeParent ? "-vsafp" : "-vsaf";
  const fields = (await call("query", DEBUG, options, "-n", path)).trim().split("\n");
  const info = { ...NO_INFO, path, uuid: extractUuid(path) };
  info.sizeVirt = strictInt(fields[0]) * MIB;
  info.sizePhys = strictInt(fields[1]);
  let next = 2;
  if (includeParent) {
    if (!fields[next].includes("no parent")) {
      info.parentPath = fields[next];
      info.parentUuid = extractUuid(fields[next]);
    }
    next++;
  }
  info.hidden = strictInt(fields[next].replace("hidden: ", ""));
  info.sizeAllocated = strictInt(fields[next + 1]) * BLOCK;
  assert.equal(fields.length, next + 2);
  return info;
}

/** _parseVHDInfo */
function parseVhdInfo(line: string): VhdInfo | null {
  const values = line.split(/\s+/).filter(Boolean);
  if (values.length < 1 || !values[0].includes("vhd=")) return null;
  const info = { ...NO_INFO };
  for (const keyAndValue of values) {
    const parts = keyAndValue.split("=");
    assert.equal(parts.length, 2, `${keyAndValue} unpacks to two`);
    const [key, value] = parts;
    if (key === "vhd") [info.uuid, info.path] = [extractUuid(value), value];
    else if (key === "scan-error") {
      info.error = line;
      break;
    } else if (key === "capacity") info.sizeVirt = strictInt(value);
    else if (key === "size") info.sizePhys = strictInt(value);
    else if (key === "hidden") info.hidden = strictInt(value);
    else if (key === "parent" && value !== "none") {
      [info.parentPath, info.parentUuid] = [value, extractUuid(value)];
    }
  }
  return info;
}

/** getAllVHDs, with its second attempt after a failure. */
async function getAllVhds(
  pattern: string,
  { group, parentsOnly = false }: { group?: string; parentsOnly?: boolean } = {},
): Promise<Map<string, VhdInfo>> {
  const command = ["scan", "-f", "-m", pattern];
  if (group !== undefined) command.push("-l", group);
  if (parentsOnly) command.push("-a");
  let { code, stdout } = await vhdUtil(...command);
  if (code !== 0) stdout = await call(...command, "-c");
  const found = new Map<string, VhdInfo>();
  for (const line of stdout.split("\n")) {
    if (line.trim() === "") continue;
    const info = parseVhdInfo(line);
    assert.ok(info !== null, `parses: ${line}`);
    found.set(info.uuid, info);
  }
  return found;
}

/** hasParent */
async function hasParent(path: string): Promise<boolean> {
  const match = /^.*Disk type\s+: (\S+) hard disk.*/s.exec(
    await call("read", DEBUG, "-p", "-n", path),
  );
  assert.ok(match !== null && (match[1] === "Differencing" || match[1] === "Dynamic"));
  return match[1] === "Differencing";
}

/** getParent */
async function getParent(path: string): Promise<string | null> {
  const text = await call("query", DEBUG, "-p", "-n", path);
  assert.ok(!text.includes("query failed") && !text.includes("Failed opening"));
  return text.includes("no parent") ? null : extractUuid(text);
}

function inFolder(name: string, body: (at: (name: string) => string) => Promise<void>): void {
  Deno.test(`the storage manager's calls: ${name}`, () =>
    withTempDir(async (folder) => {
      const real = Deno.realPathSync(folder);
      await body((file) => `${real}/${file}`);
    }));
}

inFolder("create, getVHDInfo, sizes", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64");
  await call("create", DEBUG, "-n", at("b.vhd"), "-s", "64", "-S", "2098");
  await call("create", DEBUG, "-n", at("c.vhd"), "-s", "4", "-r");
  const info = await getVhdInfo(at("a.vhd"));
  assert.deepEqual(info, {
    ...NO_INFO,
    path: at("a.vhd"),
    uuid: "a",
    sizeVirt: 64 * MIB,
    sizePhys: 3584,
    sizeAllocated: 0,
  });
  assert.equal(strictInt(await call("query", DEBUG, "-v", "-n", at("a.vhd"))) * MIB, 64 * MIB);
  assert.equal(strictInt(await call("query", DEBUG, "-S", "-n", at("b.vhd"))), 2098);
  const { size } = Deno.statSync(at("a.vhd"));
  assert.equal(strictInt(await call("query", DEBUG, "-s", "-n", at("a.vhd"))), size);
  assert.equal(strictInt(await call("query", DEBUG, "-a", "-n", at("a.vhd"))), 0);
});

inFolder("snapshot, parents, depth", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64");
  await call("snapshot", DEBUG, "-n", at("b.vhd"), "-p", at("a.vhd"), "-e");
  await call("snapshot", DEBUG, "-n", at("c.vhd"), "-p", at("b.vhd"), "-S", "128", "-e");
  Deno.writeFileSync(at("raw"), new Uint8Array(4 * MIB));
  await call("snapshot", DEBUG, "-n", at("d.vhd"), "-p", at("raw"), "-m");
  const info = await getVhdInfo(at("c.vhd"));
  assert.equal(info.parentPath, at("b.vhd"));
  assert.equal(info.parentUuid, "b");
  assert.equal((await getVhdInfo(at("c.vhd"), false)).hidden, 0);
  assert.equal(await getParent(at("c.vhd")), "b");
  assert.equal(await getParent(at("a.vhd")), null);
  assert.equal(await hasParent(at("c.vhd")), true);
  assert.equal(await hasParent(at("a.vhd")), false);
  const depth = await call("query", DEBUG, "-d", "-n", at("c.vhd"));
  assert.ok(depth.startsWith("chain depth:"));
  assert.equal(strictInt(depth.split(":")[1]), 3);
  // _getVHDParentNoCheck
  const line = (await call("read", "-p", "-n", at("d.vhd"))).split("\n")
    .find((text) => text.includes("decoded name :"));
  assert.equal(line?.split(":")[1].trim(), "./raw");
});

inFolder("hidden, parent, killData, setSizePhys", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64");
  await call("set", DEBUG, "-n", at("a.vhd"), "-f", "hidden", "-v", "1");
  const hidden = await call("query", DEBUG, "-f", "-n", at("a.vhd"));
  assert.equal(strictInt(hidden.split(":").at(-1) ?? ""), 1);
  await call("set", DEBUG, "-n", at("a.vhd"), "-f", "hidden", "-v", "0");
  await call("create", DEBUG, "-n", at("b.vhd"), "-s", "64");
  await call("snapshot", DEBUG, "-n", at("c.vhd"), "-p", at("a.vhd"), "-e");
  await call("modify", DEBUG, "-p", at("b.vhd"), "-n", at("c.vhd"));
  assert.equal(await getParent(at("c.vhd")), "b");
  Deno.writeFileSync(at("raw"), new Uint8Array(4 * MIB));
  await call("modify", DEBUG, "-p", at("raw"), "-n", at("c.vhd"), "-m");
  assert.equal(await getParent(at("c.vhd")), "raw");
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  await call("modify", DEBUG, "-z", "-n", at("base.vhd"));
  const { stdoutBytes } = await vhdUtil("read", "-n", at("base.vhd"), "-r", "0", "-c", "1");
  assert.ok(stdoutBytes.every((byte) => byte === 0), "killData");
  const { size } = Deno.statSync(at("base.vhd"));
  await call("modify", DEBUG, "-s", String(size + MIB), "-n", at("base.vhd"));
  assert.equal(Deno.statSync(at("base.vhd")).size, size + MIB);
});

inFolder("resize, journal, revert, fast resize", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64", "-S", "128");
  await call("resize", DEBUG, "-s", "128", "-n", at("a.vhd"), "-f");
  assert.equal(strictInt(await call("query", DEBUG, "-v", "-n", at("a.vhd"))), 128);
  await call("resize", DEBUG, "-s", "4096", "-n", at("a.vhd"), "-j", at("journal"));
  assert.equal(strictInt(await call("query", DEBUG, "-v", "-n", at("a.vhd"))), 4096);
  // The end of the change removed the journal, so there is nothing to revert.
  const { code } = await vhdUtil("revert", DEBUG, "-n", at("a.vhd"), "-j", at("journal"));
  assert.notEqual(code, 0);
  await call("check", DEBUG, "-n", at("a.vhd"));
});

inFolder("check, repair", async (at) => {
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  await call("check", DEBUG, "-n", at("base.vhd"));
  await call("check", DEBUG, "-n", at("base.vhd"), "-i", "-B");
  const { size } = Deno.statSync(at("base.vhd"));
  Deno.truncateSync(at("base.vhd"), size - 512);
  assert.notEqual((await vhdUtil("check", DEBUG, "-n", at("base.vhd"))).code, 0);
  await call("check", DEBUG, "-n", at("base.vhd"), "-i");
  await call("repair", "-n", at("base.vhd"));
  await call("check", DEBUG, "-n", at("base.vhd"));
});

inFolder("getBlockBitmap, coalesce", async (at) => {
  Deno.writeFileSync(at("base.vhd"), await goldenImage("base.vhd"));
  Deno.writeFileSync(at("child.vhd"), await goldenImage("child.vhd"));
  const { stdoutBytes } = await vhdUtil("read", DEBUG, "-B", "-n", at("base.vhd"));
  assert.deepEqual([...stdoutBytes], [0xf0, 0x00, 0x10, 0x00]);
  const text = await call("coalesce", DEBUG, "-n", at("child.vhd"));
  assert.equal(Number(/^Coalesced (\d+) sectors/.exec(text)?.[1]), 6272);
});

inFolder("getKeyHash, setKey", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64");
  assert.equal((await call("key", "-p", "-n", at("a.vhd"))).trim(), "none");
  const hash = "ab".repeat(32);
  await call("key", "-s", "-n", at("a.vhd"), "-H", hash);
  const values = (await call("key", "-p", "-n", at("a.vhd"))).trim().split(/\s+/);
  assert.equal(values.length, 2);
  assert.equal(values[1], hash);
});

inFolder("getAllVHDs of a folder, also with a damaged image", async (at) => {
  await call("create", DEBUG, "-n", at("a.vhd"), "-s", "64");
  await call("snapshot", DEBUG, "-n", at("b.vhd"), "-p", at("a.vhd"), "-e");
  await call("create", DEBUG, "-n", at("f.vhd"), "-s", "2", "-r");
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
  await call("create", "-n", at("VG_XenStorage--x-VHD--1111"), "-s", "64");
  await call(
    ...["snapshot", "-n", at("VG_XenStorage--x-VHD--2222"), "-e"],
    ...["-p", at("VG_XenStorage--x-VHD--1111")],
  );
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
    const one = parseVhdInfo(await call("scan", "-f", "-l", group, "-m", "VHD-1111"));
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
