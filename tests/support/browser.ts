/**
 * A headless Chromium for tests, driven over its debugging protocol.
 *
 * @module
 */
import puppeteer, { type Browser, type Page } from "puppeteer-core";
import { findTool } from "./tools.ts";

/** What browsers are called on Debian and elsewhere. */
export const BROWSERS: readonly string[] = ["chromium", "chromium-browser", "google-chrome"];

/** The path of a browser; undefined when none is installed. */
export function findBrowser(): string | undefined {
  return BROWSERS.map(findTool).find((path) => path !== undefined);
}

/** A page, and what its console said. */
export interface WatchedPage {
  readonly page: Page;
  /** Errors and warnings on the console, and faults of scripts. */
  readonly complaints: string[];
}

const STARTED = /DevTools listening on (ws:\S+)/;

/** Starts a browser, calls `body` with it, and ends it. */
export async function withBrowser(body: (browser: Browser) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-browser-" });
  const child = new Deno.Command(findBrowser() ?? "chromium", {
    args: [
      "--headless=new",
      // Chromium's own confinement does not work for root.
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--disable-background-networking",
      "--disable-component-update",
      "--no-first-run",
      "--remote-debugging-port=0",
      `--user-data-dir=${folder}`,
      "about:blank",
    ],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  try {
    const reader = child.stderr.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let found = STARTED.exec(text);
    while (found === null) {
      const { done, value } = await reader.read();
      if (done) throw new Error(`The browser ended: ${text}`);
      text += value;
      found = STARTED.exec(text);
    }
    // Its messages must not fill the pipe.
    const rest = (async () => {
      while (!(await reader.read()).done);
    })();
    const browser = await puppeteer.connect({
      browserWSEndpoint: found[1],
      defaultViewport: null,
      protocolTimeout: 120_000,
    });
    try {
      await body(browser);
    } finally {
      await browser.close().catch(() => {});
      await child.status;
      await rest.catch(() => {});
    }
  } finally {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await child.status;
    removeFolder(folder);
  }
}

/** A process of the browser may still write there for a moment. */
function removeFolder(folder: string): void {
  for (let tries = 0;; tries++) {
    try {
      return Deno.removeSync(folder, { recursive: true });
    } catch (error) {
      if (tries === 50) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
    }
  }
}

/** Opens a page of this size. */
export async function openPage(
  browser: Browser,
  url: string,
  { width = 1280, height = 900, dark = false }: {
    width?: number;
    height?: number;
    dark?: boolean;
  } = {},
): Promise<WatchedPage> {
  const page = await browser.newPage();
  page.setDefaultTimeout(60_000);
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (["error", "warn"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.setViewport({ width, height });
  const value = dark ? "dark" : "light";
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
  await page.goto(url);
  return { page, complaints };
}
