import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { treePage } from "../../src/pictures/chain_page.ts";
import {
  closerLook,
  type CloserLookData,
  type LookElement,
  type LookEvent,
  type LookWindow,
} from "../../src/pictures/closer_look.ts";
import type { LayerExtent } from "../../src/pictures/descriptions.ts";
import { mapPage } from "../../src/pictures/map_page.ts";

const MIB = 2 ** 20;
const HOSTILE = `</script></title><script>alert("1")</script>&<img src=x onerror=alert(2)>`;

/** The parts of a page between two texts. */
function between(page: string, start: string, end: string): string {
  const from = page.indexOf(start) + start.length;
  assert.ok(from >= start.length, `There is no ${start}`);
  return page.slice(from, page.indexOf(end, from));
}

/** A disk of 64 MiB: 1 MiB of the leaf, a hole, then blocks of 4 KiB of the base with holes between. */
function smallDisk(): { name: string; sizeBytes: number; layers: string[] } {
  return { name: "leaf.vhd", sizeBytes: 64 * MIB, layers: ["leaf.vhd", "base.vhd"] };
}

function* smallExtents(): Generator<LayerExtent> {
  yield { offsetBytes: 0, lengthBytes: MIB, layer: 0 };
  yield { offsetBytes: MIB, lengthBytes: MIB, layer: null };
  for (let block = 0; block < 64; block++) {
    const offsetBytes = 2 * MIB + block * 8192;
    yield { offsetBytes, lengthBytes: 4096, layer: 1 };
    yield { offsetBytes: offsetBytes + 4096, lengthBytes: 4096, layer: null };
  }
}

Deno.test("a page is one file that may load nothing and run only its own program", () => {
  const page = mapPage(smallDisk(), smallExtents());
  const policy = between(page, 'Policy" content="', '"').replaceAll("&#39;", "'");
  const hash = (text: string): string =>
    `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  const style = between(page, "<style>", "</style>");
  const script = between(page, "</script>\n<script>", "</script>");
  assert.equal(
    policy,
    `default-src 'none'; style-src ${hash(style)}; script-src ${hash(script)}; ` +
      "base-uri 'none'; form-action 'none'",
  );
  assert.doesNotMatch(page, /\b(src|href|style|on[a-z]+)=/);
  assert.doesNotMatch(page.replaceAll("http://www.w3.org/2000/svg", ""), /https?:|url\(|@import/);
  assert.match(page, /<html lang="en">/);
  assert.match(page, /<meta name="viewport"/);
  assert.match(page, /@media print/);
  assert.match(page, /prefers-color-scheme:dark/);
  const tree = treePage({ title: "none", roots: [] });
  assert.match(tree, /script-src &#39;none&#39;/);
  assert.doesNotMatch(tree, /<script/);
});

Deno.test("names in pages are text, also in the data of the program", () => {
  const disk = { name: HOSTILE, sizeBytes: 4 * MIB, layers: [HOSTILE] };
  const page = mapPage(disk, [{ offsetBytes: 0, lengthBytes: MIB, layer: 0 }]);
  assert.equal(page.split("<script").length - 1, 2);
  assert.equal(page.split("</script>").length - 1, 2);
  assert.doesNotMatch(page, /<img/);
  const data: CloserLookData = JSON.parse(between(page, 'id="data">', "</script>"));
  assert.deepEqual(data.layers, [HOSTILE]);
});

Deno.test("a page carries exact ranges, or says to what they are rounded", () => {
  const page = mapPage(smallDisk(), smallExtents());
  const data: CloserLookData = JSON.parse(between(page, 'id="data">', "</script>"));
  assert.deepEqual(data.runs.slice(0, 8), [2048, 0, 2048, -1, 8, 1, 8, -1]);
  assert.equal(data.unitBytes, 512);
  assert.doesNotMatch(page, /rounded to/);
  function* many(): Generator<LayerExtent> {
    for (let block = 0; block < 120_000; block++) {
      yield { offsetBytes: block * 65536, lengthBytes: 512 * (1 + block % 7), layer: block % 2 };
    }
  }
  const sizeBytes = 120_000 * 65536;
  const large = mapPage({ name: "large", sizeBytes, layers: ["a", "b"] }, many());
  assert.match(large, /They are rounded to 128 KiB: what holds data of several images/);
  assert.ok(large.length < 2_000_000, `${large.length} characters`);
});

/** An element as the closer look uses it. */
class Element implements LookElement {
  textContent: string | null = "";
  hidden = true;
  disabled = false;
  value = "";
  readonly attributes = new Map<string, string>();
  children: LookElement[] = [];
  readonly listeners = new Map<string, (event: LookEvent) => void>();

  setAttribute(name: string, value: string): void {
    this.attributes.set(name, value);
  }
  append(...children: LookElement[]): void {
    this.children.push(...children);
  }
  replaceChildren(...children: LookElement[]): void {
    this.children = children;
  }
  addEventListener(kind: string, listener: (event: LookEvent) => void): void {
    this.listeners.set(kind, listener);
  }
  getBoundingClientRect(): { left: number; width: number } {
    return { left: 0, width: 996 };
  }
}

/** A page that runs the program. */
class Page {
  readonly elements = new Map<string, Element>();
  readonly #changed: (() => void)[] = [];
  #hash: string;

  constructor(page: string, hash = "") {
    this.#hash = hash;
    for (const [, id] of page.matchAll(/ id="([\w-]+)"/g)) this.elements.set(id, new Element());
    this.element("data").textContent = between(page, 'id="data">', "</script>");
    const make = (): Element => new Element();
    const window: LookWindow = {
      document: {
        getElementById: (id) => this.elements.get(id) ?? null,
        createElement: make,
        createElementNS: make,
      },
      location: this,
      addEventListener: (_kind, listener) => this.#changed.push(listener),
    };
    closerLook(window);
  }

  element(id: string): Element {
    const found = this.elements.get(id);
    assert.ok(found !== undefined, id);
    return found;
  }
  get hash(): string {
    return this.#hash;
  }
  set hash(hash: string) {
    this.#hash = hash;
    for (const listener of this.#changed) listener();
  }
  event(id: string, kind: string, clientX = 0): void {
    this.element(id).listeners.get(kind)?.({ clientX, preventDefault: () => {} });
  }
  /** The listed ranges: offset, length and image of each. */
  ranges(): (string | null)[][] {
    return this.element("runs").children.map((row) =>
      row instanceof Element ? row.children.map(({ textContent }) => textContent) : []
    );
  }
  bars(): { width: number; height: number; name: string }[] {
    return this.element("bars").children.slice(1).map((bar) => {
      assert.ok(bar instanceof Element);
      const value = (name: string): string => bar.attributes.get(name) ?? "";
      return { width: +value("width"), height: +value("height"), name: value("class") };
    });
  }
}

Deno.test("the closer look shows the whole disk, then single blocks", () => {
  const page = new Page(mapPage(smallDisk(), smallExtents()));
  assert.equal(page.element("look").hidden, false);
  assert.equal(page.element("shown").textContent, "Shows 0 B to 64 MiB; a column is 256 KiB.");
  // 1 MiB of the leaf is four columns of 3.5; half a MiB of the base, half of it holes, is two.
  assert.deepEqual(page.bars(), [
    { width: 14, height: 96, name: "p0" },
    { width: 7, height: 48, name: "p1" },
  ]);
  assert.equal(page.ranges().length, 130);
  assert.ok(page.element("out").disabled && !page.element("in").disabled);
  page.element("offset").value = "1.75 MiB";
  page.event("go", "submit");
  assert.equal(page.hash, `#at=${1.75 * MIB}&span=${MIB}`);
  for (let i = 0; i < 9; i++) page.event("in", "click");
  assert.ok(page.element("in").disabled);
  assert.match(page.element("shown").textContent ?? "", /a column is 256 B\.$/);
  const blocks = page.ranges().map(([, length, name]) => `${length} ${name}`);
  assert.ok(blocks.length <= 17, `${blocks}`);
  assert.deepEqual(new Set(blocks), new Set(["4096 base.vhd", "4096 no data"]));
  page.event("whole", "click");
  assert.equal(page.ranges().length, 130);
});

Deno.test("the closer look moves by clicks and by the address, and stays on the disk", () => {
  const page = new Page(mapPage(smallDisk(), smallExtents()), `#at=${60 * MIB}&span=${64 * MIB}`);
  assert.match(page.element("shown").textContent ?? "", /^Shows 0 B to 64 MiB/);
  page.event("closer", "click", 84 + 896 / 2);
  assert.equal(page.hash, `#at=${24 * MIB}&span=${16 * MIB}`);
  page.event("on", "click");
  assert.equal(page.hash, `#at=${32 * MIB}&span=${16 * MIB}`);
  page.event("back", "click");
  page.event("out", "click");
  assert.equal(page.hash, `#at=0&span=${64 * MIB}`);
  for (
    const wrong of [
      "#at=x&span=1",
      "#at=99999999999999999&span=9",
      "#<b>",
      `#at=${70 * MIB}&span=5`,
    ]
  ) {
    page.hash = wrong;
    assert.match(page.element("shown").textContent ?? "", /^Shows .* to 64 MiB/);
  }
  page.element("offset").value = "65 MiB";
  page.event("go", "submit");
  assert.match(page.element("refused").textContent ?? "", /must be below 64 MiB, such as/);
  page.element("offset").value = "words";
  page.event("go", "submit");
  assert.match(page.element("refused").textContent ?? "", /no offset/);
});

Deno.test("the closer look lists at most 200 ranges, and says how many more there are", () => {
  const extents = Array.from({ length: 1000 }, (_each, at) => ({
    ...{ offsetBytes: at * 65536, lengthBytes: 4096, layer: 0 },
  }));
  const page = new Page(mapPage({ ...smallDisk(), layers: ["a"] }, extents));
  assert.equal(page.ranges().length, 200);
  assert.match(page.element("shown").textContent ?? "", /1800 more ranges are not listed/);
});

Deno.test("the program uses nothing that is outside it", () => {
  const text = `${closerLook}`;
  const page = mapPage(smallDisk(), smallExtents());
  const data = between(page, 'id="data">', "</script>");
  // The text runs where nothing of this module is.
  const worker = `
    const element = (id) => ({ textContent: id === "data" ? ${JSON.stringify(data)} : "",
      setAttribute() {}, append() {}, replaceChildren() {}, addEventListener() {} });
    const window = { document: { getElementById: element, createElement: element,
      createElementNS: element }, location: { hash: "" }, addEventListener() {} };
    (${text})(window);`;
  const { code, stderr } = new Deno.Command(Deno.execPath(), {
    args: ["eval", worker],
    stdout: "null",
    stderr: "piped",
  }).outputSync();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
});
