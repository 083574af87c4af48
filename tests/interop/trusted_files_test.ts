/** Files that another user could have created or replaced: the control folder, the log, keys. */
import assert from "node:assert/strict";
import { createDynamic, createFixed, snapshot } from "../../mod.ts";
import { requireOwnFolder } from "../../src/control/paths.ts";
import { requireTrustedFile, untrustedPart } from "../../src/files/trusted_path.ts";
import { FileSink } from "../../src/log/file_sink.ts";
import { needs, runOk, withTempDir } from "../support/tools.ts";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { needsServed, Tapdisks, withTapdisks } from "../support/served.ts";
import { vhdUtil } from "../support/vhd.ts";

// The library is opened before the tests, see there.
hasLibcrypto();

const MIB = 1024 * 1024;
const SOMEBODY = 12345;
/** Of the system: other users cannot run one in a home folder. */
const PYTHON = "/usr/bin/python3";
const served = needsServed("root", "setpriv", PYTHON);
const root = needs("root");

Deno.test({
  name: `a control folder that somebody else owns is refused${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const tapdisks = new Tapdisks(folder);
      Deno.mkdirSync(tapdisks.controlFolder);
      Deno.chownSync(tapdisks.controlFolder, SOMEBODY, SOMEBODY);
      for (const args of [["spawn"], ["allocate"], ["close", "-p", "1", "-m", "0"]]) {
        const { code, stderr } = await tapdisks.tapCtl(...args);
        assert.equal(code, 1, `${args}: ${stderr}`);
        assert.match(stderr, /\/ctl, which user 12345 owns.*BLKTAP_CONTROL_DIR/);
      }
      assert.deepEqual([...Deno.readDirSync(tapdisks.controlFolder)], []);
    }),
});

Deno.test({
  name: `a link to a good folder is as good as who made it${root.suffix}`,
  ignore: root.ignore,
  fn: () =>
    withTempDir((folder) => {
      Deno.mkdirSync(`${folder}/good`);
      Deno.symlinkSync(`${folder}/good`, `${folder}/link`);
      requireOwnFolder(`${folder}/link`);
      requireOwnFolder(`${folder}/nowhere`);
      Deno.chownSync(`${folder}/good`, SOMEBODY, SOMEBODY);
      assert.throws(() => requireOwnFolder(`${folder}/link`), { code: "EPERM" });
    }),
});

/** Folders in which another user could replace what is ours, and those in which nobody could. */
const FOLDERS: readonly { mode: number; owner: number; aboveMode: number; fit: boolean }[] = [
  { mode: 0o700, owner: 0, aboveMode: 0o755, fit: true },
  { mode: 0o755, owner: 0, aboveMode: 0o755, fit: true },
  { mode: 0o755, owner: 0, aboveMode: 0o1777, fit: true },
  { mode: 0o755, owner: 0, aboveMode: 0o775, fit: true },
  { mode: 0o775, owner: 0, aboveMode: 0o755, fit: false },
  { mode: 0o757, owner: 0, aboveMode: 0o755, fit: false },
  { mode: 0o1777, owner: 0, aboveMode: 0o755, fit: false },
  { mode: 0o700, owner: SOMEBODY, aboveMode: 0o755, fit: false },
  { mode: 0o700, owner: 0, aboveMode: 0o777, fit: false },
];

Deno.test({
  name: `a folder for sockets is one that only this user can change${root.suffix}`,
  ignore: root.ignore,
  fn: () =>
    withTempDir((folder) => {
      for (const { mode, owner, aboveMode, fit } of FOLDERS) {
        const [above, inside] = [`${folder}/above`, `${folder}/above/state`];
        Deno.mkdirSync(inside, { recursive: true });
        Deno.chmodSync(inside, mode);
        Deno.chownSync(inside, owner, owner);
        Deno.chmodSync(above, aboveMode);
        const what = [mode, owner, aboveMode].map((part) => part.toString(8)).join(" ");
        assert.equal(untrustedPart(inside) === null, fit, what);
        // A name that does not exist yet is made with mode 0700, where nobody else can make it first.
        if (fit) assert.equal(untrustedPart(`${inside}/new`), null, what);
        Deno.symlinkSync("above/../above/state", `${folder}/link`);
        assert.equal(untrustedPart(`${folder}/link`) === null, fit, `a link to ${what}`);
        assert.equal(untrustedPart(`${folder}/./above//state/../state/`) === null, fit, what);
        Deno.removeSync(`${folder}/link`);
        Deno.removeSync(above, { recursive: true });
      }
    }),
});

Deno.test({
  name: `a folder above that somebody else owns, or a link of his, is refused${root.suffix}`,
  ignore: root.ignore,
  fn: () =>
    withTempDir((folder) => {
      Deno.mkdirSync(`${folder}/his/state`, { recursive: true, mode: 0o700 });
      Deno.chownSync(`${folder}/his`, SOMEBODY, SOMEBODY);
      assert.match(untrustedPart(`${folder}/his/state`) ?? "", /his, which user 12345 owns$/);
      assert.match(untrustedPart(`${folder}/his/new`) ?? "", /his, which user 12345 owns$/);
      Deno.mkdirSync(`${folder}/mine`, { mode: 0o700 });
      Deno.symlinkSync(`${folder}/mine`, `${folder}/link`);
      assert.equal(untrustedPart(`${folder}/link`), null);
      new Deno.Command("chown", { args: ["-h", "12345", `${folder}/link`] }).outputSync();
      assert.match(untrustedPart(`${folder}/link`) ?? "", /link, which user 12345 owns$/);
      assert.match(untrustedPart(`${folder}/link/x`) ?? "", /link, which user 12345 owns$/);
      Deno.symlinkSync("loop", `${folder}/loop`);
      assert.match(untrustedPart(`${folder}/loop`) ?? "", /loop, which is one of too many links$/);
    }),
});

Deno.test({
  name: `a list of disks that others can write is refused${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTempDir(async (folder) => {
      const list = `${folder}/devices`;
      Deno.writeTextFileSync(list, "one ram:4 device=none\n", { mode: 0o600 });
      requireTrustedFile(list);
      requireTrustedFile(`${folder}/none`);
      const tapdisks = new Tapdisks(folder);
      const refused = async (why: RegExp): Promise<void> => {
        assert.throws(() => requireTrustedFile(list), why);
        const { code, stderr } = await tapdisks.tapCtl("restore", "--file", list);
        assert.equal(code, 1, stderr);
        assert.match(stderr, why);
      };
      Deno.chmodSync(list, 0o622);
      await refused(/Cannot use .*\/devices, which other users can write to/);
      Deno.chmodSync(list, 0o600);
      Deno.chownSync(list, SOMEBODY, SOMEBODY);
      await refused(/\/devices, which user 12345 owns/);
      Deno.chownSync(list, 0, 0);
      Deno.chmodSync(folder, 0o777);
      const why = /\/devices below .*, which other users can write to/;
      assert.throws(() => requireTrustedFile(list), why);
    }),
});

Deno.test({
  name: `the log does not go to a file of somebody else, or one with two names${root.suffix}`,
  ignore: root.ignore,
  fn: () =>
    withTempDir((folder) => {
      const [victim, log] = [`${folder}/victim`, `${folder}/tapdisk.log`];
      Deno.writeTextFileSync(victim, "precious");
      Deno.linkSync(victim, log);
      assert.throws(() => new FileSink(log, "tapdisk"), /has 2 names/);
      assert.equal(Deno.readTextFileSync(victim), "precious");
      Deno.removeSync(victim);
      Deno.chownSync(log, SOMEBODY, SOMEBODY);
      assert.throws(() => new FileSink(log, "tapdisk"), /which user 12345 owns/);
    }),
});

Deno.test({
  name: `what tapdisk makes is for its user only, whatever the umask${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const before = Deno.umask(0);
      try {
        Deno.chmodSync(folder, 0o755);
        const disk = await tapdisks.serve("ram:8");
        Deno.writeTextFileSync(`${folder}/list`, "one ram:4 device=none\n", { mode: 0o600 });
        await tapdisks.tapCtlOk("restore", "--file", `${folder}/list`);
        const modes = Object.fromEntries(modesIn(tapdisks.controlFolder));
        assert.ok(Object.keys(modes).length >= 8, Object.keys(modes).join(" "));
        const open = Object.entries(modes).filter(([, mode]) => (mode & 0o077) !== 0);
        assert.deepEqual(open, []);
        await assertUnreachable(tapdisks.controlFolder, Object.keys(modes));
        // All have modes of their own, if somebody opens the folder to others.
        Deno.chmodSync(tapdisks.controlFolder, 0o755);
        await assertUnreachable(tapdisks.controlFolder, Object.keys(modes));
        Deno.chmodSync(tapdisks.controlFolder, 0o700);
        await tapdisks.tapCtlOk("restore", "--stop");
        await tapdisks.stop(disk);
      } finally {
        Deno.umask(before);
      }
    }),
});

/** The files and folders below a folder, each with its mode. */
function modesIn(folder: string): [string, number][] {
  const own: [string, number] = [folder, (Deno.lstatSync(folder).mode ?? 0) & 0o7777];
  if (!Deno.lstatSync(folder).isDirectory) return [own];
  return [
    own,
    ...[...Deno.readDirSync(folder)].flatMap(({ name }) => modesIn(`${folder}/${name}`)),
  ];
}

/** Another user can neither connect to nor read any of it, nor make a name there. */
async function assertUnreachable(folder: string, paths: readonly string[]): Promise<void> {
  const tries = `
import os, socket, stat, sys
reached = []
for path in sys.argv[1:]:
    try:
        with socket.socket(socket.AF_UNIX) as one: one.connect(path)
        reached.append("connect " + path)
    except OSError: pass
    for flags in os.O_RDONLY, os.O_WRONLY:
        try:
            fd = os.open(path, flags)
            # A folder that was opened to others may be listed.
            if not stat.S_ISDIR(os.fstat(fd).st_mode) or path != sys.argv[1]: reached.append("open " + path)
            os.close(fd)
        except OSError: pass
    for make in (lambda p: os.mkdir(p), lambda p: os.symlink("/etc/passwd", p)):
        try:
            make(path + "/planted")
            reached.append("plant " + path)
        except OSError: pass
print("\\n".join(reached), end="")
`;
  const as = ["--reuid=12345", "--regid=12345", "--clear-groups", PYTHON, "-c", tries];
  assert.equal(await runOk("setpriv", [...as, folder, ...paths]), "");
}

Deno.test("the log does not follow a link, and goes to files only", () =>
  withTempDir((folder) => {
    const [victim, log] = [`${folder}/victim`, `${folder}/tapdisk.log`];
    Deno.writeTextFileSync(victim, "precious");
    Deno.symlinkSync(victim, log);
    assert.throws(() => new FileSink(log, "tapdisk"), { code: "ELOOP" });
    assert.equal(Deno.readTextFileSync(victim), "precious");
    Deno.removeSync(log);
    Deno.mkdirSync(log);
    assert.throws(() => new FileSink(log, "tapdisk"), { code: "EISDIR" });
    Deno.removeSync(log);
    const sinks = [new FileSink(log, "a"), new FileSink(log, "b")];
    for (const sink of [...sinks, ...sinks]) sink.write("info", "line");
    assert.equal(Deno.readTextFileSync(log).split("\n").length, 5);
    Deno.removeSync(log);
    Deno.symlinkSync(victim, log);
    for (const sink of sinks) {
      sink.reopen();
      sink.write("info", "line");
      sink.close();
    }
    assert.equal(Deno.readTextFileSync(victim), "precious");
  }));

Deno.test("new images are not for others to read", () =>
  withTempDir((folder) => {
    const before = Deno.umask(0);
    try {
      createDynamic(`${folder}/a.vhd`, { sizeBytes: MIB });
      createFixed(`${folder}/b.vhd`, { sizeBytes: MIB, sparse: true });
      snapshot(`${folder}/c.vhd`, { parent: `${folder}/a.vhd` });
      for (const name of ["a", "b", "c"]) {
        assert.equal((Deno.statSync(`${folder}/${name}.vhd`).mode ?? 0) & 0o777, 0o640);
      }
      Deno.umask(0o077);
      createDynamic(`${folder}/d.vhd`, { sizeBytes: MIB });
      assert.equal((Deno.statSync(`${folder}/d.vhd`).mode ?? 0) & 0o777, 0o600);
    } finally {
      Deno.umask(before);
    }
  }));

Deno.test("a key file that others may read is warned about, and used", () =>
  withTempDir(async (folder) => {
    const key = `${folder}/a,aes-xts-plain,512.key`;
    Deno.writeFileSync(key, new Uint8Array(64), { mode: 0o644 });
    createDynamic(`${folder}/a.vhd`, { sizeBytes: MIB });
    const loose = await vhdUtil("key", "-s", "-n", `${folder}/a.vhd`, "-k", key);
    assert.equal(loose.code, 0);
    assert.match(loose.stderr, /Warning.*512\.key.*0644.*0600/);
    Deno.chmodSync(key, 0o600);
    const tight = await vhdUtil("key", "-c", "-n", `${folder}/a.vhd`, "-k", key);
    assert.deepEqual([tight.code, tight.stderr], [0, ""]);
  }));
