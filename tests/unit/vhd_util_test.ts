import assert from "node:assert/strict";
import fc from "fast-check";
import { parseOptions } from "../../src/cli/getopt.ts";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { withTempDir } from "../support/tools.ts";
import { goldenImage, vhdUtil } from "../support/vhd.ts";

/** Runs a test in a new folder that holds the golden images and is the working directory. */
function inFolder(body: () => Promise<void>): () => Promise<void> {
  return () =>
    withTempDir(async (folder) => {
      const before = Deno.cwd();
      Deno.chdir(folder);
      try {
        Deno.writeFileSync("base.vhd", await goldenImage("base.vhd"));
        Deno.writeFileSync("child.vhd", await goldenImage("child.vhd"));
        await body();
      } finally {
        Deno.chdir(before);
      }
    });
}

async function assertPrints(line: string, stdout: string, code = 0): Promise<void> {
  const result = await vhdUtil(...line.split(" "));
  assert.equal(result.stdout, stdout, `${line}\n${result.stderr}`);
  assert.equal(result.code, code, line);
}

Deno.test("options are read as getopt reads them", () => {
  const spec = { short: "n:vspS:", long: ["json"] };
  const parse = (...args: string[]): unknown => {
    const { options, operands, fault } = parseOptions(spec, args);
    return [options.map(({ name, value }) => name + value).join(" "), operands.join(" "), fault];
  };
  assert.deepEqual(parse("-vsp", "-n", "a"), ["v s p na", "", null]);
  assert.deepEqual(parse("-vna", "b", "-s"), ["v na s", "b", null]);
  assert.deepEqual(parse("-n", "-v"), ["n-v", "", null]);
  assert.deepEqual(parse("--json", "-S5", "--", "-v"), ["json S5", "-v", null]);
  assert.deepEqual(parse("-", "-v"), ["v", "-", null]);
  assert.deepEqual(parse("-vz"), ["v", "", "invalid option -- 'z'"]);
  assert.deepEqual(parse("-v", "-n"), ["v", "", "option requires an argument -- 'n'"]);
  assert.deepEqual(parse("-:"), ["", "", "invalid option -- ':'"]);
  assert.deepEqual(parse("--nosuch"), ["", "", "unrecognized option '--nosuch'"]);
  fc.assert(fc.property(fc.array(fc.string()), (args) => void parse(...args)));
});

Deno.test("every subcommand tells how it is used", async () => {
  for (const [name, load] of VHD_UTIL.subcommands) {
    const command = await load();
    assert.equal(command.name, name);
    const help = await vhdUtil(name, "--help");
    assert.equal(help.code, 0);
    assert.ok(help.stdout.startsWith(`Usage: vhd-util ${name} `), help.stdout);
    assert.match(help.stdout, /\nExample:\n {2}\$ vhd-util /);
    for (const option of command.options) assert.ok(help.stdout.includes(`-${option.name}`));
    await assertPrints(`${name} -h`, `${command.usage}\n`);
    // Only tree runs without arguments: it uses the current folder.
    if (name !== "tree") await assertPrints(name, `${command.usage}\n`, 22);
    const wrong = await vhdUtil(name, "-Z");
    assert.deepEqual([wrong.code, wrong.stdout], [22, `${command.usage}\n`]);
    assert.equal(wrong.stderr, `${name}: invalid option -- 'Z'\n`);
  }
  const overview = await vhdUtil();
  assert.equal(overview.code, 0);
  for (const name of VHD_UTIL.subcommands.keys()) {
    assert.match(overview.stdout, new RegExp(`  ${name} `));
  }
});

Deno.test("an unknown command fails", async () => {
  const { code, stdout, stderr } = await vhdUtil("frobnicate");
  assert.equal(code, 22);
  assert.equal(stderr, "invalid COMMAND frobnicate\n");
  assert.match(
    stdout,
    /^usage: vhd-util COMMAND \[OPTIONS\]\nCOMMAND := \{ create \| snapshot \| /,
  );
});

Deno.test(
  "create refuses sizes that no VHD can have, and leaves nothing",
  inFolder(async () => {
    for (const size of ["0", "2088961", "99999999999999999999", "x", "-5", "1.5", ""]) {
      const { code, stderr } = await vhdUtil("create", "-n", "x.vhd", "-s", size);
      assert.equal(code, 22, size);
      assert.match(stderr, /^Cannot (create x\.vhd|read ')/, size);
    }
    await assertPrints(
      "create -n x.vhd -s 10 -S 4",
      "Error: <-S size> must be greater than <-s size>\n",
      22,
    );
    assert.throws(() => Deno.statSync("x.vhd"), Deno.errors.NotFound);
    await assertPrints("create -n x.vhd -s 2088960", "");
    await assertPrints("query -n x.vhd -vS", "2088960\n2088960\n");
    assert.equal((await vhdUtil("create", "-n", "none/x.vhd", "-s", "1")).code, 2);
  }),
);

Deno.test(
  "create makes fixed, dynamic and growing images",
  inFolder(async () => {
    await assertPrints("create -rs3 -n f.vhd", "");
    await assertPrints("query -n f.vhd -vspf", "4\n4194816\nf.vhd has no parent\nhidden: 0\n");
    await assertPrints("query -n f.vhd -S", "0\n");
    await assertPrints("check -n f.vhd", "f.vhd is valid\n");
    await assertPrints("create --debug -n d.vhd -s 100 -S 50000", "");
    await assertPrints("query -n d.vhd -vsS", "100\n106496\n50000\n");
  }),
);

Deno.test(
  "snapshot counts layers and names what is missing",
  inFolder(async () => {
    await assertPrints("snapshot -n a.vhd -p child.vhd -l 3", "");
    await assertPrints(
      "snapshot -n b.vhd -p a.vhd -e -l 3",
      "snapshot depth exceeded: current depth: 3, limit: 3\n",
      28,
    );
    const missing = await vhdUtil("snapshot", "-n", "b.vhd", "-p", "nosuch.vhd");
    assert.equal(missing.code, 2);
    assert.match(missing.stderr, /nosuch\.vhd.*ENOENT/);
    Deno.writeFileSync("raw.img", new Uint8Array(2 << 20).fill(0x41));
    await assertPrints("snapshot -n r.vhd -p raw.img -m", "");
    await assertPrints("query -n r.vhd -dv", "2\nchain depth: 2\n");
    const { stdout } = await vhdUtil("read", "-n", "r.vhd", "-R", "5", "-c", "3");
    assert.equal(stdout, "AAA");
  }),
);

Deno.test(
  "query answers in its own order and fails with the error's number",
  inFolder(async () => {
    const base = Deno.realPathSync("base.vhd");
    await assertPrints(
      "query -Sadmfpsv -n child.vhd",
      `64\n6308352\n${base}\nhidden: 0\nmarker: 0\nchain depth: 2\n3\n64\n`,
    );
    await assertPrints("query -n child.vhd -up", "./base.vhd\n");
    await assertPrints("query -n nosuch.vhd -v", "error opening nosuch.vhd: -2\n", 2);
    Deno.removeSync("base.vhd");
    await assertPrints("query -n child.vhd -pfv", "64\nquery failed\nhidden: 0\n", 2);
    await assertPrints("query -n child.vhd -d", "error checking chain depth: -2\n", 2);
    Deno.writeFileSync("junk.vhd", new Uint8Array(4096));
    const junk = await vhdUtil("query", "-n", "junk.vhd", "-v");
    assert.deepEqual([junk.code, junk.stdout], [22, "error opening junk.vhd: -22\n"]);
    assert.match(junk.stderr, /footer\.cookie at byte 3584/);
  }),
);

Deno.test(
  "read prints tables in decimal and hexadecimal",
  inFolder(async () => {
    await assertPrints(
      "read -n child.vhd -t 131071 -x",
      "logical sector 0x1ffff: block number: 0x1f, sector offset: 0xfff, file offset: not allocated\n",
    );
    await assertPrints("read -n child.vhd -b 1 -c 1 -x", "block: 0x1: offset: not allocated\n");
    await assertPrints(
      "read -n child.vhd -i 63 -c 2",
      "block 0: sec: 63: 0\nblock 0: sec: 64: 1\n",
    );
    await assertPrints("read -n child.vhd -e 0 -c 131072", "64 128\n8192 4096\n122880 2048\n");
    await assertPrints("read -n child.vhd -e 131072", "sector 131072 past end of file\n", 34);
    await assertPrints("read -n child.vhd -i 131071 -c 2", "sector 131071 past end of file\n", 34);
    for (
      const line of [
        "-t 131072",
        "-b 32",
        "-m 32",
        "-j 30 -c 3",
        "-d 32",
        "-r 131072",
        "-R 67108864",
      ]
    ) {
      const { code, stdout, stderr } = await vhdUtil("read", "-n", "child.vhd", ...line.split(" "));
      assert.deepEqual([code, stdout], [34, ""], line);
      assert.notEqual(stderr, "", line);
    }
    const full = await vhdUtil(..."read -n child.vhd -j 1 -c 2".split(" "));
    assert.equal(full.stderr, "batmap for block 1: 0\nbatmap for block 2: 1\n");
    const block = await vhdUtil(..."read -n child.vhd -d 2".split(" "));
    assert.equal(block.stdoutBytes.length, 2 << 20);
    assert.ok(block.stdoutBytes.every((byte) => byte === 0x55));
    const bytes = await vhdUtil(..."read -n child.vhd -R 32766 -c 4".split(" "));
    assert.deepEqual([...bytes.stdoutBytes], [0x11, 0x11, 0x44, 0x44]);
    const disk = await vhdUtil(..."read -n child.vhd -r 0 -c 131072".split(" "));
    const runs = [0x11, 0x44, 0, 0x22, 0x55, 0x22, 0, 0x33, 0, 0x66, 0];
    const seen = disk.stdoutBytes.filter((byte, i, all) => i === 0 || byte !== all[i - 1]);
    assert.deepEqual([...seen], runs);
  }),
);

Deno.test(
  "read works on fixed images, and says what they do not have",
  inFolder(async () => {
    await vhdUtil("create", "-n", "f.vhd", "-s", "2", "-r");
    const { code, stdout } = await vhdUtil("read", "-p", "-n", "f.vhd");
    assert.equal(code, 0);
    assert.match(stdout, /Disk type {11}: Fixed hard disk\n/);
    assert.doesNotMatch(stdout, /Header Summary/);
    await assertPrints("read -n f.vhd -e 5 -c 7", "5 7\n");
    assert.equal((await vhdUtil("read", "-n", "f.vhd", "-r", "4095")).stdoutBytes.length, 512);
    const table = await vhdUtil("read", "-n", "f.vhd", "-b", "0");
    assert.deepEqual([table.code, table.stderr], [
      22,
      "f.vhd is a fixed image: it has no block table\n",
    ]);
  }),
);

Deno.test(
  "check prints each finding with its place, and the headers",
  inFolder(async () => {
    const bytes = Deno.readFileSync("child.vhd");
    new DataView(bytes.buffer).setUint32(1536 + 4 * 20, 3);
    Deno.writeFileSync("bad.vhd", bytes);
    const { code, stdout } = await vhdUtil("check", "-n", "bad.vhd");
    assert.equal(code, 22);
    assert.ok(
      stdout.startsWith(
        "block 20 (offset 0x3) clobbers headers (bat[20] at byte 1616)\n" +
          "block 0 (offset 0xf) clobbers block 20 (offset 0x3) (bat[0] at byte 1536)\n" +
          "bad.vhd appears invalid; dumping metadata\nVHD Footer Summary:\n",
      ),
      stdout.slice(0, 400),
    );
    assert.deepEqual(Deno.readFileSync("bad.vhd"), bytes);
    const read = await vhdUtil("read", "-n", "bad.vhd", "-b", "20");
    assert.equal(read.stdout, "block: 20: offset: 1536\n");
    await assertPrints(
      "check -n child.vhd -B -b",
      `${(await VHD_UTIL.subcommands.get("check")?.())?.usage}\n`,
      22,
    );
    await assertPrints("check -n nosuch", "cannot stat nosuch: 2\n", 2);
    assert.equal((await vhdUtil("check", "-n", ".")).code, 22);
  }),
);

Deno.test(
  "check counts what the layers hold",
  inFolder(async () => {
    await assertPrints(
      "check -n child.vhd -s -p",
      "base.vhd: secs allocated: 0x5000 secs written: 0x2888 (50.66%)\n" +
        "child.vhd: secs allocated: 0x3000 secs written: 0x1880 (51.04%) secs not in parent: 0x840 " +
        "(33.67%) secs not in ancestors: 0x840 (33.67%)\n",
    );
  }),
);
