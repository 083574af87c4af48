/**
 * `src/web`: a page in the browser that shows the disks of this host. The pages are whole without their
 * script (`client/`), which draws charts and brings new figures. Tapdisks are asked once a second
 * (`monitor.ts`) however many look; what may wait for a disk or a server is done by processes of their own
 * (`jobs.ts`, `worker.ts`). Clients come by `front_door.ts`. The folder must not print, and must not change a disk unless changes are
 * allowed.
 *
 * This file decides which requests are answered, and by which page.
 *
 * @module
 */
import { messageOf } from "../../ffi/errno.ts";
import type { Access } from "./access.ts";
import { assetResponse, type Assets } from "./assets.ts";
import { chartTexts, choiceOf, diskListContent, listStream } from "./disk_list.ts";
import { DiskRoutes } from "./disk_routes.ts";
import { eventLine } from "./disk_page.ts";
import { readForm } from "./forms.ts";
import { markup } from "./html.ts";
import { imagesContent } from "./images_page.ts";
import type { Facts } from "./facts.ts";
import { messagePage, type Page, type PageFrame, pageOf } from "./layout.ts";
import type { Monitor } from "./monitor.ts";
import type { LinesWatch } from "./lines_watch.ts";
import { htmlResponse, redirect, textResponse } from "./responses.ts";
import { LiveStreams } from "./live_streams.ts";

/** Requests whose answers are made at the same time. */
const MOST_REQUESTS = 256;

/** What a server is made of. */
export interface ServerParts {
  readonly monitor: Monitor;
  readonly requests: LinesWatch;
  /** What disks wait for. */
  readonly findings: LinesWatch;
  readonly facts: Facts;
  readonly access: Access;
  readonly assets: Assets;
  readonly allowsChanges: boolean;
  /** Folders in which images are looked for. */
  readonly folders: readonly string[];
  readonly host: string;
  /** Is told of faults of this program. */
  readonly onFault: (error: unknown) => void;
}

/** Answers requests. */
export class WebServer {
  readonly #parts: ServerParts;
  readonly #streams: LiveStreams;
  readonly #disks: DiskRoutes;
  #running = 0;

  constructor(parts: ServerParts) {
    this.#parts = parts;
    this.#streams = new LiveStreams(parts);
    this.#disks = new DiskRoutes(parts, (page, status) => this.#page(page, status));
  }

  /** Ends all streams. */
  close(): void {
    this.#streams.close();
  }

  /** Answers one request. Does not throw. */
  async handle(request: Request): Promise<Response> {
    if (this.#running >= MOST_REQUESTS) {
      return textResponse("Too many requests at once. Try again.", {
        status: 503,
        headers: { "retry-after": "2" },
      });
    }
    this.#running++;
    try {
      return await this.#answer(request);
    } catch (error) {
      this.#parts.onFault(error);
      return textResponse("This is a fault of the program. Its log says more.", { status: 500 });
    } finally {
      this.#running--;
    }
  }

  get #frame(): PageFrame {
    const { assets, allowsChanges, host, monitor: { problem } } = this.#parts;
    const names = { script: assets.script.name, style: assets.style.name };
    return { assets: names, allowsChanges, host, problem };
  }

  #page(page: Page, status = 200): Response {
    return htmlResponse(pageOf(this.#frame, page), { status });
  }

  #notFound(): Response {
    const home = markup`
      There is no such page. <a href="/">All disks</a>
    `;
    return htmlResponse(messagePage(this.#frame, "Not found", home), { status: 404 });
  }

  async #answer(request: Request): Promise<Response> {
    const { access, assets } = this.#parts;
    const refusal = access.refusalOf(request);
    if (refusal !== null) return textResponse(refusal.reason, { status: refusal.status });
    const url = urlOf(request.url);
    // What the page looks like is no secret, and the page that asks for the token needs it.
    const [, name] = /^\/assets\/([\w.-]+)$/.exec(url.pathname) ?? [];
    if (name !== undefined) return assetResponse(assets, name) ?? this.#notFound();
    const entered = await this.#enter(request, url);
    if (entered !== null) return entered;
    return await this.#route(request, url);
  }

  /** Lets a client in by its token; null for one that is in. */
  async #enter(request: Request, url: URL): Promise<Response | null> {
    const { access } = this.#parts;
    if (!access.needsToken) return null;
    const given = url.searchParams.get("token");
    if (given !== null && request.method === "GET" && access.isToken(given)) {
      url.searchParams.delete("token");
      // A path that began with two slashes would lead to another host.
      return redirect(url.pathname.replace(/^\/+/, "/") + url.search, {
        "set-cookie": access.cookie(request.headers),
      });
    }
    if (request.method === "POST" && url.pathname === "/token") {
      const token = (await readForm(request))?.get("token") ?? "";
      if (access.isToken(token)) {
        return redirect("/", { "set-cookie": access.cookie(request.headers) });
      }
      return this.#askForToken("This is not the token.");
    }
    return given === null && access.isAllowed(request.headers)
      ? null
      : this.#askForToken(given === null ? null : "This is not the token.");
  }

  #askForToken(problem: string | null): Response {
    const content = markup`
      <p>This page needs the token that was given or printed when it was started.</p>
      ${
      problem !== null && markup`
        <p class="problem" role="alert">${problem}</p>
      `
    }
      <form method="post" action="/token">
        <label for="token">Token</label>
        <input id="token" name="token" type="password" required autocomplete="off">
        <button type="submit">Enter</button>
      </form>
    `;
    const { assets } = this.#frame;
    const frame = { assets, allowsChanges: false, host: this.#parts.host, problem: null };
    return htmlResponse(pageOf(frame, { title: "Token", content }), {
      status: 401,
      headers: { "www-authenticate": "Bearer" },
    });
  }

  async #route(request: Request, url: URL): Promise<Response> {
    const [, pid, minor, rest] =
      /^\/disks\/(\d{1,10})\/(\d{1,5})((?:\/[a-z]+)?)$/.exec(url.pathname) ?? [];
    if (pid !== undefined) {
      return await this.#disks.answer(request, url, { key: `${+pid}.${+minor}`, rest }) ??
        this.#notFound();
    }
    if (request.method === "POST") return this.#notFound();
    switch (url.pathname) {
      case "/":
        return this.#list(url.searchParams);
      case "/stream":
        return request.method === "HEAD"
          ? textResponse("A stream has no head.", { status: 405 })
          : this.#streams.open(url.searchParams) ?? this.#notFound();
      case "/images":
        return await this.#images();
      case "/events":
        return this.#events();
      default:
        return this.#notFound();
    }
  }

  #list(query: URLSearchParams): Response {
    const { monitor } = this.#parts;
    const choice = choiceOf(query);
    return this.#page({
      title: "Disks",
      here: "disks",
      content: diskListContent(monitor, choice, chartTexts(monitor.totals)),
      script: { stream: listStream(choice) },
    });
  }

  async #images(): Promise<Response> {
    const { facts, folders, monitor } = this.#parts;
    const scan = folders.length === 0 ? null : await facts.scan(folders);
    const content = imagesContent(scan, { folders, monitor });
    return this.#page({ title: "Images not served", here: "images", content });
  }

  #events(): Response {
    const { events } = this.#parts.monitor;
    const lines = events.map((event) =>
      markup`
        ${eventLine(event, event.path === "" ? `minor ${event.key}` : event.path)}
      `
    );
    const content = markup`
      <p>
        What was seen of all disks since this page's program was started, the newest first; the last
        ${events.length}.
      </p>
      <ol class="lines">${lines}</ol>
    `;
    return this.#page({ title: "Events", here: "events", content });
  }
}

/** The address of a page. Its host is left out: clients may say one that makes no address. */
function urlOf(text: string): URL {
  return new URL(`http://localhost${text.replace(/^[a-z+]+:\/\/[^/?#]*/i, "")}`);
}

/** What a fault is told as. */
export function faultText(error: unknown): string {
  return error instanceof Error ? error.stack ?? error.message : messageOf(error);
}
