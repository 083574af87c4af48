/**
 * The calls of XenServer's storage manager (`libs/sm/vhdutil.py`), with its arguments in its order,
 * and its interpretation of the output.
 */

import assert from "node:assert/strict";
import { encodeFooter, footerChecksum } from "../../src/vhd/format/footer.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { finishWriting, writeRange } from "../../src/vhd/write.ts";
import { parseHasParent, parseVhdInfo } from "../support/storage_manager.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const DEBUG = "--debug";
const HAS_LIBCRYPTO = hasLibcrypto();

/** Like `ioretry`: returns the output, or throws for any status but 0. */
async function call(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vhdUtil(...args);
  assert.equal(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

async function fails(...args: string[]): Promise<number> {
  const { code } = await vhdUtil(...args);
  assert.notEqual(code, 0, args.join(" "));
  return code;
}

/** Puts data into an image, as a tapdisk does. */
function writeBlock(path: string): void {
  const image = openVhd(path, { readOnly: false });
  writeRange(image, new Uint8Array(512), 0);
  finishWriting(image);
  image.close();
}

/** What is read of an image, as far as it is compared here. */
async function getVhdInfo(path: string, includeParent = true) {
  const stdout = await call("query", DEBUG, includeParent ? "-vsafp" : "-vsaf", "-n", path);
  const { sizeVirt, sizePhys, parentPath, hidden, sizeAllocated } = parseVhdInfo(
    stdout,
    path,
    includeParent,
  );
  return { sizeVirt, sizePhys, parentPath, hidden, allocated: sizeAllocated };
}

async function isDifferencing(path: string): Promise<boolean> {
  return parseHasParent(await call("read", DEBUG, "-p", "-n", path));
}

Deno.test("the storage manager's calls return what it parses", async () => {
  await withTempDir(async (temporary) => {
    const folder = Deno.realPathSync(temporary);
    const [base, child, other] = ["base.vhd", "child.vhd", "other.vhd"].map((n) =>
      `${folder}/${n}`
    );
    const journal = `${folder}/jvhd`;
    await call("create", DEBUG, "-n", base, "-s", "64");
    await call("create", DEBUG, "-n", other, "-s", "64", "-S", "20480");
    await call("snapshot", DEBUG, "-n", child, "-p", base, "-S", "20480", "-e");

    assert.deepEqual(await getVhdInfo(base), {
      sizeVirt: 64 << 20,
      sizePhys: 3584,
      parentPath: "",
      hidden: 0,
      allocated: 0,
    });
    assert.equal((await getVhdInfo(child)).parentPath, base);
    assert.equal((await getVhdInfo(child, false)).hidden, 0);
    assert.equal((await call("query", DEBUG, "-p", "-n", child)).trim(), base);
    assert.ok((await call("query", DEBUG, "-p", "-n", base)).includes("no parent"));
    assert.deepEqual([await isDifferencing(base), await isDifferencing(child)], [false, true]);

    await call("modify", DEBUG, "-p", other, "-n", child);
    assert.equal((await getVhdInfo(child)).parentPath, other);
    Deno.writeFileSync(`${folder}/raw`, new Uint8Array(64 << 20));
    await call("modify", DEBUG, "-p", `${folder}/raw`, "-n", child, "-m");
    assert.equal((await getVhdInfo(child)).parentPath, `${folder}/raw`);

    await call("set", DEBUG, "-n", base, "-f", "hidden", "-v", "1");
    const hidden = await call("query", DEBUG, "-f", "-n", base);
    assert.equal(Number(hidden.split(":").at(-1)?.trim()), 1);
    await call("set", DEBUG, "-n", base, "-f", "hidden", "-v", "0");
    assert.equal((await getVhdInfo(base)).hidden, 0);

    await call("resize", DEBUG, "-s", "40960", "-n", base, "-j", journal);
    assert.equal(Number(await call("query", DEBUG, "-v", "-n", base)), 40960);
    assert.throws(() => Deno.statSync(journal), Deno.errors.NotFound);
    await call("resize", DEBUG, "-s", "128", "-n", child, "-f");
    assert.equal(Number(await call("query", DEBUG, "-v", "-n", child)), 128);
    assert.equal(Number(await call("query", DEBUG, "-S", "-n", child)), 20480);
    assert.equal(await fails("resize", DEBUG, "-s", "20482", "-n", child, "-f"), 22);
    assert.equal(await fails("revert", DEBUG, "-n", child, "-j", journal), 2);

    const physical = Number(await call("query", DEBUG, "-s", "-n", child));
    await call("modify", DEBUG, "-s", String(physical + 4096), "-n", child);
    await call("modify", "-s", String(physical + 8192), "-n", child);
    assert.equal(await fails("modify", DEBUG, "-s", String(physical - 512), "-n", child), 22);
    await call("check", DEBUG, "-n", child, "-i", "-B");

    await call("fill", "-n", base, "-b", "-f", "0", "-t", "8191");
    assert.equal(Number(await call("query", DEBUG, "-a", "-n", base)), 2);
    const bitmap = await vhdUtil("read", DEBUG, "-B", "-n", base);
    assert.equal(bitmap.stdoutBytes[0], 0xc0);
    await call("modify", DEBUG, "-z", "-n", base);
    assert.equal(Number(await call("query", DEBUG, "-a", "-n", base)), 0);
    assert.match(await call("query", DEBUG, "-d", "-n", child), /^chain depth:\s*2\n/);
    await call("repair", "-n", base);
    await call("check", DEBUG, "-n", base);

    assert.equal((await call("key", "-p", "-n", base)).trim(), "none");
    const hash = "5f".repeat(32);
    await call("key", "-s", "-n", base, "-H", hash);
    assert.deepEqual((await call("key", "-p", "-n", base)).trim().split(" "), [
      "00".repeat(32),
      hash,
    ]);
  });
});

const WITHOUT = HAS_LIBCRYPTO ? "" : ", skipped without libcrypto";
Deno.test(`key: the hash of a key is stored, checked and inherited${WITHOUT}`, {
  ignore: !HAS_LIBCRYPTO,
}, async () => {
  await withTempDir(async (folder) => {
    const image = `${folder}/disk.vhd`;
    const key = `${folder}/disk,aes-xts-plain,512.key`;
    Deno.writeFileSync(key, Uint8Array.from({ length: 64 }, (_, i) => i));
    await call("create", "-n", image, "-s", "4");
    const nonce = "0102".repeat(16);
    await call("key", "-s", "-n", image, "-k", key, "-N", nonce);
    // printf of the bytes of the nonce and the key | sha256sum
    const hash = (await call("key", "-C", "-k", key, "-N", nonce)).trim();
    const bytes = new Uint8Array([...Uint8Array.fromHex(nonce), ...Deno.readFileSync(key)]);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    assert.equal(hash, digest.toHex());
    assert.equal(await call("key", "-p", "-n", image), `${nonce} ${hash}\n`);
    assert.equal(await call("key", "-c", "-n", image, "-k", key), "");
    const info = await call("read", "-p", "-n", image);
    assert.ok(info.includes(`Batmap keyhash hash : ${hash}\n`), info);

    const wrong = `${folder}/disk,aes-xts-plain,256.key`;
    Deno.writeFileSync(wrong, new Uint8Array(32));
    assert.equal(await fails("key", "-c", "-n", image, "-k", wrong), 22);
    Deno.writeFileSync(wrong, new Uint8Array(31));
    assert.equal(await fails("key", "-c", "-n", image, "-k", wrong), 22);
    assert.equal(await fails("key", "-c", "-n", image, "-k", `${folder}/other.key`), 1);
    assert.equal(await fails("key", "-s", "-n", image, "-H", "12"), 22);
    assert.equal(await fails("key", "-s", "-n", image, "-H", hash, "-k", key), 22);

    await call("snapshot", "-n", `${folder}/child.vhd`, "-p", image, "-e");
    assert.equal(await call("key", "-p", "-n", `${folder}/child.vhd`), `${nonce} ${hash}\n`);
    assert.equal(await fails("fill", "-n", image, "-b"), 22);
    writeBlock(image);
    assert.equal(await fails("key", "-s", "-n", image, "-H", hash), 22);
    await call("create", "-n", `${folder}/fixed.vhd`, "-s", "2", "-r");
    assert.equal(await fails("key", "-s", "-n", `${folder}/fixed.vhd`, "-H", hash), 22);
    assert.equal(await call("key", "-p", "-n", `${folder}/fixed.vhd`), "none\n");
  });
});

Deno.test("JSON says what the lines say", async () => {
  await withTempDir(async (temporary) => {
    const folder = Deno.realPathSync(temporary);
    const [base, child] = [`${folder}/base.vhd`, `${folder}/child.vhd`];
    await call("create", "-n", base, "-s", "64");
    await call("fill", "-n", base, "-b", "-t", "0");
    await call("snapshot", "-n", child, "-p", base);
    const facts = JSON.parse(await call("query", "-n", child, "--json"));
    assert.equal(facts.virtualSizeBytes, 64 << 20);
    assert.deepEqual([facts.parent, facts.parentAsStored, facts.chainDepth], [
      base,
      "./base.vhd",
      2,
    ]);
    const read = JSON.parse(await call("read", "-p", "--json", "-n", child));
    assert.equal(read.header.parentName, "base.vhd");
    assert.equal(read.header.locators[0].code, "PLAT_CODE_MACX");
    assert.equal(read.footer.geometry.heads, 8);
    assert.equal(read.header.dataOffset, "0xffffffffffffffff");
    const check = JSON.parse(await call("check", "-n", child, "-p", "-s", "--json"));
    assert.ok(check.valid);
    assert.deepEqual(check.images.map((image: { path: string }) => image.path), [child, base]);
    assert.equal(check.statistics[0].allocated, 4096);

    const bytes = Deno.readFileSync(base);
    bytes[85] = 1;
    Deno.writeFileSync(base, bytes);
    const { code, stdout } = await vhdUtil("check", "-n", child, "-p", "--json");
    assert.equal(code, 22);
    const [, { valid, findings: [finding] }] = JSON.parse(stdout).images;
    assert.deepEqual([valid, finding.severity, finding.field], [false, "error", "backup.checksum"]);
    assert.equal(finding.offsetBytes, 64);
    Deno.removeSync(base);
    const lost = await vhdUtil("query", "-n", child, "--json");
    assert.equal(lost.code, 2);
    assert.match(JSON.parse(lost.stdout).errors[0], /ENOENT/);
  });
});

Deno.test("query -b takes the backup footer, of the first image only", async () => {
  await withTempDir(async (temporary) => {
    const folder = Deno.realPathSync(temporary);
    const [base, child, fixed] = ["base.vhd", "child.vhd", "fixed.vhd"].map((n) =>
      `${folder}/${n}`
    );
    await call("create", DEBUG, "-n", base, "-s", "64");
    await call("snapshot", DEBUG, "-n", child, "-p", base, "-e");
    await call("set", DEBUG, "-n", child, "-f", "hidden", "-v", "1");
    // The footer at the end and the backup differ, as after a crash between the two writes.
    writeBackup(child, 0);
    writeStart(base, new Uint8Array(512));
    assert.equal(
      await call("query", DEBUG, "-vfd", "-n", child),
      "64\nhidden: 1\nchain depth: 2\n",
    );
    const physical = (await call("query", "-s", "-n", child)).trim();
    // As xcp-ng calls it: the facts come in the order of the command, not of the options.
    const answer = await call("query", DEBUG, "-vsafpb", "-n", child);
    assert.equal(answer, `64\n${physical}\n${base}\nhidden: 0\n0\n`);
    assert.equal(await call("query", "-db", "-n", child), "chain depth: 2\n");
    assert.equal(JSON.parse(await call("query", "--json", "-b", "-n", child)).hidden, 0);

    // A guest may write what looks like a footer to the start of a fixed image.
    await call("create", "-n", fixed, "-s", "2", "-r");
    writeStart(fixed, Deno.readFileSync(child).subarray(0, 512));
    for (
      const [image, why] of [[fixed, /fixed image, which has no backup/], [base, /at byte 0 /]]
    ) {
      const { code, stdout, stderr } = await vhdUtil("query", "-vb", "-n", String(image));
      assert.deepEqual([code, stdout], [22, `error opening ${image}: -22\n`]);
      assert.match(stderr, why as RegExp);
    }
  });
});

/** Overwrites the first bytes of a file. */
function writeStart(path: string, bytes: Uint8Array): void {
  using file = Deno.openSync(path, { write: true });
  file.writeSync(bytes);
}

/** Writes a backup footer that differs from the footer at the end in the hidden flag. */
function writeBackup(path: string, hidden: number): void {
  const image = openVhd(path, { readOnly: false });
  image.footer.hidden = hidden;
  image.footer.checksum = footerChecksum(encodeFooter(image.footer));
  image.file.writeAt(encodeFooter(image.footer), 0);
  image.close();
}
