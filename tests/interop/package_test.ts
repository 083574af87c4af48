/**
 * The result of `scripts/package` in its target environments: without a libc, in any folder, on an
 * old kernel.
 *
 * @module
 */
import assert from "node:assert/strict";
import { COMMAND_NAMES } from "../../src/cli/dispatch.ts";
import { isRunning, until } from "../support/control.ts";
import { LIBCRYPTO_CHOICES } from "../../ffi/libcrypto.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { PSK_TEXT } from "../support/pki.ts";
import { faultsOf, readBill } from "../support/sbom.ts";
import { findTool, needs, run, runOk, type RunResult, withTempDir } from "../support/tools.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const MIB = 1 << 20;
const KEY_NAME = "disk,aes-xts-plain,512.key";
/** No test creates block devices on this machine. */
const NO_DEVICE = { BLKTAP_DEVICE: "none" };

const libcrypto = hasLibcrypto() ? [] : ["libcrypto.so.3"];
const tools = ["dist/blktap", "dpkg-deb", "qemu-io", "nbdinfo", "ldd", "ldconfig", ...libcrypto];
const plain = needs(...tools);
const asRoot = needs(
  ...tools,
  "root",
  "deb-systemd-helper",
  ...await canMount() ? [] : ["mount(2) in a namespace"],
);
const filtered = needs(...tools, "python3");

/** Whether this process may mount filesystems in a private mount namespace. */
async function canMount(): Promise<boolean> {
  const options = { stdout: "null", stderr: "null" } as const;
  const command = new Deno.Command("unshare", { args: ["--mount", "true"], ...options });
  return Deno.uid() === 0 && (await command.output()).success;
}

let made: Promise<string> | undefined;

/** The folder with the packages, created once. */
function packages(): Promise<string> {
  return made ??= (async () => {
    const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
    await runOk(`${ROOT}scripts/package`, ["--quick", "--built", folder], { timeoutMs: 120_000 });
    return folder;
  })();
}

Deno.test.afterAll(async () => {
  if (made !== undefined) Deno.removeSync(await made, { recursive: true });
});

function packageIn(folder: string, end: string): string {
  const found = Array.from(Deno.readDirSync(folder), ({ name }) => name)
    .find((name) => name.endsWith(end));
  assert.ok(found !== undefined, `scripts/package made no *${end}`);
  return `${folder}/${found}`;
}

/** Unpacks the tarball into `folder`; returns the path of its install.sh. */
async function unpackTarball(folder: string): Promise<string> {
  const tarball = packageIn(await packages(), ".tar.gz");
  Deno.mkdirSync(folder);
  await runOk("tar", ["-xzf", tarball, "-C", folder, "--strip-components=1", "--no-same-owner"]);
  return `${folder}/install.sh`;
}

/** All entries of a folder: paths and link targets. */
async function contents(folder: string): Promise<string> {
  return await runOk("find", [".", "!", "-type", "d", "-printf", "%p %l\n"], { cwd: folder })
    .then((text) => text.split("\n").sort().join("\n"));
}

/** A root folder or a prefix with blktap installed, and how its commands are run. */
interface Place {
  /** The folder for the files of a test, as its commands see it. */
  readonly folder: string;
  /** The same folder, as the test sees it. */
  readonly outside: string;
  run(name: string, ...args: string[]): Promise<RunResult>;
}

async function ok(place: Place, name: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await place.run(name, ...args);
  assert.equal(code, 0, `${name} ${args.join(" ")}: ${stdout}${stderr}`);
  return stdout.trimEnd();
}

/** The libraries that a process has mapped. */
function mappedLibraries(pid: number): string[] {
  const paths = Deno.readTextFileSync(`/proc/${pid}/maps`).matchAll(/ (\/.*\.so(?:\.\d+)*)$/gm);
  return [...new Set([...paths].map(([, path]) => path))];
}

/**
 * Creates and serves a VHD, writes and reads it over NBD, and checks the tapdisk's mapped
 * libraries.
 */
async function serveDisk(
  place: Place,
  libraries: string,
  { key, systemCrypto = false }: { key?: Uint8Array; systemCrypto?: boolean } = {},
): Promise<void> {
  const { folder, outside } = place;
  const image = `${folder}/disk.vhd`;
  const keyOptions = key === undefined ? [] : ["-k", `${folder}/${KEY_NAME}`];
  await ok(place, "vhd-util", "create", "-n", image, "-s", "16");
  if (key !== undefined) {
    Deno.writeFileSync(`${outside}/${KEY_NAME}`, key);
    await ok(place, "vhd-util", "key", "-s", "-n", image, ...keyOptions);
  }
  const log = `${folder}/disk.cbtlog`;
  await ok(place, "cbt-util", "create", "-n", log, "-s", String(16 * MIB));
  await ok(place, "tap-ctl", "create", "-a", `vhd:${image}`, "-C", log, ...keyOptions);
  const [, pid, minor] = /^pid=(\d+) minor=(\d+) /.exec(await ok(place, "tap-ctl", "list")) ?? [];
  try {
    const socket = (JSON.parse(await ok(place, "tap-ctl", "list", "--json")) as { nbd: string }[])
      .map(({ nbd }) => nbd.replace(folder, outside))[0];
    const uri = `nbd+unix:///?socket=${socket}`;
    assert.equal((await runOk("nbdinfo", ["--size", uri])).trim(), String(16 * MIB));
    const write = ["-c", "write -q -P 77 2M 1M", "-c", "flush"];
    await runOk("qemu-io", ["-f", "raw", ...write, "-c", "read -q -P 77 2M 1M", uri]);
    const mapped = mappedLibraries(Number(pid));
    const isLibcrypto = (path: string): boolean => path.includes("libcrypto");
    const foreign = mapped.filter((path) => !path.startsWith(`${libraries}/`));
    // A libcrypto may depend on compression libraries.
    const brought = systemCrypto ? /\/lib(crypto|z|zstd|brotli\w*)\.so/ : /$^/;
    assert.deepEqual(foreign.filter((path) => !brought.test(path)), []);
    assert.ok(mapped.includes(`${libraries}/libc.so.6`));
    assert.equal(mapped.some(isLibcrypto), key !== undefined);
    // The system's libcrypto, which the distribution updates, has priority over the one in the
    // package.
    if (key !== undefined) assert.equal(foreign.some(isLibcrypto), systemCrypto);
    await serveWithTls(place, ["-p", pid, "-m", minor]);
    const secured = mappedLibraries(Number(pid)).filter((path) => /lib(ssl|crypto)\.so/.test(path));
    assert.equal(secured.filter((path) => path.includes("libssl")).length, 1);
    // Both come from the same place.
    assert.equal(new Set(secured.map((path) => path.replace(/[^/]*$/, ""))).size, 1, `${secured}`);
  } finally {
    await ok(place, "tap-ctl", "destroy", "-p", pid, "-m", minor);
  }
  await until("the tapdisk ends", () => !isRunning(Number(pid)));
  assert.equal(await ok(place, "vhd-util", "check", "-n", image), `${image} is valid`);
  assert.equal(await ok(place, "cbt-util", "extents", "-n", log), `${2 * MIB} ${MIB}`);
  const holdsPattern = new TextDecoder("latin1").decode(Deno.readFileSync(`${outside}/disk.vhd`))
    .includes("\x4d".repeat(512));
  assert.equal(holdsPattern, key === undefined);
  Deno.removeSync(`${outside}/disk.vhd`);
}

/** Serves a disk over TCP with keys; a client outside reads its size. */
async function serveWithTls(place: Place, device: readonly string[]): Promise<void> {
  const { folder, outside } = place;
  Deno.writeTextFileSync(`${outside}/keys.psk`, PSK_TEXT);
  const options = ["--listen", "127.0.0.1:0", "--tls-psk", `${folder}/keys.psk`];
  const where = (await ok(place, "tap-ctl", "serve", ...device, ...options)).trim();
  const uri = `nbds://alice@${where}/?tls-psk-file=${outside}/keys.psk`;
  assert.equal((await runOk("nbdinfo", ["--size", uri])).trim(), String(16 * MIB));
}

/** Commands in a root folder that has only the package. */
function inChroot(root: string): Place {
  const script = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&' +
    ' mount -t tmpfs tmp "$0/tmp" && exec chroot "$0" "$@"';
  for (const folder of ["proc", "dev", "tmp", "run", "srv"]) Deno.mkdirSync(`${root}/${folder}`);
  return {
    folder: "/run",
    outside: `${root}/run`,
    run: (name, ...args) =>
      run("unshare", ["--mount", "sh", "-c", script, root, `/usr/bin/${name}`, ...args], {
        env: NO_DEVICE,
      }),
  };
}

Deno.test({
  name: `package: the .deb serves disks where there is no libc${asRoot.suffix}`,
  ignore: asRoot.ignore,
  fn: () =>
    withTempDir(async (root) => {
      await runOk("dpkg-deb", ["-x", packageIn(await packages(), ".deb"), root]);
      const place = inChroot(root);
      assert.match(await ok(place, "blktap", "--version"), /^blktap /);
      await serveDisk(place, `${root}/usr/lib/blktap/lib`);
      const key = Uint8Array.from({ length: 64 }, (_, i) => i);
      await serveDisk(place, `${root}/usr/lib/blktap/lib`, { key });
      Deno.writeTextFileSync(`${root}/etc/blktap/devices`, "disk ram:8 device=none\n");
      assert.match(
        await ok(place, "tap-ctl", "restore"),
        /^disk: \/run\/blktap-control\/nbd\d+\.0$/,
      );
      assert.equal(await ok(place, "tap-ctl", "restore", "--stop"), "disk: stopped");
    }),
});

Deno.test({
  name: `package: the .deb is whole: sums, links, manual pages, scripts${plain.suffix}`,
  ignore: plain.ignore,
  fn: () =>
    withTempDir(async (root) => {
      await runOk("dpkg-deb", ["-R", packageIn(await packages(), ".deb"), root]);
      await runOk("md5sum", ["--check", "--quiet", "DEBIAN/md5sums"], { cwd: root });
      for (const script of ["postinst", "prerm", "postrm"]) {
        await runOk("sh", ["-n", `${root}/DEBIAN/${script}`]);
      }
      const conffiles = Deno.readTextFileSync(`${root}/DEBIAN/conffiles`).trim().split("\n");
      for (const path of conffiles) assert.ok(Deno.statSync(root + path).isFile);
      const documents = [
        ...[
          "man1/vhd-util",
          "man1/cbt-util",
          "man1/cbt-util-get",
          "man8/tap-ctl",
          "man8/tapdisk",
          "man8/tapback",
        ]
          .map((name) => `man/${name}.${name[3]}.gz`),
        ...["tap-ctl", "vhd-util", "cbt-util", "tapback"].map((name) =>
          `bash-completion/completions/${name}`
        ),
      ];
      for (const path of documents) assert.ok(Deno.statSync(`${root}/usr/share/${path}`).isFile);
      const binary = Deno.realPathSync(`${root}/usr/lib/blktap/bin/blktap`);
      for (const name of ["blktap", ...COMMAND_NAMES]) {
        assert.equal(Deno.realPathSync(`${root}/usr/bin/${name}`), binary);
      }
    }),
});

const SBOM = "usr/share/doc/blktap/sbom.cdx.json";

Deno.test({
  name: `package: the list of parts has every file with its true hash${plain.suffix}`,
  ignore: plain.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const [deb, tarball] = [`${folder}/deb`, `${folder}/tarball`];
      await runOk("dpkg-deb", ["-x", packageIn(await packages(), ".deb"), deb]);
      await unpackTarball(tarball);
      Deno.renameSync(`${tarball}/install.sh`, `${tarball}/root/install.sh`);
      for (const root of [deb, `${tarball}/root`]) {
        const bill = readBill(`${root}/${SBOM}`);
        assert.deepEqual(faultsOf(bill, root, SBOM), []);
        const libraries = bill.components.filter(({ name }) => name.includes("/lib/lib"));
        assert.ok(libraries.length >= 5 && libraries.every(({ type }) => type === "library"));
        if (Deno.lstatSync("/var/lib/dpkg/status").isFile) {
          const ofDebian = libraries.filter(({ purl, version, licenses }) =>
            purl?.startsWith("pkg:deb/") && version !== undefined && licenses !== undefined
          );
          assert.ok(ofDebian.some(({ name }) => name.endsWith("/libc.so.6")));
          for (const library of ["/libcrypto.so.", "/libssl.so."]) {
            assert.ok(ofDebian.some(({ name }) => name.includes(library)), library);
          }
        }
        assert.ok(bill.components.some((component) => component["bom-ref"] === "deno"));
        const terms = Deno.readTextFileSync(`${root}/usr/share/doc/blktap/copyright`);
        for (const { name, "bom-ref": ref } of bill.components) {
          if (!ref.startsWith("npm:")) continue;
          const [, text] = terms.split(`npm package ${name} `);
          assert.match(
            text ?? "",
            /^[^]{0,200}(?:MIT|Copyright)[^]*Permission is hereby granted/,
            name,
          );
        }
        const library = "usr/lib/blktap/lib/libc.so.6";
        const bytes = Deno.readFileSync(`${root}/${library}`);
        bytes[bytes.length - 1] ^= 1;
        Deno.removeSync(`${root}/${library}`);
        Deno.writeFileSync(`${root}/${library}`, bytes);
        Deno.writeTextFileSync(`${root}/usr/lib/blktap/lib/libmore.so`, "");
        Deno.removeSync(`${root}/etc/blktap/devices`);
        assert.deepEqual(faultsOf(bill, root, SBOM), [
          "usr/lib/blktap/lib/libmore.so is not listed",
          "etc/blktap/devices is missing",
          `${library} differs`,
        ]);
      }
      await runOk("sha256sum", ["--check", "--quiet", "SHA256SUMS"], { cwd: await packages() });
    }),
});

/** dpkg with its own database, whose scripts know that the root folder is another one. */
async function dpkg(root: string, ...args: string[]): Promise<void> {
  await runOk("dpkg", [`--root=${root}`, "--force-script-chrootless", ...args]);
}

Deno.test({
  name: `package: dpkg installs, updates and purges it under a disk in use${asRoot.suffix}`,
  ignore: asRoot.ignore,
  fn: () =>
    withTempDir(async (root) => {
      const deb = packageIn(await packages(), ".deb");
      for (const folder of ["info", "updates", "triggers"]) {
        Deno.mkdirSync(`${root}/var/lib/dpkg/${folder}`, { recursive: true });
      }
      for (const file of ["status", "available"]) {
        Deno.writeTextFileSync(`${root}/var/lib/dpkg/${file}`, "");
      }
      await dpkg(root, "--install", deb);
      for (const unit of ["blktap.service", "tapback.service"]) {
        const wanted = `${root}/etc/systemd/system/multi-user.target.wants/${unit}`;
        assert.equal(Deno.readLinkSync(wanted), `/lib/systemd/system/${unit}`);
      }

      const list = "disk ram:8 device=none\n";
      Deno.writeTextFileSync(`${root}/etc/blktap/devices`, list);
      const place = inChroot(root);
      const [, nbd, pid] =
        /^disk: \/run(.*\/nbd(\d+)\.0)$/.exec(await ok(place, "tap-ctl", "restore")) ??
          [];
      await dpkg(root, "--install", deb);
      assert.equal(Deno.readTextFileSync(`${root}/etc/blktap/devices`), list);
      const uri = `nbd+unix:///?socket=${root}/run${nbd}`;
      await runOk("qemu-io", ["-f", "raw", "-c", "write -q 0 64k", "-c", "read -q 0 64k", uri]);
      assert.equal(await ok(place, "tap-ctl", "restore", "--stop"), "disk: stopped");
      await until("the tapdisk ends", () => !isRunning(Number(pid)));

      await dpkg(root, "--purge", "blktap");
      const left = (await contents(root)).split("\n");
      assert.deepEqual(left.filter((path) => /^\.\/(usr|lib|etc)\//.test(path)), []);
    }),
});

Deno.test({
  name: `package: install.sh installs what the .deb does, and keeps the list${plain.suffix}`,
  ignore: plain.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const [deb, unpacked, root] = ["deb", "unpacked", "root"].map((name) => `${folder}/${name}`);
      await runOk("dpkg-deb", ["-x", packageIn(await packages(), ".deb"), deb]);
      Deno.removeSync(`${deb}/usr/share/doc/blktap/changelog.gz`);
      Deno.removeSync(`${deb}/usr/share/lintian/overrides/blktap`);
      const install = await unpackTarball(unpacked);
      await runOk(install, ["--root", root]);
      assert.equal(await contents(root), await contents(deb));
      Deno.writeTextFileSync(`${root}/etc/blktap/devices`, "mine ram:8\n");
      Deno.writeTextFileSync(`${root}/usr/lib/blktap/lib/libc.so.6`, "old");
      await runOk(install, ["--root", root]);
      assert.equal(Deno.readTextFileSync(`${root}/etc/blktap/devices`), "mine ram:8\n");
      assert.ok(Deno.statSync(`${root}/usr/lib/blktap/lib/libc.so.6`).size > MIB);
      assert.equal((await run(install, ["--root", root, "--prefix", root])).code, 1);
    }),
});

/** Installs blktap from the tarball into a folder with an unusual name. */
async function withPrefix(
  before: readonly string[],
  body: (place: Place, prefix: string) => Promise<void>,
): Promise<void> {
  await withTempDir(async (folder) => {
    const prefix = `${folder}/another place/é`;
    await runOk(await unpackTarball(`${folder}/unpacked`), ["--prefix", prefix]);
    Deno.removeSync(`${folder}/unpacked`, { recursive: true });
    const env = { ...NO_DEVICE, BLKTAP_CONTROL_DIR: `${folder}/control`, LD_LIBRARY_PATH: "/lib" };
    const place: Place = {
      folder,
      outside: folder,
      run: (name, ...args) => {
        const [program, ...rest] = [...before, `${prefix}/bin/${name}`, ...args];
        return run(program, rest, { env });
      },
    };
    await body(place, prefix);
  });
}

Deno.test({
  name: `package: install.sh --prefix puts it anywhere, with its own libraries${plain.suffix}`,
  ignore: plain.ignore,
  fn: () => withPrefix([], (place, prefix) => serveDisk(place, `${prefix}/lib`)),
});

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Whether this machine has a libcrypto in the usual place. */
function hasSystemCrypto(): boolean {
  return LIBCRYPTO_CHOICES.some((path) => path.startsWith("/") && exists(path));
}

Deno.test({
  name: `package: keys are used by the system's libcrypto where there is one${plain.suffix}`,
  ignore: plain.ignore,
  fn: () =>
    withPrefix([], async (place, prefix) => {
      const key = Uint8Array.from({ length: 64 }, (_, i) => i);
      await serveDisk(place, `${prefix}/lib`, { key, systemCrypto: hasSystemCrypto() });
    }),
});

/** The first system call after Linux 4.19: pidfd_send_signal, from 5.1. */
const FIRST_NEW_CALL = 424;
/** Runs a program; newer system calls return ENOSYS, as on such a kernel. */
const AS_LINUX_4_19 = `
import ctypes, os, struct, sys
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER, ENOSYS = 22, 38, 2, 38
code = struct.pack("HBBI" * 4,
    0x20, 0, 0, 0,                      # load the number of the system call
    0x35, 0, 1, ${FIRST_NEW_CALL},      # from this one on
    0x06, 0, 0, 0x00050000 | ENOSYS,    # fail
    0x06, 0, 0, 0x7fff0000)             # else allow
code = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) != 0:
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
`;

Deno.test({
  name: `package: serves disks with the system calls that Linux 4.19 has${filtered.suffix}`,
  ignore: filtered.ignore,
  fn: () =>
    withPrefix(["python3", "-c", AS_LINUX_4_19], async (place, prefix) => {
      const newer = "import os; os.pidfd_open(os.getpid())";
      const python = ["-c", AS_LINUX_4_19, findTool("python3") ?? "", "-c", newer];
      assert.match((await run("python3", python)).stderr, /Function not implemented/);
      await serveDisk(place, `${prefix}/lib`);
    }),
});
