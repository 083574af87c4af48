/** Files that another user could have created or replaced: the control folder, the log, keys. */
import assert from "node:assert/strict";
import { createDynamic, createFixed, snapshot } from "../../mod.ts";
import { requireOwnFolder } from "../../src/control/paths.ts";
import { FileSink } from "../../src/log/file_sink.ts";
import { needs, withTempDir } from "../support/tools.ts";
import { needsServed, Tapdisks } from "../support/served.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const SOMEBODY = 12345;
const served = needsServed("root");
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
