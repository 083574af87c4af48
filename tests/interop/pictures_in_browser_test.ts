/**
 * The pages that commands write, in a real browser: they work as files, without the network, and nothing is
 * said on the console.
 *
 * @module
 */
import assert from "node:assert/strict";
import { withControlBench } from "../support/control.ts";
import { needs, run, withTempDir } from "../support/tools.ts";
import { goldenImage, vhdUtil } from "../support/vhd.ts";

const browser = needs("chromium");

/** What a page became. */
interface Shown {
  /** The document after its program has run. */
  readonly dom: string;
  /** What is said on the console, also about what the page's policy refuses. */
  readonly console: string[];
}

/** Opens a page as a file, in a browser of its own. */
async function open(path: string, hash = ""): Promise<Shown> {
  const profile = Deno.makeTempDirSync({ prefix: "blktap-test-browser-" });
  try {
    const { code, stdout, stderr } = await run("chromium", [
      ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
      ...["--disable-background-networking", "--enable-logging=stderr", "--log-level=0"],
      ...[`--user-data-dir=${profile}`, "--virtual-time-budget=2000", "--dump-dom"],
      `file://${encodeURI(path)}${hash}`,
    ], { timeoutMs: 240_000 });
    assert.equal(code, 0, stderr);
    const said = stderr.split("\n").filter((line) => line.includes("CONSOLE"));
    return { dom: stdout, console: said };
  } finally {
    Deno.removeSync(profile, { recursive: true });
  }
}

function test(name: string, fn: (folder: string) => Promise<void>): void {
  Deno.test({
    name: `in a browser: ${name}${browser.suffix}`,
    ignore: browser.ignore,
    fn: () => withTempDir((folder) => fn(Deno.realPathSync(folder))),
  });
}

/** The ranges that a page lists: offset, length and image. */
function rangesIn(dom: string): string[] {
  const [, body = ""] = /<tbody id="runs">([^]*?)<\/tbody>/.exec(dom) ?? [];
  return [...body.matchAll(/<tr>([^]*?)<\/tr>/g)].map(([, row]) =>
    [...row.matchAll(/<td[^>]*>([^<]*)</g)].map(([, cell]) => cell).join(" ")
  );
}

test("what the console says is seen", async (folder) => {
  const page =
    `<!doctype html><meta http-equiv="Content-Security-Policy" content="script-src 'none'">`;
  Deno.writeTextFileSync(`${folder}/bad.html`, `${page}<script>document.title = "x"</script>`);
  const { console: said } = await open(`${folder}/bad.html`);
  assert.equal(said.length, 1);
  assert.match(said[0], /Content Security Policy/);
});

test("the page of a map shows the disk, and a part of it by its address", async (folder) => {
  const child = `${folder}/<b>&"'.vhd`;
  Deno.writeFileSync(`${folder}/base.vhd`, await goldenImage("base.vhd"));
  Deno.writeFileSync(child, await goldenImage("child.vhd"));
  assert.equal((await vhdUtil("map", "-n", child, "-o", `${folder}/map.html`)).code, 0);
  const whole = await open(`${folder}/map.html`);
  assert.deepEqual(whole.console, []);
  assert.match(whole.dom, /id="shown"[^>]*>Shows 0 B to 64 MiB; a column is 256 KiB\.</);
  assert.doesNotMatch(whole.dom, /id="look" hidden/);
  const ranges = rangesIn(whole.dom);
  const { stdout } = await vhdUtil("map", "--json", "-n", child);
  const extents: { start: number; length: number; file: string | null }[] = JSON.parse(stdout);
  const nameOf = (file: string): string => file === child ? "&lt;b&gt;&amp;\"'.vhd" : "base.vhd";
  assert.deepEqual(
    ranges,
    extents.map(({ start, length, file }) =>
      `${start} ${length} ${file === null ? "no data" : nameOf(file)}`
    ),
  );
  const part = await open(`${folder}/map.html`, "#at=39976960&span=131072");
  assert.deepEqual(part.console, []);
  assert.match(part.dom, /Shows 38\.13 MiB to 38\.25 MiB; a column is 512 B\./);
  assert.ok(rangesIn(part.dom).includes("40000000 4096 base.vhd"), rangesIn(part.dom).join("\n"));
});

test("a page of chains, and a drawing by itself", async (folder) => {
  Deno.writeFileSync(`${folder}/base.vhd`, await goldenImage("base.vhd"));
  Deno.writeFileSync(`${folder}/child.vhd`, await goldenImage("child.vhd"));
  for (const name of ["tree.html", "tree.svg"]) {
    assert.equal((await vhdUtil("tree", "-o", `${folder}/${name}`, folder)).code, 0);
    const { dom, console: said } = await open(`${folder}/${name}`);
    assert.deepEqual(said, []);
    assert.match(dom, /class="name"[^>]*>child\.vhd</);
  }
});

Deno.test({
  name: `in a browser: the report of a disk that is served${browser.suffix}`,
  ignore: browser.ignore,
  fn: () =>
    withControlBench(async (bench) => {
      await bench.ok(`create -a aio:${bench.rawImage("disk.raw")}`);
      const [line] = await bench.list();
      const [, pid] = /^pid=(\d+)/.exec(line) ?? [];
      await bench.ok(`stats -p ${pid} -m 0 -o ${bench.folder}/disk.html`);
      const { dom, console: said } = await open(`${bench.folder}/disk.html`);
      assert.deepEqual(said, []);
      assert.match(dom, /<h1 class="name">aio:.*disk\.raw<\/h1>/);
      for (const words of ["Chain of images", "Latency of requests", "no limits", "1 MiB disk"]) {
        assert.ok(dom.includes(words), words);
      }
    }),
});
