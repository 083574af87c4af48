/** `blktap web` in a browser: Chromium without a window. */
import assert from "node:assert/strict";
import axe from "axe-core";
import type { Browser, Page } from "puppeteer-core";
import { BROWSERS, findBrowser, openPage, withBrowser } from "../support/browser.ts";
import { commandLine, type ControlBench, withControlBench } from "../support/control.ts";
import { needs, runOk } from "../support/tools.ts";
import { type RunningPage, withPage } from "../support/web.ts";

const hasBrowser = findBrowser() !== undefined;
const built = needs("dist/web/page.js", "fio");
const ignore = built.ignore || !hasBrowser;
const suffix = hasBrowser ? built.suffix : ` (skipped: needs ${BROWSERS[0]})`;

/** Stands for the folder of the test. */
const FOLDER = "FOLDER";

interface Parts {
  readonly bench: ControlBench;
  readonly page: RunningPage;
  readonly browser: Browser;
  /** The disk that is served. */
  readonly disk: { readonly pid: number; readonly minor: number; readonly path: string };
}

async function serve(bench: ControlBench, name: string): Promise<Parts["disk"]> {
  const path = `${bench.folder}/${name}`;
  const [vhdUtil, ...create] = commandLine("vhd-util", "create", "-n", path, "-s", "64");
  await runOk(vhdUtil, create);
  const [tapCtl, ...args] = commandLine("tap-ctl", "create", "-a", `vhd:${path}`);
  await runOk(tapCtl, args, { env: bench.env });
  const line = (await bench.list()).find((each) => each.endsWith(name)) ?? "";
  const [, pid, minor] = /pid=(\d+) minor=(\d+)/.exec(line) ?? [];
  return { pid: Number(pid), minor: Number(minor), path };
}

function test(
  name: string,
  { args = [], image = "disk.vhd" }: { args?: readonly string[]; image?: string },
  body: (parts: Parts) => Promise<void>,
): void {
  Deno.test({
    name: `${name}${suffix}`,
    ignore,
    // Chromium's connection has timers of its own.
    sanitizeOps: false,
    sanitizeResources: false,
    fn: () =>
      withControlBench(async (bench) => {
        const disk = await serve(bench, image);
        const all = args.map((word) => word === FOLDER ? bench.folder : word);
        await withPage(bench, ["--listen", "127.0.0.1:0", ...all], (page) =>
          withBrowser((browser) =>
            body({ bench, page, browser, disk })
          ));
      }),
  });
}

/** Loads a disk with reads and writes until it is told to stop. */
function load(bench: ControlBench, { pid, minor }: Parts["disk"]): { stop: () => Promise<void> } {
  const uri = `nbd+unix:///?socket=${bench.control}/nbd${pid}.${minor}`;
  const child = new Deno.Command("fio", {
    args: [
      "--name=load",
      "--ioengine=nbd",
      `--uri=${uri}`,
      "--rw=randrw",
      "--bs=4k",
      "--iodepth=4",
      "--rate_iops=200,200",
      "--size=64m",
      "--time_based",
      "--runtime=600",
    ],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  return {
    async stop(): Promise<void> {
      child.kill("SIGINT");
      await child.status;
    },
  };
}

/** Waits until a text on the page is one that is wanted. */
async function untilText(page: Page, selector: string, wanted: RegExp): Promise<void> {
  await page.waitForFunction(
    (selector: string, source: string) =>
      new RegExp(source).test(document.querySelector(selector)?.textContent ?? ""),
    { polling: 100, timeout: 60_000 },
    selector,
    wanted.source,
  );
}

/** What a canvas shows. */
async function pictureOf(page: Page, selector: string): Promise<string> {
  return await page.$eval(selector, (canvas) => (canvas as HTMLCanvasElement).toDataURL());
}

test(
  "browser: charts and figures move while fio runs",
  {},
  async ({ bench, page, browser, disk }) => {
    const { page: list, complaints } = await openPage(browser, page.url);
    await list.waitForSelector(".plot canvas");
    const fio = load(bench, disk);
    try {
      await untilText(list, "[data-field=iops]", /^[1-9]\d+ \/ [1-9]\d+$/);
      await untilText(list, "[data-now=iops]", /^[1-9]\d* read, [1-9]\d* written$/);
      const before = await pictureOf(list, "[data-chart=iops] canvas");
      const spark = await list.$eval("polyline", (line) => line.getAttribute("points"));
      await list.waitForFunction(
        (old) => document.querySelector("polyline")?.getAttribute("points") !== old,
        { polling: 100, timeout: 60_000 },
        spark,
      );
      assert.notEqual(await pictureOf(list, "[data-chart=iops] canvas"), before);
      // To the page of the disk by a click.
      await list.click("tbody a");
      await list.waitForSelector("#heat");
      await untilText(list, "[data-now=latency]", /p50 [\d.]+ [mµ]?s, p99 [\d.]+ [mµ]?s/);
      const heat = await pictureOf(list, "#heat");
      const time = await list.evaluate(() => document.documentElement.dataset.live);
      await list.waitForFunction(
        (old) => document.documentElement.dataset.live !== old,
        { polling: 100, timeout: 60_000 },
        time,
      );
      assert.notEqual(await pictureOf(list, "#heat"), heat);
    } finally {
      await fio.stop();
    }
    assert.deepEqual(complaints, []);
  },
);

test("browser: disks that come and go are followed", {}, async ({ bench, page, browser, disk }) => {
  const { page: list, complaints } = await openPage(browser, page.url);
  await untilText(list, "#disks", /disk\.vhd/);
  await serve(bench, "second.vhd");
  await untilText(list, "#disks", /second\.vhd/);
  await untilText(list, "#count", /2 disks\./);
  await bench.ok(`destroy -p ${disk.pid} -m ${disk.minor}`);
  await untilText(list, "#count", /1 disk\./);
  assert.deepEqual(complaints, []);
});

test(
  "browser: a snapshot is made by clicks, and the page of the disk shows the new chain",
  { args: ["--allow-changes"] },
  async ({ page, browser, disk, bench }) => {
    const { page: shown, complaints } = await openPage(browser, page.url);
    const clicked = async (selector: string): Promise<void> => {
      await Promise.all([shown.waitForNavigation(), shown.click(selector)]);
    };
    await clicked("tbody a");
    await clicked("a.button");
    await shown.$eval("#name", (input) => (input as HTMLInputElement).value = "");
    await shown.type("#name", "kept.vhd");
    await clicked(".steps button");
    await untilText(shown, "main", /keeps the data of now/);
    assert.equal(
      [...Deno.readDirSync(bench.folder)].filter(({ name }) => name.endsWith(".vhd")).length,
      1,
    );
    await clicked(".steps button");
    await untilText(shown, ".notice", /The snapshot is made/);
    await untilText(shown, "#chain", /kept\.vhd/);
    await untilText(shown, "#events", /a snapshot was made/);
    assert.ok(Deno.statSync(`${bench.folder}/kept.vhd`).isFile && Deno.statSync(disk.path).isFile);
    assert.deepEqual(complaints, []);
  },
);

test(
  "browser: a name with markup is a text",
  { image: `<img src=x onerror=window.bad=1>.vhd` },
  async ({ page, browser, disk: { pid, minor } }) => {
    for (const path of ["", `disks/${pid}/${minor}`, `disks/${pid}/${minor}/map`, "events"]) {
      const { page: shown, complaints } = await openPage(browser, page.url + path);
      assert.equal(await shown.$("img"), null, path);
      assert.equal(await shown.evaluate(() => "bad" in globalThis), false, path);
      assert.deepEqual(complaints, [], path);
      await shown.close();
    }
  },
);

/** What axe finds wrong with a page, and whether the page is wider than the window. */
async function audit(page: Page): Promise<string[]> {
  // By the debugging protocol, which the policy of the page does not bind.
  if (!await page.evaluate(() => "axe" in globalThis)) await page.evaluate(axe.source);
  const found = await page.evaluate(async () => {
    const { axe } = globalThis as unknown as {
      axe: { run: () => Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> };
    };
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  });
  const tooWide = await page.evaluate(() =>
    document.documentElement.scrollWidth > document.documentElement.clientWidth
  );
  return tooWide ? [...found, "the page is wider than the window"] : found;
}

test(
  "browser: axe finds nothing wrong, in light and dark, on a phone and on a wide screen",
  { args: ["--allow-changes", "--images", FOLDER] },
  async ({ bench, page, browser, disk }) => {
    const at = `disks/${disk.pid}/${disk.minor}`;
    const fio = load(bench, disk);
    try {
      for (const path of ["", at, `${at}/map`, `${at}/snapshot`, "images", "events", "nothing"]) {
        const { page: shown } = await openPage(browser, page.url + path);
        for (const width of [360, 1600]) {
          await shown.setViewport({ width, height: 900 });
          for (const value of ["light", "dark"]) {
            await shown.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
            assert.deepEqual(await audit(shown), [], `${path} at ${width}, ${value}`);
          }
        }
        await shown.close();
      }
    } finally {
      await fio.stop();
    }
  },
);

test("browser: everything is reached by the keyboard", {
  args: ["--allow-changes"],
}, async ({ page, browser, disk: { pid, minor } }) => {
  const { page: shown } = await openPage(browser, page.url);
  const focused = async (): Promise<string> =>
    await shown.evaluate(() => {
      const { activeElement: element } = document;
      return element?.getAttribute("href") ?? element?.id ?? "";
    });
  const reached = async (wanted: string): Promise<void> => {
    for (let presses = 0; presses < 40; presses++) {
      await shown.keyboard.press("Tab");
      if (await focused() === wanted) return;
    }
    assert.fail(`${wanted} is not reached`);
  };
  await shown.keyboard.press("Tab");
  assert.equal(await focused(), "#content");
  await shown.keyboard.press("Enter");
  await shown.waitForFunction(() => document.activeElement?.id === "content");
  await reached("/?sort=iops");
  const disk = `/disks/${pid}/${minor}`;
  await reached(disk);
  // The focus of a control is seen.
  const outline = await shown.$eval(
    `a[href="${disk}"]`,
    (link) => getComputedStyle(link).outlineStyle,
  );
  assert.equal(outline, "solid");
  await Promise.all([shown.waitForNavigation(), shown.keyboard.press("Enter")]);
  await reached(`${disk}/snapshot`);
  await Promise.all([shown.waitForNavigation(), shown.keyboard.press("Enter")]);
  await reached("name");
});

test(
  "browser: without scripts the pages have their figures",
  {},
  async ({ page, browser, disk }) => {
    const { page: first } = await openPage(browser, "about:blank");
    await first.setJavaScriptEnabled(false);
    await first.goto(`${page.url}disks/${disk.pid}/${disk.minor}`);
    assert.match(
      await first.$eval("[data-field=state]", (place) => place.textContent) ?? "",
      /running/,
    );
    const untilMs = performance.now() + 60_000;
    while (await first.$("#chain svg") === null) {
      assert.ok(performance.now() < untilMs, "no drawing");
      await first.reload();
    }
  },
);
