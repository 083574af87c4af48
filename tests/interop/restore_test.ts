import assert from "node:assert/strict";
import { isRunning, until, withControlBench } from "../support/control.ts";
import { vhdUtil } from "../support/vhd.ts";

Deno.test("tap-ctl restore: what is listed is served, once, and stopped again", async () => {
  await withControlBench(async (bench) => {
    await vhdUtil("create", "-n", `${bench.folder}/data.vhd`, "-s", "8");
    Deno.renameSync(bench.rawImage("raw"), `${bench.folder}/raw image`);
    const list = `${bench.folder}/devices`;
    Deno.writeTextFileSync(
      list,
      [
        `data vhd:${bench.folder}/data.vhd device=none`,
        `gone vhd:${bench.folder}/gone.vhd`,
        "wrong",
        `raw aio:${bench.folder}/raw\\040image ro,device=none`,
        "off ram:8 noauto,device=none",
      ].join("\n"),
    );
    const served = async (): Promise<string[]> =>
      (await bench.list()).map((line) => line.replace(/pid=\d+ /, ""));

    const first = await bench.tapCtl(`restore --file ${list}`);
    assert.equal(first.code, 22, "the first error's");
    assert.match(first.stdout, /^data: \S+\/nbd\d+\.0\nraw: \S+\/nbd\d+\.1\n$/);
    assert.match(first.stderr, /devices, line 2: gone: .*gone\.vhd.*No such file/);
    assert.match(first.stderr, /devices, line 3: Cannot read it \(an image/);
    assert.match(first.stderr, /restore: 2 of 4 disks are not served/);
    const both = [
      `minor=0 state=0 args=vhd:${bench.folder}/data.vhd`,
      `minor=1 state=0 args=aio:${bench.folder}/raw image`,
    ];
    assert.deepEqual((await served()).sort(), both);

    const again = await bench.tapCtl(`restore data raw --file ${list}`);
    assert.equal(again.code, 0, again.stderr);
    assert.equal(again.stdout, first.stdout.replaceAll("\n", " (served already)\n"));
    assert.deepEqual((await served()).sort(), both);

    // A killed tapdisk leaves nothing behind.
    const pid = Number(/nbd(\d+)\.0/.exec(first.stdout)?.[1]);
    Deno.kill(pid, "SIGKILL");
    await until("the tapdisk is gone", () => !isRunning(pid));
    assert.match(await bench.ok(`restore data off --file ${list}`), /^data: \S+\.0\noff: \S+\.2$/);
    assert.deepEqual((await served()).sort(), [...both, "minor=2 state=0 args=ram:8"]);

    const unknown = await bench.tapCtl(`restore nothing --file ${list}`);
    assert.equal(unknown.code, 2);
    assert.match(unknown.stderr, /Cannot serve nothing/);

    assert.equal(await bench.ok("restore --stop raw"), "raw: stopped");
    assert.equal(await bench.ok("restore --stop"), "off: stopped\ndata: stopped");
    assert.equal(await bench.ok("restore --stop"), "");
    assert.deepEqual(await bench.list(), []);
  });
});

Deno.test("tap-ctl restore: an image that is served by hand gets the name", async () => {
  await withControlBench(async (bench) => {
    const image = `aio:${bench.rawImage("raw")}`;
    const list = `${bench.folder}/devices`;
    Deno.writeTextFileSync(list, `raw ${image} device=none\n`);
    await bench.ok(`create -a ${image}`);
    assert.match(await bench.ok(`restore --file ${list}`), /\.0 \(served already\)$/);
    assert.equal((await bench.list()).length, 1);
    assert.equal(await bench.ok("restore --stop"), "raw: stopped");
    assert.deepEqual(await bench.list(), []);
  });
});
