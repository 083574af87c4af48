import assert from "node:assert/strict";
import { type ControlBench, withControlBench } from "../support/control.ts";
import { needs, runOk } from "../support/tools.ts";
import { createDynamic } from "../../src/vhd/create.ts";

const { ignore, suffix } = needs("qemu-io");

/** Serves an image in a new tapdisk; returns its address and the URI of its export. */
async function serve(
  bench: ControlBench,
  image: string,
): Promise<{ device: string; uri: string }> {
  const minor = (await bench.ok(`create -a ${image}`)).replace(/^.*-/, "");
  const [line] = await bench.list(`-m ${minor}`);
  assert.match(line, new RegExp(`args=${image}$`));
  const pid = /^pid=(\d+)/.exec(line)?.[1];
  const uri = `nbd+unix:///?socket=${bench.control}/nbd${pid}.${minor}`;
  return { device: `-p ${pid} -m ${minor}`, uri };
}

/** Runs commands of qemu-io on a served disk; each must succeed. */
async function qemuIo(uri: string, ...commands: string[]): Promise<void> {
  const args = commands.flatMap((command) => ["-c", command]);
  const output = await runOk("qemu-io", ["-f", "raw", ...args, uri]);
  assert.doesNotMatch(output, /failed/);
}

Deno.test({
  name: `a log over a cache over a VHD, by tap-ctl and a client of NBD${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const image = `${bench.folder}/disk.vhd`;
      createDynamic(image, { sizeBytes: 64 << 20 });
      const { device, uri } = await serve(bench, `log:bc:16:vhd:${image}`);
      await qemuIo(uri, "write -q -P 7 4M 128k", "read -q -P 7 4M 128k", "read -q -P 7 4M 128k");
      const { images } = JSON.parse((await bench.ok(`stats ${device}`)).trim());
      const drivers = images.map((each: { driver: { name: string } }) => each.driver.name);
      assert.deepEqual(drivers, ["log", "bc", "vhd"]);
      assert.equal(images[1].cache.hits, 256);
      assert.ok(images[1].cache.misses >= 256);
      assert.equal(await bench.ok(`log ${device}`), "8192 256");
      await bench.ok(`pause ${device}`);
      assert.equal(await bench.ok(`log ${device} --clear`), "8192 256");
      await bench.ok(`unpause ${device}`);
      await qemuIo(uri, "write -q -z 0 4k", "read -q -P 7 4M 128k");
      assert.deepEqual(JSON.parse(await bench.ok(`log ${device} --json`)), {
        sectors: 131072,
        runs: [[0, 8]],
      });
      await bench.ok(`destroy ${device}`);
      const plain = await serve(bench, `vhd:${image}`);
      await qemuIo(plain.uri, "read -q -P 7 4M 128k");
      const { code, stderr } = await bench.tapCtl(`log ${plain.device}`);
      assert.equal(code, 22);
      assert.match(stderr, /not named log:TYPE:PATH/);
    }),
});

Deno.test({
  name: `a RAM disk, empty or with a file's content, which stays as it is${suffix}`,
  ignore,
  fn: () =>
    withControlBench(async (bench) => {
      const empty = await serve(bench, "ram:64");
      await qemuIo(empty.uri, "read -q -P 0 0 1M", "write -q -P 3 63M 1M", "read -q -P 3 63M 1M");
      await bench.ok(`pause ${empty.device}`);
      await bench.ok(`unpause ${empty.device}`);
      await qemuIo(empty.uri, "read -q -P 3 63M 1M");
      await bench.ok(`destroy ${empty.device}`);
      const file = bench.rawImage("disk.raw", 1 << 20);
      Deno.writeFileSync(file, new Uint8Array(1 << 20).fill(5));
      const filled = await serve(bench, `ram:${file}`);
      await qemuIo(filled.uri, "read -q -P 5 0 1M", "write -q -P 6 0 1M", "read -q -P 6 0 1M");
      await bench.ok(`destroy ${filled.device}`);
      assert.ok(Deno.readFileSync(file).every((byte) => byte === 5));
    }),
});
