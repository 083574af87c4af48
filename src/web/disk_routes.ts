import { messageOf } from "../../ffi/errno.ts";
import type { Access } from "./access.ts";
import { chartTexts } from "./disk_list.ts";
import { chainSign, diskContent } from "./disk_page.ts";
import { type Facts, SNAPSHOT_DRAIN_SECONDS } from "./facts.ts";
import { latencyText, shortName } from "./format.ts";
import { readForm } from "./forms.ts";
import { markup, type Part } from "./html.ts";
import type { Page } from "./layout.ts";
import { mapContent, partOf } from "./map_page.ts";
import type { Monitor } from "./monitor.ts";
import type { LinesWatch } from "./lines_watch.ts";
import { redirect } from "./responses.ts";
import {
  confirmForm,
  fileOf,
  placeOf,
  purposeOf,
  snapshotForm,
  type SnapshotWish,
  suggestedName,
  wishOf,
} from "./snapshot_page.ts";
import { imageOf, pathOf, type WatchedDisk } from "./watched.ts";

/** Results that are kept to be shown on a disk's page. */
const MOST_NOTICES = 32;

interface DiskRouteParts {
  readonly monitor: Monitor;
  readonly requests: LinesWatch;
  readonly findings: LinesWatch;
  readonly facts: Facts;
  readonly access: Access;
  readonly allowsChanges: boolean;
}

/** The pages of single disks. */
export class DiskRoutes {
  readonly #parts: DiskRouteParts;
  readonly #page: (page: Page, status?: number) => Response;
  readonly #notices = new Map<string, string>();

  constructor(parts: DiskRouteParts, page: (page: Page, status?: number) => Response) {
    this.#parts = parts;
    this.#page = page;
  }

  /** Answers a request; null when there is no such page. */
  async answer(
    request: Request,
    url: URL,
    { key, rest }: { key: string; rest: string },
  ): Promise<Response | null> {
    const disk = this.#parts.monitor.disks.get(key);
    if (disk === undefined) return this.#moved(request, { key, rest });
    const isPost = request.method === "POST";
    if (rest === "/snapshot" && this.#parts.allowsChanges) {
      return isPost ? await this.#change(request, disk) : this.#form(disk);
    }
    if (isPost) return null;
    if (rest === "") return await this.#disk(disk, url.searchParams);
    return rest === "/map" ? await this.#map(disk, url.searchParams) : null;
  }

  /** A disk whose tapdisk was upgraded has the same minor in another process. */
  #moved({ method }: Request, { key, rest }: { key: string; rest: string }): Response | null {
    const minor = key.slice(key.indexOf("."));
    const now = [...this.#parts.monitor.disks.values()].find((disk) => disk.key.endsWith(minor));
    return now === undefined || method === "POST" ? null : redirect(pathOf(now) + rest);
  }

  #title({ sample }: WatchedDisk): string {
    const image = imageOf(sample);
    return image === "" ? `Minor ${sample.minor}` : shortName(image);
  }

  async #disk(disk: WatchedDisk, query: URLSearchParams): Promise<Response> {
    const { monitor, requests, findings, facts, allowsChanges } = this.#parts;
    const { key, sample } = disk;
    const image = imageOf(sample);
    const isThere = disk.state !== "no answer";
    const [chain, open, found] = await Promise.all([
      image === "" ? { error: "It has no image." } : facts.chain(image, chainSign(disk)),
      isThere ? requests.once(sample) : null,
      isThere ? findings.once(sample) : null,
    ]);
    const notice = this.#notices.get(query.get("notice") ?? "");
    const content = markup`
      ${
      notice !== undefined && markup`
        <p class="notice" role="status">${notice}</p>
      `
    }${
      diskContent(disk, {
        history: monitor.historyOf(key),
        now: chartTexts(disk.activity),
        chain,
        requests: open,
        findings: found,
        events: monitor.events.filter((event) => event.key === key),
        allowsChanges,
      })
    }
    `;
    return this.#page({
      title: this.#title(disk),
      here: "disks",
      content,
      script: { stream: `/stream?disk=${key}` },
    });
  }

  async #map(disk: WatchedDisk, query: URLSearchParams): Promise<Response> {
    const image = imageOf(disk.sample);
    const map = image === ""
      ? { error: "It has no image." }
      : await this.#parts.facts.map(image, partOf(query), chainSign(disk));
    return this.#page({ title: `Map of ${this.#title(disk)}`, content: mapContent(disk, map) });
  }

  #snapshotPage(disk: WatchedDisk, content: Part, status = 200): Response {
    return this.#page({ title: `Snapshot of ${this.#title(disk)}`, content }, status);
  }

  #form(
    disk: WatchedDisk,
    { wish, problem = null }: { wish?: SnapshotWish; problem?: string | null } = {},
  ): Response {
    const name = suggestedName(fileOf(disk) ?? "", Date.now());
    const token = this.#parts.access.formToken(purposeOf(disk, null));
    const shown = wish ?? { name, rename: true };
    const content = snapshotForm(disk, { wish: shown, token, problem });
    return this.#snapshotPage(disk, content, problem === null ? 200 : 400);
  }

  async #change(request: Request, disk: WatchedDisk): Promise<Response> {
    const { access } = this.#parts;
    const form = await readForm(request);
    const file = fileOf(disk);
    if (form === null || file === null) {
      return this.#form(disk, { problem: "The form is not whole." });
    }
    const wish = wishOf(form);
    if (typeof wish === "string") return this.#form(disk, { problem: wish });
    const isMake = form.get("step") === "make";
    // The token is of the image that was shown: a disk that has another one by now is not changed.
    const purpose = purposeOf(disk, isMake ? wish : null);
    if (!access.isFormToken(form.get("token") ?? "", purpose)) {
      return this.#form(disk, { wish, problem: "The disk has changed since. Check again." });
    }
    if (isMake) return await this.#make(disk, { wish, file });
    const token = access.formToken(purposeOf(disk, wish));
    return this.#snapshotPage(disk, confirmForm(disk, { wish, file, token }));
  }

  async #make(
    disk: WatchedDisk,
    { wish, file }: { wish: SnapshotWish; file: string },
  ): Promise<Response> {
    const { pid, minor } = disk.sample;
    try {
      const { image, parent, stallMs } = await this.#parts.facts.snapshot({
        pid,
        minor,
        path: placeOf(file, wish),
        rename: wish.rename,
        timeoutSeconds: SNAPSHOT_DRAIN_SECONDS,
      });
      const waited = latencyText(stallMs * 1000);
      const text =
        `The snapshot is made: ${image} is open on ${parent}. Requests waited ${waited}.`;
      return redirect(`${pathOf(disk)}?notice=${this.#notice(text)}`);
    } catch (error) {
      return this.#form(disk, { wish, problem: messageOf(error) });
    }
  }

  #notice(text: string): string {
    const id = crypto.randomUUID();
    this.#notices.set(id, text);
    for (const oldest of this.#notices.keys()) {
      if (this.#notices.size <= MOST_NOTICES) break;
      this.#notices.delete(oldest);
    }
    return id;
  }
}
