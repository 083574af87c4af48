/**
 * The parents of an image must be in the folder tree of the top image, or in trees that the
 * administrator allows.
 */
import assert from "node:assert/strict";
import { coalesce, copyImage, openDisk } from "../../mod.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import {
  allowParentsIn,
  confinementOf,
  isAdmitted,
  parseParentRoots,
} from "../../src/files/confinement.ts";
import { isWithin, volumeNames } from "../../src/files/paths.ts";
import { osStorage } from "../../src/files/storage.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU } from "../../src/vhd/format/locator.ts";
import { encodeUtf16 } from "../../src/vhd/format/text.ts";
import { openChain } from "../../src/vhd/image/chain.ts";
import { type ForeignLocator, putForeignImage } from "../support/foreign_vhd.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SECRET = "root:secret:".padEnd(512, "x");
const RAW_UUID = new Uint8Array(16);

/** A tree with a valid base, and outside it a secret and a VHD. */
async function withTree(
  body: (tree: { inside: string; outside: string; uuid: Uint8Array }) => Promise<void> | void,
): Promise<void> {
  await withTempDir(async (folder) => {
    const [inside, outside] = [`${folder}/in`, `${folder}/out`];
    for (const path of [inside, outside, `${inside}/sub`]) Deno.mkdirSync(path);
    Deno.writeTextFileSync(`${outside}/secret`, SECRET);
    Deno.writeFileSync(`${inside}/raw`, new Uint8Array(1024));
    const uuid = putForeignImage(osStorage, `${outside}/base.vhd`, { blocks: { 0: "o" } });
    Deno.copyFileSync(`${outside}/base.vhd`, `${inside}/base.vhd`);
    await body({ inside, outside, uuid });
  });
}

function child(
  path: string,
  uuid: Uint8Array,
  locators: readonly ForeignLocator[],
): void {
  putForeignImage(osStorage, path, {
    parent: { uuid, name: "no such name" },
    locators,
    blocks: { 1: "#" },
  });
}

const url = (text: string): ForeignLocator => ({
  code: PLAT_CODE_MACX,
  bytes: new TextEncoder().encode(`file://${text}`),
});
const relative = (path: string): ForeignLocator => ({ code: PLAT_CODE_W2RU, path });
const absolute = (path: string): ForeignLocator => ({
  code: PLAT_CODE_W2KU,
  bytes: encodeUtf16(path.replaceAll("/", "\\"), { littleEndian: true }),
});

Deno.test("a locator that leads out is refused, in every form", () =>
  withTree(async ({ inside, outside }) => {
    const secret = `${outside}/secret`;
    Deno.symlinkSync(outside, `${inside}/folder-link`);
    Deno.symlinkSync(secret, `${inside}/file-link`);
    Deno.symlinkSync(`${inside}/file-link`, `${inside}/sub/link-to-link`);
    Deno.symlinkSync(`${inside}/raw`, `${outside}/link-into`);
    using opened = Deno.openSync(secret);
    assert.ok(opened !== null);
    const locators: ForeignLocator[] = [
      url(secret),
      url("../out/secret"),
      url(`./sub/../../out/secret`),
      url("./folder-link/secret"),
      url("./file-link"),
      url("./sub/link-to-link"),
      url(`${outside}/link-into`),
      url(`${inside}/../out/secret`),
      url("/proc/self/root" + secret),
      url("/proc/self/cwd/../../../../../../../../.." + secret),
      url("/etc/passwd"),
      relative("../out/secret"),
      relative("./folder-link/../out/secret"),
      absolute(secret),
      absolute(`C:${secret}`),
      absolute("/etc/passwd"),
    ];
    const before = Deno.readTextFileSync(secret);
    for (const locator of locators) {
      const path = `${inside}/child.vhd`;
      child(path, RAW_UUID, [locator]);
      const what = `${locator.path ?? new TextDecoder().decode(locator.bytes)}`;
      const refused = (error: unknown): boolean => {
        assert.ok(error instanceof Error && "errno" in error, what);
        assert.equal(error.errno, 1, `${what}: ${error.message}`);
        assert.match(error.message, /child\.vhd.*lies outside of .*\/in \(EPERM\).*--parent-root/);
        return true;
      };
      assert.throws(() => openDisk(path), refused);
      await assert.rejects(copyImage(path, `${inside}/copy.vhd`), refused);
      await assert.rejects(coalesce(path), refused);
      for (
        const args of [
          ["query", "-n", path, "-p"],
          ["query", "-n", path, "-d"],
          ["read", "-n", path, "-r", "0", "-c", "1"],
          ["map", "-n", path],
          ["fill", "-n", path],
        ]
      ) {
        const { code, stderr, stdout } = await vhdUtil(...args);
        assert.equal(code, 1, `${args} ${what} ${stdout}${stderr}`);
        assert.ok(!stdout.includes("secret:"), what);
      }
      const tree = await vhdUtil("tree", inside);
      assert.match(tree.stdout, /not opened: outside/);
      assert.equal((await vhdUtil("check", "-n", path)).code, 22, what);
    }
    assert.equal(Deno.readTextFileSync(secret), before);
  }));

Deno.test("what lies in the tree is followed, also by links and from a linked folder", () =>
  withTree(({ inside, outside, uuid }) => {
    Deno.symlinkSync(inside, `${outside}/in-link`);
    Deno.symlinkSync(`${inside}/base.vhd`, `${inside}/sub/base-link`);
    Deno.symlinkSync(`${inside}/sub`, `${inside}/sub-link`);
    for (
      const locator of [
        url("./base.vhd"),
        url("./sub/../base.vhd"),
        url("../in/base.vhd"),
        url(`${inside}/base.vhd`),
        url(`${outside}/in-link/base.vhd`),
        url("./sub/base-link"),
        url("./sub-link/base-link"),
        relative("./base.vhd"),
        absolute("/base.vhd"),
      ]
    ) {
      child(`${inside}/child.vhd`, uuid, [locator]);
      for (const path of [`${inside}/child.vhd`, `${outside}/in-link/child.vhd`]) {
        using disk = openDisk(path);
        const bytes = new Uint8Array(512);
        disk.read(bytes, 0);
        assert.equal(bytes[0], "o".charCodeAt(0));
      }
    }
    // A refused locator is skipped; the next one leads to the parent.
    child(`${inside}/child.vhd`, uuid, [url(`${outside}/base.vhd`), relative("./base.vhd")]);
    assert.equal(openChain(`${inside}/child.vhd`).images[1].path, `${inside}/base.vhd`);
  }));

Deno.test("the tree is that of the top image, for the whole chain", () =>
  withTree(async ({ inside, outside, uuid }) => {
    child(`${inside}/sub/middle.vhd`, uuid, [url("../base.vhd")]);
    const middle = openVhd(`${inside}/sub/middle.vhd`).footer.uuid;
    child(`${inside}/top.vhd`, middle, [url("./sub/middle.vhd")]);
    openDisk(`${inside}/top.vhd`).close();
    assert.equal((await vhdUtil("check", "-p", "-n", `${inside}/top.vhd`)).code, 0);
    assert.throws(() => openDisk(`${inside}/sub/middle.vhd`), { errno: 1 });
    child(`${inside}/sub/middle.vhd`, uuid, [url(`${outside}/base.vhd`)]);
    const other = openVhd(`${inside}/sub/middle.vhd`).footer.uuid;
    child(`${inside}/top.vhd`, other, [url("./sub/middle.vhd")]);
    assert.throws(() => openDisk(`${inside}/top.vhd`), /middle\.vhd.*lies outside/);
    await assert.rejects(coalesce(`${inside}/top.vhd`, { ancestor: `${outside}/base.vhd` }));
    await assert.rejects(
      coalesce(`${inside}/top.vhd`, { output: `${inside}/o.vhd` }),
      /lies outside/,
    );
    // For a symbolic link, the tree is that of the link.
    Deno.symlinkSync(`${inside}/top.vhd`, `${outside}/top-link.vhd`);
    assert.throws(() => openDisk(`${outside}/top-link.vhd`), { errno: 1 });
  }));

Deno.test("roots are allowed by option, environment and library; any allows all", () =>
  withTree(async ({ inside, outside, uuid }) => {
    const path = `${inside}/child.vhd`;
    child(path, uuid, [url(`${outside}/base.vhd`)]);
    const depth = ["query", "-d", "-n", path];
    const status = async (...args: string[]): Promise<number> => (await vhdUtil(...args)).code;
    assert.equal(await status(...depth), 1);
    assert.equal(await status(...depth, "--parent-root", outside), 0);
    assert.equal(await status(...depth, "--parent-root", "/nowhere", "--parent-root", outside), 0);
    assert.equal(await status(...depth, `--parent-root=any`), 0);
    assert.equal(await status(...depth, "--parent-root", `${outside}x`), 1);
    assert.equal(await status(...depth), 1, "an option counts for its call alone");
    for (const value of [outside, `/nowhere:${outside}`, "any", `:${outside}/:`]) {
      Deno.env.set("BLKTAP_PARENT_ROOTS", value);
      assert.equal(await status(...depth), 0, value);
    }
    Deno.env.delete("BLKTAP_PARENT_ROOTS");
    const before = allowParentsIn([outside]);
    openDisk(path).close();
    allowParentsIn(before);
    assert.throws(() => openDisk(path), { errno: 1 });
    // The UUID must match in all cases.
    const stranger = crypto.getRandomValues(new Uint8Array(16));
    child(path, stranger, [url(`${outside}/base.vhd`)]);
    assert.equal(await status("map", "-n", path, "--parent-root", "any"), 22);
  }));

Deno.test("snapshot and modify warn of a parent that lies where none may be", () =>
  withTree(async ({ inside, outside }) => {
    createDynamic(`${outside}/p.vhd`, { sizeBytes: 4 * MIB });
    const [path, parent] = [`${inside}/s.vhd`, `${outside}/p.vhd`];
    const made = await vhdUtil("snapshot", "-n", path, "-p", parent, "-e");
    assert.equal(made.code, 0);
    assert.match(made.stderr, /Warning.*s\.vhd.*p\.vhd.*--parent-root/);
    assert.throws(() => openDisk(path), { errno: 1 });
    const allowed = await vhdUtil("snapshot", "-n", path, "-p", parent, "--parent-root", outside);
    assert.deepEqual([allowed.code, allowed.stderr], [0, ""]);
    createDynamic(`${inside}/q.vhd`, { sizeBytes: 4 * MIB });
    const back = await vhdUtil("modify", "-n", path, "-p", `${inside}/q.vhd`);
    assert.deepEqual([back.code, back.stderr], [0, ""]);
    const away = await vhdUtil("modify", "-n", path, "-p", parent, "-j", `${inside}/j`);
    assert.equal(away.code, 0);
    assert.match(away.stderr, /Warning.*--parent-root/);
    snapshot(`${inside}/t.vhd`, { parent: `${inside}/q.vhd`, keepEmptyParent: true });
    openDisk(`${inside}/t.vhd`).close();
  }));

Deno.test("images of storage repositories may have parents in other repositories", () => {
  const storage = new SimulatedDisk();
  for (const mount of ["/run/sr-mount", "/var/run/sr-mount"]) {
    createDynamic(`${mount}/a/base.vhd`, { storage, sizeBytes: 4 * MIB });
    snapshot(`${mount}/b/cache.vhd`, {
      storage,
      parent: `${mount}/a/base.vhd`,
      keepEmptyParent: true,
    });
    assert.equal(openChain(`${mount}/b/cache.vhd`, { storage }).depth, 2);
  }
  createDynamic("/srv/base.vhd", { storage, sizeBytes: 4 * MIB });
  const parent = "/srv/base.vhd";
  snapshot("/run/sr-mount/b/x.vhd", { storage, parent, keepEmptyParent: true });
  assert.throws(() => openChain("/run/sr-mount/b/x.vhd", { storage }), /EPERM/);
  snapshot("/run/sr-mountain/x.vhd", { storage, parent: "/run/sr-mount/a/base.vhd" });
  assert.throws(() => openChain("/run/sr-mountain/x.vhd", { storage }), /EPERM/);
  assert.deepEqual(confinementOf(storage, "/srv/base.vhd").roots, ["/srv"]);
});

Deno.test("the rule by itself: folder and target within a root, or a block device below /dev", () => {
  const roots = ["/srv/vm", "/dev/vg"];
  const place = (folder: string, realPath: string, isBlockDevice = false): boolean =>
    isAdmitted({ folder, realPath, isBlockDevice }, roots);
  assert.ok(place("/srv/vm", "/srv/vm/a"));
  assert.ok(place("/srv/vm/x", "/srv/vm/y/a"));
  assert.ok(!place("/srv/vm", "/srv/vmx/a"));
  assert.ok(!place("/srv", "/srv/vm/a"));
  assert.ok(!place("/srv/vm", "/etc/shadow"));
  assert.ok(place("/dev/vg", "/dev/dm-5", true));
  assert.ok(!place("/dev/vg", "/dev/dm-5", false));
  assert.ok(!place("/srv/vm", "/dev/dm-5", true));
  assert.ok(!place("/dev", "/dev/sda", true));
  assert.ok(!place("/dev/vg", "/srv/disk", true));
  assert.ok(isWithin("/a", "/") && isWithin("/a", "/a") && !isWithin("/ab", "/a"));
  assert.deepEqual(volumeNames("/dev/vg/lv"), ["/dev/mapper/vg-lv"]);
  assert.deepEqual(volumeNames("/dev/VG_Xen-1/VHD-2"), ["/dev/mapper/VG_Xen--1-VHD--2"]);
  assert.deepEqual(volumeNames("/dev/mapper/VG_Xen--1-VHD--2"), ["/dev/VG_Xen-1/VHD-2"]);
  assert.deepEqual(volumeNames("/dev/mapper/control"), []);
  assert.deepEqual(volumeNames("/srv/a/b"), []);
  const text = "# roots\n/srv/vm  # ours\n\n  /data\nrelative\nany\nrbd # Ceph\n";
  assert.deepEqual(parseParentRoots(text), ["/srv/vm", "/data", "any", "rbd"]);
});
