/**
 * Takes the pictures of the page of `blktap web` in docs/screenshots, of real disks under load by fio:
 *
 *     deno run -A scripts/screenshots.ts
 *
 * It needs scripts/build, Chromium and fio, and takes some two minutes.
 *
 * @module
 */
import type { Browser } from "puppeteer-core";
import { openPage, withBrowser } from "../tests/support/browser.ts";
import { ControlBench } from "../tests/support/control.ts";
import { binaryPath, runOk } from "../tests/support/tools.ts";
import { RunningPage } from "../tests/support/web.ts";

const FOLDER = new URL("../docs/screenshots/", import.meta.url).pathname;
/** How long the charts fill before the pictures are taken. */
const FILL_MS = 100_000;
const MOST_BYTES = 150 * 1024;

/** The disks, and what fio does to each. */
const DISKS: readonly { readonly name: string; readonly load: readonly string[] | null }[] = [
  {
    name: "database.vhd",
    load: ["--rw=randrw", "--rwmixread=70", "--rate_iops=900,400", "--bs=8k"],
  },
  { name: "mail.vhd", load: ["--rw=randwrite", "--rate_iops=250", "--bs=4k"] },
  { name: "build-server.qcow2", load: ["--rw=read", "--rate=40m", "--bs=256k"] },
  { name: "web-frontend.vhd", load: ["--rw=randread", "--rate_iops=120", "--bs=16k"] },
  { name: "archive.qcow2", load: null },
];

interface Disk {
  readonly pid: number;
  readonly minor: number;
}

async function serve(bench: ControlBench, name: string): Promise<Disk> {
  const path = `${bench.folder}/${name}`;
  const type = name.endsWith(".qcow2") ? "qcow2" : "vhd";
  await runOk(binaryPath("td-util"), ["create", `${type}:${path}`, "2Gi"]);
  const options = { env: bench.env };
  await runOk(binaryPath("tap-ctl"), ["create", "-a", `${type}:${path}`], options);
  const list = await runOk(binaryPath("tap-ctl"), ["list"], options);
  const line = list.split("\n").find((each) => each.endsWith(name)) ?? "";
  const [, pid, minor] = /pid=(\d+) minor=(\d+)/.exec(line) ?? [];
  return { pid: Number(pid), minor: Number(minor) };
}

function uriOf(bench: ControlBench, { pid, minor }: Disk): string {
  return `nbd+unix:///?socket=${bench.control}/nbd${pid}.${minor}`;
}

function fio(bench: ControlBench, disk: Disk, load: readonly string[]): Deno.ChildProcess {
  const args = [
    "--name=load",
    "--ioengine=nbd",
    `--uri=${uriOf(bench, disk)}`,
    "--size=1g",
    ...load,
  ];
  return new Deno.Command("fio", {
    args: [...args, "--iodepth=8", "--time_based", "--runtime=600"],
    cwd: bench.folder,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
}

async function snapshot(bench: ControlBench, { pid, minor }: Disk, name: string): Promise<void> {
  const args = [
    "snapshot",
    "-p",
    `${pid}`,
    "-m",
    `${minor}`,
    "-n",
    `${bench.folder}/${name}`,
    "--rename",
  ];
  await runOk(binaryPath("tap-ctl"), args, { env: bench.env });
}

interface Picture {
  readonly file: string;
  readonly url: string;
  readonly width: number;
  readonly height: number;
  readonly dark: boolean;
}

async function take(browser: Browser, { file, url, ...size }: Picture): Promise<void> {
  const { page } = await openPage(browser, url, size);
  await page.waitForFunction(() => document.documentElement.dataset.live !== undefined);
  // What the page of a disk reads from images comes later.
  await page.waitForFunction(() => document.querySelector("[data-pending]") === null);
  await new Promise((resolve) => setTimeout(resolve, 3000));
  const bytes = await page.screenshot({ type: "webp", quality: 80 });
  if (bytes.length > MOST_BYTES) throw new Error(`${file} has ${bytes.length} bytes`);
  Deno.writeFileSync(`${FOLDER}${file}`, bytes);
  console.log(`${file}: ${bytes.length} bytes`);
  await page.close();
}

async function main(bench: ControlBench): Promise<void> {
  Deno.mkdirSync(FOLDER, { recursive: true });
  const running: Deno.ChildProcess[] = [];
  const web = await RunningPage.start(bench, ["--listen", "127.0.0.1:0", "--allow-changes"], {
    program: binaryPath("blktap"),
  });
  try {
    const disks: Disk[] = [];
    for (const { name } of DISKS) disks.push(await serve(bench, name));
    await withBrowser(async (browser) => {
      const [first] = disks;
      // While a page is open, there is a sample each second.
      await openPage(browser, web.url);
      DISKS.forEach(({ load }, i) => load !== null && running.push(fio(bench, disks[i], load)));
      await new Promise((resolve) => setTimeout(resolve, FILL_MS / 2));
      await snapshot(bench, first, "database-monday.vhd");
      await new Promise((resolve) => setTimeout(resolve, FILL_MS / 4));
      await snapshot(bench, first, "database-tuesday.vhd");
      await new Promise((resolve) => setTimeout(resolve, FILL_MS / 4));
      const disk = `${web.url}disks/${first.pid}/${first.minor}`;
      await take(browser, {
        file: "web-disks-light.webp",
        url: web.url,
        width: 1200,
        height: 860,
        dark: false,
      });
      await take(browser, {
        file: "web-disk-dark.webp",
        url: disk,
        width: 1200,
        height: 1500,
        dark: true,
      });
    });
  } finally {
    for (const child of running) {
      child.kill("SIGKILL");
      await child.status;
    }
    await web.end();
  }
}

const folder = Deno.makeTempDirSync({ prefix: "disks-" });
const bench = new ControlBench(folder);
try {
  await main(bench);
} finally {
  await bench.end();
  Deno.removeSync(folder, { recursive: true });
}
