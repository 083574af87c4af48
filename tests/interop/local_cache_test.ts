/**
 * IntelliCache as sm sets it up: a tapdisk with a cache of the shared parent, and for each disk a new
 * local leaf that reads from that tapdisk, with the shared leaf as its secondary image. What sm's
 * `lcache` concludes from the statistics is concluded here in the same way.
 */
import assert from "node:assert/strict";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { ControlBench } from "../support/control.ts";
import { needs, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;

interface Statistics {
  readonly secs: [number, number];
  readonly images: { name: string; hits: [number, number]; driver: { name: string } }[];
  readonly FIXME_enospc_redirect_count: number;
  readonly nbd_mirror_failed: number;
}

/** A disk of the bench. */
class Tap {
  constructor(readonly bench: Bench, readonly pid: number, readonly minor: number) {}

  get device(): string {
    return `-p ${this.pid} -m ${this.minor}`;
  }

  async io(...commands: string[]): Promise<void> {
    const socket = `${this.bench.control}/nbd${this.pid}.${this.minor}`;
    const options = commands.flatMap((command) => ["-c", command]);
    const uri = `nbd+unix:///?socket=${socket}`;
    const text = await runOk("qemu-io", ["-f", "raw", ...options, uri]);
    assert.doesNotMatch(text, /verification failed|error/);
  }

  async statistics(): Promise<Statistics> {
    return JSON.parse(await this.bench.ok(`stats ${this.device}`));
  }
}

/** The control folder has the end of its name that sm looks for. */
class Bench extends ControlBench {
  constructor(folder: string) {
    super(folder, `${folder}/run/blktap-control`);
  }

  /** As sm's `launch_on_tap`. */
  async launch(options: string): Promise<Tap> {
    const minor = Number(/tapdisk-(\d+)$/.exec(await this.ok("allocate"))?.[1]);
    const tap = new Tap(this, await this.spawn(), minor);
    await this.ok(`attach ${tap.device}`);
    await this.ok(`open ${tap.device} ${options}`);
    return tap;
  }
}

/** What sm's `lcache` takes a tapdisk for: a cache of a parent, or a leaf on the disk of a minor. */
function classified({ images }: Statistics): "parent" | number {
  const { name, driver } = images[images.length - 1];
  if (driver.name === "vhd") return "parent";
  assert.equal(driver.name, "nbd");
  const minor = /.*run\/blktap-control\/nbd\d+\.(\d+)$/.exec(name)?.[1];
  assert.ok(minor !== undefined, name);
  return Number(minor);
}

function test(name: string, body: (bench: Bench) => Promise<void>): void {
  const { suffix, ignore } = needs("qemu-io");
  Deno.test({
    name: `IntelliCache: ${name}${suffix}`,
    ignore,
    async fn() {
      const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
      const bench = new Bench(folder);
      try {
        await body(bench);
      } finally {
        await bench.end();
        Deno.removeSync(folder, { recursive: true });
      }
    },
  });
}

interface Setup {
  readonly shared: string;
  readonly parent: Tap;
  readonly leaf: Tap;
}

/** The shared images, the local ones, and the two tapdisks, in sm's order. */
async function setUp(bench: Bench, isScratch: boolean): Promise<Setup> {
  const at = (name: string): string => `${bench.folder}/${name}`;
  createDynamic(at("parent.vhd"), { sizeBytes: 32 * MIB });
  const filler = await bench.launch(`-a vhd:${at("parent.vhd")}`);
  await filler.io("write -P 1 0 8M");
  await bench.ok(`destroy ${filler.device}`);
  snapshot(at("shared.vhd"), { parent: at("parent.vhd") });
  snapshot(at("parent.vhdcache"), { parent: at("parent.vhd") });
  snapshot(at("leaf.vhdcache"), { parent: at("parent.vhdcache"), keepEmptyParent: true });
  const shared = at("shared.vhd");
  const parent = await bench.launch(`-a vhd:${at("parent.vhdcache")} -r`);
  const secondary = `-e ${parent.minor} -2 vhd:${shared}`;
  const mode = isScratch ? `${secondary} -s` : `-r ${secondary}`;
  const leaf = await bench.launch(`-a vhd:${at("leaf.vhdcache")} ${mode}`);
  return { shared, parent, leaf };
}

test("what is read once is not read on shared storage again", async (bench) => {
  const { shared, parent, leaf } = await setUp(bench, false);
  assert.equal(classified(await parent.statistics()), "parent");
  assert.equal(classified(await leaf.statistics()), parent.minor);
  await leaf.io("read -P 1 0 4M", "write -P 2 4M 64k");
  await leaf.io("read -P 1 0 4M", "read -P 2 4M 64k");
  const { images, nbd_mirror_failed } = await leaf.statistics();
  assert.deepEqual(images.map(({ driver }) => driver.name), ["vhd", "lc", "vhd", "nbd"]);
  assert.equal(nbd_mirror_failed, 0);
  // Of `LeafCachingTap.vdi_stats`: hits are the leaf's reads, misses those of what follows.
  assert.ok(images[0].hits[0] > 0, "the second read found nothing in the leaf");
  assert.ok(images[1].hits[0] >= 8192 && images[1].hits[0] < 2 * 8192);
  const above = await parent.statistics();
  assert.deepEqual(above.images.map(({ driver }) => driver.name), ["vhd", "lc", "vhd"]);
  await bench.ok(`destroy ${leaf.device}`);
  await bench.ok(`destroy ${parent.device}`);
  const alone = await bench.launch(`-a vhd:${shared}`);
  await alone.io("read -P 2 4M 64k", "read -P 1 0 4M");
});

test("of a disk that is thrown away, the shared leaf only stands by", async (bench) => {
  const { shared, parent, leaf } = await setUp(bench, true);
  assert.equal(classified(await leaf.statistics()), parent.minor);
  await leaf.io("write -P 2 4M 64k", "read -P 1 0 64k");
  const { images, FIXME_enospc_redirect_count } = await leaf.statistics();
  assert.deepEqual(images.map(({ driver }) => driver.name), ["vhd", "nbd"]);
  assert.equal(FIXME_enospc_redirect_count, 0);
  await bench.ok(`pause ${leaf.device}`);
  await bench.ok(`unpause ${leaf.device}`);
  await leaf.io("read -P 2 4M 64k", "read -P 1 0 64k");
  await bench.ok(`destroy ${leaf.device}`);
  const alone = await bench.launch(`-a vhd:${shared}`);
  await alone.io("read -P 1 4M 64k");
});

test("a parent in the same tapdisk is read too", async (bench) => {
  const { parent } = await setUp(bench, true);
  const child = `${bench.folder}/another.vhd`;
  snapshot(child, { parent: `${bench.folder}/parent.vhdcache`, keepEmptyParent: true });
  const minor = Number(/tapdisk-(\d+)$/.exec(await bench.ok("allocate"))?.[1]);
  const tap = new Tap(bench, parent.pid, minor);
  await bench.ok(`attach ${tap.device}`);
  await bench.ok(`open ${tap.device} -a vhd:${child} -e ${parent.minor}`);
  await tap.io("read -P 1 0 64k");
});
