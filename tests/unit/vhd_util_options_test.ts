/**
 * Every option in the help of vhd-util has an effect: each is tried with and without it, in a
 * separate folder, and the output or the files must differ.
 *
 * @module
 */
import assert from "node:assert/strict";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { encodeFooter, footerChecksum } from "../../src/vhd/format/footer.ts";
import { encodeHeader, headerChecksum } from "../../src/vhd/format/header.ts";
import { openVhd, type VhdImage } from "../../src/vhd/image/image.ts";
import { storeKeyhash } from "../../src/vhd/key.ts";
import { updateFooters } from "../../src/vhd/image/footer_writer.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { finishWriting, writeBat, writeRange } from "../../src/vhd/write.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1 << 20;
const KEY = "empty,aes-xts-plain,512.key";
const LONG = `${"long".repeat(50)}/${"name".repeat(50)}`;

/** A trial of an option; `@` is replaced by the folder. */
interface Trial {
  /** The command without the option and with it. */
  readonly commands: readonly [string, string];
  /** A command that shows the resulting files. */
  readonly probe?: string;
  /** Whether the command must fail with the option. */
  readonly refuses?: true;
}

function change(path: string, work: (image: VhdImage) => void): void {
  const image = openVhd(path, { readOnly: false, ignoreDisabled: true });
  work(image);
  image.close();
}

function write(path: string, offsetBytes: number, fill: number, lengthBytes = 65536): void {
  change(path, (image) => {
    writeRange(image, new Uint8Array(lengthBytes).fill(fill), offsetBytes);
    finishWriting(image);
  });
}

/** Changes the footer at one place only. */
function writeFooter(path: string, where: "start" | "end", edit: (image: VhdImage) => void): void {
  change(path, (image) => {
    edit(image);
    image.footer.checksum = footerChecksum(encodeFooter(image.footer));
    const offset = where === "start" ? 0 : image.file.sizeBytes() - 512;
    image.file.writeAt(encodeFooter(image.footer), offset);
  });
}

/** Creates the files of the trials. */
function fillFolder(folder: string): void {
  const at = (name: string): string => `${folder}/${name}`;
  createDynamic(at("base.vhd"), { sizeBytes: 8 * MIB, reserveBytes: 64 * MIB });
  write(at("base.vhd"), 0, 1);
  write(at("base.vhd"), 2 * MIB, 1);
  snapshot(at("child.vhd"), { parent: at("base.vhd") });
  write(at("child.vhd"), 0, 2);
  snapshot(at("leaf.vhd"), { parent: at("child.vhd") });
  write(at("leaf.vhd"), 4 * MIB, 3);
  snapshot(at("zeros.vhd"), { parent: at("base.vhd") });
  write(at("zeros.vhd"), 6 * MIB, 0, 2 * MIB);
  snapshot(at("none.vhd"), { parent: at("base.vhd") });
  createDynamic(at("empty.vhd"), { sizeBytes: 8 * MIB });
  createDynamic(at("other.vhd"), { sizeBytes: 8 * MIB });
  Deno.mkdirSync(at(LONG), { recursive: true });
  createDynamic(at(`${LONG}/far.vhd`), { sizeBytes: 8 * MIB });
  Deno.writeFileSync(at("raw.img"), new Uint8Array(4096).fill(7));
  Deno.truncateSync(at("raw.img"), 8 * MIB);
  Deno.writeFileSync(at(KEY), Uint8Array.from({ length: 64 }, (_, index) => index));
  createDynamic(at("keyed.vhd"), { sizeBytes: 8 * MIB });
  storeKeyhash(at("keyed.vhd"), { nonce: new Uint8Array(32), hash: new Uint8Array(32).fill(5) });
  damageImages(folder);
}

function damageImages(folder: string): void {
  const at = (name: string): string => `${folder}/${name}`;
  for (const name of ["backup", "footless", "overlap", "future", "stray"]) {
    Deno.copyFileSync(at("base.vhd"), at(`${name}.vhd`));
  }
  writeFooter(at("backup.vhd"), "start", ({ footer }) => footer.hidden = 1);
  Deno.truncateSync(at("footless.vhd"), Deno.statSync(at("footless.vhd")).size - 512);
  change(at("overlap.vhd"), (image) => {
    image.bat[1] = image.bat[0];
    writeBat(image);
  });
  change(at("future.vhd"), (image) => {
    image.footer.timestamp = 0xf000_0000;
    updateFooters(image);
  });
  // Data that the bitmap does not mark.
  change(at("stray.vhd"), ({ file, bat }) => {
    file.writeAt(new Uint8Array(512).fill(8), (bat[0] + 1 + 1000) * 512);
  });
  Deno.copyFileSync(at("child.vhd"), at("strange.vhd"));
  change(at("strange.vhd"), ({ file, header, footer }) => {
    assert.ok(header !== null);
    header.parentUuid[0] ^= 1;
    header.checksum = headerChecksum(encodeHeader(header));
    file.writeAt(new Uint8Array(encodeHeader(header)), Number(footer.dataOffset));
  });
}

function trial(without: string, added: string, more: Omit<Trial, "commands"> = {}): Trial {
  return { commands: [without, `${without} ${added}`], ...more };
}

// Opened before the first test.
const HAS_LIBCRYPTO = hasLibcrypto();
const HASH = "ab".repeat(32);

const TRIALS: Record<string, Record<string, Trial>> = {
  create: {
    s: trial("create -n @/x.vhd", "-s 4"),
    S: trial("create -n @/x.vhd -s 4", "-S 64", { probe: "query -S -n @/x.vhd" }),
    r: trial("create -n @/x.vhd -s 4", "-r", { probe: "query --json -n @/x.vhd" }),
  },
  snapshot: {
    p: trial("snapshot -n @/x.vhd", "-p @/child.vhd", { probe: "query -p -n @/x.vhd" }),
    l: trial("snapshot -n @/x.vhd -p @/leaf.vhd", "-l 3", { refuses: true }),
    m: trial("snapshot -n @/x.vhd -p @/raw.img", "-m", { probe: "query -p -n @/x.vhd" }),
    S: trial("snapshot -n @/x.vhd -p @/other.vhd", "-S 64", { probe: "query -S -n @/x.vhd" }),
    e: trial("snapshot -n @/x.vhd -p @/none.vhd", "-e", { probe: "query -p -n @/x.vhd" }),
  },
  set: {
    f: trial("set -n @/base.vhd -v 1", "-f hidden", { probe: "query -f -n @/base.vhd" }),
    v: trial("set -n @/base.vhd -f marker", "-v 7", { probe: "query -m -n @/base.vhd" }),
  },
  repair: {
    b: trial("repair -n @/backup.vhd", "-b", { probe: "query -f -n @/backup.vhd" }),
  },
  resize: {
    s: trial("resize -n @/base.vhd -f", "-s 16", { probe: "query -v -n @/base.vhd" }),
    f: trial("resize -n @/base.vhd -s 16", "-f", { probe: "query -v -n @/base.vhd" }),
    j: trial("resize -n @/base.vhd -s 16", "-j @/j", { probe: "query -v -n @/base.vhd" }),
  },
  fill: {
    b: trial("fill -n @/none.vhd", "-b", { probe: "check -s -n @/none.vhd" }),
    f: trial("fill -n @/empty.vhd -b", "-f 4096", { probe: "query -a -n @/empty.vhd" }),
    t: trial("fill -n @/empty.vhd -b", "-t 0", { probe: "query -a -n @/empty.vhd" }),
  },
  coalesce: {
    a: trial("coalesce -n @/leaf.vhd", "-a @/base.vhd", { probe: "query -a -n @/base.vhd" }),
    o: trial("coalesce -n @/leaf.vhd", "-o @/x.vhd", { probe: "query -d -n @/x.vhd" }),
    x: trial("coalesce -n @/leaf.vhd -o @/x.vhd", "-x @/child.vhd", {
      probe: "query -p -n @/x.vhd",
    }),
    s: trial("coalesce -n @/zeros.vhd", "-s", { probe: "query -a -n @/base.vhd" }),
    p: trial("coalesce -n @/leaf.vhd", "-p"),
  },
  modify: {
    p: trial("modify -n @/child.vhd", "-p @/other.vhd", { probe: "query -p -n @/child.vhd" }),
    m: trial("modify -n @/child.vhd -p @/raw.img", "-m", { probe: "query -p -n @/child.vhd" }),
    j: trial(`modify -n @/child.vhd -p @/${LONG}/far.vhd`, "-j @/j", {
      probe: "query -p -n @/child.vhd",
    }),
    s: trial("modify -n @/child.vhd", "-s 4194304", { probe: "scan -f @/child.vhd" }),
    z: trial("modify -n @/child.vhd", "-z", { probe: "query -a -n @/child.vhd" }),
  },
  check: {
    i: trial("check -n @/footless.vhd", "-i"),
    I: trial("check -p -n @/strange.vhd", "-I"),
    t: trial("check -n @/future.vhd", "-t"),
    B: trial("check -n @/overlap.vhd", "-B"),
    p: trial("check -n @/child.vhd", "-p"),
    b: trial("check -n @/stray.vhd", "-b"),
    s: trial("check -n @/child.vhd", "-s"),
    json: trial("check -n @/child.vhd", "--json"),
  },
  key: {
    s: trial(`key -n @/empty.vhd -k @/${KEY}`, "-s", { probe: "key -p -n @/empty.vhd" }),
    c: trial(`key -n @/keyed.vhd -k @/${KEY}`, "-c", { refuses: true }),
    p: trial("key -n @/keyed.vhd", "-p"),
    C: trial(`key -k @/${KEY}`, "-C"),
    k: trial("key -C", `-k @/${KEY}`),
    H: trial("key -s -n @/empty.vhd", `-H ${HASH}`, { probe: "key -p -n @/empty.vhd" }),
    N: trial(`key -C -k @/${KEY}`, `-N ${HASH}`),
  },
  copy: {
    N: trial("copy -n @/leaf.vhd", "-N @/x.vhd", { probe: "query -a -n @/x.vhd" }),
    k: trial("copy -n @/leaf.vhd -N @/x.vhd", `-k @/${KEY}`, {
      probe: "key -p -n @/x.vhd",
      ...(HAS_LIBCRYPTO ? {} : { refuses: true }),
    }),
    K: trial("copy -n @/leaf.vhd -N @/x.vhd", `-K @/${KEY}`, { refuses: true }),
  },
  tree: {
    json: trial("tree @", "--json"),
    svg: trial("tree @", "--svg"),
    html: trial("tree @", "--html"),
    o: trial("tree @", "-o @/x.svg"),
  },
  map: {
    "1": trial("map -n @/leaf.vhd", "-1"),
    json: trial("map -n @/leaf.vhd", "--json"),
    svg: trial("map -n @/leaf.vhd", "--svg"),
    html: trial("map -n @/leaf.vhd", "--html"),
    o: trial("map -n @/leaf.vhd", "-o @/x.svg"),
    output: trial("map -n @/leaf.vhd", "--output @/x.svg"),
  },
  query: Object.fromEntries(
    ["v", "s", "p", "f", "m", "d", "a", "S", "json"].map((name) => [
      name,
      trial("query -n @/leaf.vhd", name.length === 1 ? `-${name}` : `--${name}`),
    ]).concat([
      ["u", trial("query -p -n @/leaf.vhd", "-u")],
      ["b", trial("query -f -n @/backup.vhd", "-b")],
    ]),
  ),
  read: {
    ...Object.fromEntries(
      ["p", "t 9", "b 0", "B", "m 0", "i 1", "e 0", "a", "j 0", "d 0", "r 0", "R 0"].map((use) => [
        use[0],
        trial("read -n @/base.vhd", `-${use}`),
      ]),
    ),
    c: trial("read -n @/base.vhd -b 0", "-c 2"),
    x: trial("read -n @/base.vhd -b 0", "-x"),
    json: trial("read -n @/base.vhd -p", "--json"),
  },
  scan: {
    m: trial("scan", "-m @/leaf.vhd"),
    f: trial("scan -v @/leaf.vhd", "-f"),
    c: trial("scan @/missing.vhd @/base.vhd", "-c"),
    p: trial("scan @/base.vhd @/child.vhd", "-p"),
    a: trial("scan @/leaf.vhd", "-a"),
    v: trial("scan @/leaf.vhd", "-v"),
    M: trial("scan @/keyed.vhd", "-M"),
    json: trial("scan @/leaf.vhd", "--json"),
  },
};

/**
 * Options that other tests cover, because their requirements are missing here or all calls use
 * them.
 */
const ELSEWHERE: Record<string, readonly string[]> = {
  // A key on standard input: tests/interop/encrypted_test.ts.
  copy: ["E"],
  // Logical volumes: tests/vm.
  scan: ["l"],
  // The journal of an interrupted change: tests/unit/vhd_journal_test.ts.
  revert: ["j"],
};

/** Copies the files of a folder. */
function copyFolder(from: string, to: string): void {
  for (const { name, isDirectory } of Deno.readDirSync(from)) {
    if (!isDirectory) Deno.copyFileSync(`${from}/${name}`, `${to}/${name}`);
    else {
      Deno.mkdirSync(`${to}/${name}`);
      copyFolder(`${from}/${name}`, `${to}/${name}`);
    }
  }
}

/** The output and the resulting files of a command, in a copy of a folder. */
async function outcome(
  template: string,
  command: string,
  probe?: string,
): Promise<{ code: number; text: string }> {
  return await withTempDir(async (folder) => {
    copyFolder(template, folder);
    const run = async (line: string) => await vhdUtil(...line.replaceAll("@", folder).split(" "));
    const { code, stdout, stderr } = await run(command);
    const after = probe === undefined ? null : await run(probe);
    const text = `${code}\n${stdout}\n${stderr}\n${after?.stdout}\n${after?.stderr}`;
    const uuid = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g;
    return { code, text: text.replaceAll(folder, "@").replaceAll(uuid, "UUID") };
  });
}

for (const [name, load] of VHD_UTIL.subcommands) {
  Deno.test(`options: each that 'vhd-util ${name} --help' lists does something`, async () => {
    const { options } = await load();
    const trials = TRIALS[name] ?? {};
    const listed = options.map((option) => option.name).filter((option) => option !== "n");
    const tried = [...Object.keys(trials), ...(ELSEWHERE[name] ?? [])];
    assert.deepEqual(listed.sort(), tried.sort());
    await withTempDir(async (template) => {
      fillFolder(template);
      for (const [option, { commands, probe, refuses }] of Object.entries(trials)) {
        const without = await outcome(template, commands[0], probe);
        const withIt = await outcome(template, commands[1], probe);
        assert.notEqual(withIt.text, without.text, `-${option}: ${withIt.text}`);
        assert.equal(withIt.code === 0, refuses !== true, `-${option}: ${withIt.text}`);
      }
    });
  });
}

Deno.test("options: those that change nothing are taken, and not in the help", async () => {
  const ignored: string[] = [];
  for (const [name, load] of VHD_UTIL.subcommands) {
    const { ignoredOptions = [] } = await load();
    const { stdout } = await vhdUtil(name, "--help");
    for (const option of ignoredOptions) {
      ignored.push(`${name} -${option.name}`);
      assert.doesNotMatch(stdout, new RegExp(`^ +-${option.name} `, "m"));
    }
  }
  assert.deepEqual(ignored, ["read -C", "fill -B"]);
  await withTempDir(async (template) => {
    fillFolder(template);
    assert.equal((await outcome(template, "fill -n @/empty.vhd -b -B")).code, 0);
    assert.equal((await outcome(template, "read -n @/base.vhd -p -C")).code, 0);
  });
});
