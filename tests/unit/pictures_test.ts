import assert from "node:assert/strict";
import fc from "fast-check";
import { countBuckets, shareOf } from "../../src/pictures/buckets.ts";
import { chainPicture, treePicture } from "../../src/pictures/chain_picture.ts";
import type {
  DiskDescription,
  LayerDescription,
  LayerExtent,
  TreeDescription,
} from "../../src/pictures/descriptions.ts";
import { latencyPicture } from "../../src/pictures/latency_picture.ts";
import { MAP_BUCKETS, mapPicture } from "../../src/pictures/map_picture.ts";
import { escapeMarkup, Markup, markup } from "../../src/pictures/markup.ts";
import { RunGatherer, type Runs } from "../../src/pictures/runs.ts";
import { formatShare, formatSize } from "../../src/pictures/sizes.ts";
import { GROUNDS } from "../../src/pictures/style.ts";
import { fitName } from "../../src/pictures/svg.ts";
import { formatMicroseconds } from "../../src/pictures/times.ts";
import { needs, runOk } from "../support/tools.ts";

const GIB = 2 ** 30;
const TIB = 2 ** 40;
/** Names that would be markup, end it, or be invalid in it. */
const HOSTILE = [
  "</text></svg><script>alert(1)</script>",
  `"><img src=x onerror="alert(1)">`,
  "]]><!-- & &amp; -->",
  "a\u0000b\u001bc\u202ed\uffffe\udc80f",
  "x".repeat(5000),
  "",
];

function layer(name: string, more: Partial<LayerDescription> = {}): LayerDescription {
  return {
    name,
    type: "vhd",
    sizeBytes: 10 * GIB,
    fileBytes: 3 * GIB,
    heldBytes: 2.5 * GIB,
    notes: [],
    problem: null,
    ...more,
  };
}

function hostileTree(): TreeDescription {
  return HOSTILE.reduce<TreeDescription>((child, name) => ({
    ...layer(name, { notes: [name], type: name }),
    children: [child, { ...layer(name, { problem: name, sizeBytes: null }), children: [] }],
  }), { ...layer("leaf"), children: [] });
}

function extentsOf(runs: readonly (readonly [number, number | null])[]): LayerExtent[] {
  let offsetBytes = 0;
  return runs.map(([sectors, layer]) => {
    const extent = { offsetBytes, lengthBytes: sectors * 512, layer };
    offsetBytes += extent.lengthBytes;
    return extent;
  });
}

function gatherRuns(
  extents: Iterable<LayerExtent>,
  plan: { sizeBytes: number; layerCount: number; most: number },
): Runs {
  const gatherer = new RunGatherer(plan);
  for (const extent of extents) gatherer.add(extent);
  return gatherer.end();
}

/** All kinds of pictures, with names that are hostile. */
function hostilePictures(): string[] {
  const extents = extentsOf([[100, 0], [50, null], [1000, 2], [3, 5]]);
  const disk: DiskDescription = { name: HOSTILE[0], sizeBytes: 1153 * 512, layers: HOSTILE };
  const buckets = countBuckets(extents, { ...disk, layerCount: 6, most: MAP_BUCKETS });
  const kinds = HOSTILE.map((name, index) => ({
    ...{ name, requests: index, p50: 90, p99: 1500, p99_9: 30_000, highest: 1_000_000 },
    histogram: index === 0 ? [] : [[1, 3], [96, 1000], [1_048_576, 1]] as [number, number][],
  }));
  return [
    chainPicture({ title: HOSTILE[0], layers: HOSTILE.map((name) => layer(name)) }),
    treePicture({ title: HOSTILE[1], roots: [hostileTree()] }),
    mapPicture(disk, buckets),
    latencyPicture({ title: HOSTILE[2], kinds }),
    chainPicture({ title: "none", layers: [] }, { id: "c" }),
    treePicture({ title: "none", roots: [] }, { id: "t" }),
    mapPicture(
      { name: "none", sizeBytes: 0, layers: [] },
      countBuckets([], {
        ...{ sizeBytes: 0, layerCount: 0, most: MAP_BUCKETS },
      }),
    ),
    latencyPicture({ title: "none", kinds: [] }),
  ];
}

/** Reads pictures as XML; prints the elements and the texts of each as JSON. */
const READ_XML = `
import json, sys, xml.etree.ElementTree as tree
found = []
for text in json.load(sys.stdin):
    root = tree.fromstring(text.encode())
    found.append({
        "root": root.tag, "label": root.get("aria-labelledby").split(),
        "ids": [e.get("id") for e in root.iter() if e.get("id")],
        "tags": sorted({e.tag.split("}")[1] for e in root.iter()}),
        "attributes": sorted({a for e in root.iter() for a in e.keys()}),
        "values": [v for e in root.iter() for v in e.attrib.values()],
        "texts": [e.text or "" for e in root.iter() if e.tag.endswith(("text", "title", "desc"))]})
print(json.dumps(found))
`;

const python = needs("python3");
Deno.test({
  name: `pictures are XML whatever the names are, and names are only text${python.suffix}`,
  ignore: python.ignore,
  async fn() {
    const pictures = hostilePictures();
    const stdin = JSON.stringify(pictures);
    const found = JSON.parse(await runOk("python3", ["-c", READ_XML], { stdin }));
    assert.equal(found.length, pictures.length);
    for (const { root, label, ids, tags, attributes, values } of found) {
      assert.equal(root, "{http://www.w3.org/2000/svg}svg");
      // A screen reader finds the name and the description by their ids.
      assert.deepEqual(label, ids);
      for (const tag of tags) {
        assert.match(tag, /^(svg|title|desc|style|rect|text|g|path)$/);
      }
      for (const attribute of attributes) assert.doesNotMatch(attribute, /^on|href|style/);
      for (const value of values) assert.doesNotMatch(value, /NaN|Infinity|undefined|null|script/);
    }
    const [chain] = found;
    assert.ok(chain.texts.some((text: string) => text.startsWith(HOSTILE[0])));
    assert.ok(
      chain.texts.some((text: string) => text.includes("a\\x00b\\x1bc\\u202ed\\uffffe\\x80f")),
    );
  },
});

Deno.test("markup escapes all that is not markup", () => {
  const inner = markup`<b title="${'"'}">${"<&'>"}</b>`;
  assert.equal(inner.text, '<b title="&quot;">&lt;&amp;&#39;&gt;</b>');
  const outer = markup`<p>${inner}${1 / 3}${[new Markup("<x/>"), new Markup("y")]}</p>`;
  assert.equal(outer.text, `<p>${inner.text}0.33<x/>\ny</p>`);
  assert.equal(escapeMarkup("\r\n\u2028"), "\\r\\n\\u2028");
});

Deno.test("a chain's picture has the names, sizes and shares, also for readers who do not see", () => {
  const text = chainPicture({
    title: "A disk",
    layers: [
      layer("/srv/today.vhd", { notes: ["dynamic"] }),
      layer("/srv/base.vhd", { heldBytes: 10 * GIB, notes: ["hidden"] }),
      layer("/srv/gone.vhd", {
        ...{ sizeBytes: null, fileBytes: null, heldBytes: null, problem: "missing" },
      }),
    ],
  });
  assert.match(text, /<title id="picture-title">A disk<\/title>/);
  assert.match(text, /<desc[^>]*>A chain of 3 images, the topmost first\. \/srv\/today\.vhd, vhd/);
  assert.match(text, />vhd · 10 GiB disk · 3 GiB file · dynamic</);
  assert.match(text, />holds 2\.5 GiB, 25 %</);
  assert.match(text, />holds 10 GiB, 100 %</);
  assert.match(text, /class="wrong small"[^>]*>vhd · missing</);
  assert.match(text, /width="40" height="12"/);
  assert.equal(text.split('class="line"').length - 1, 2);
});

Deno.test("a picture within a page has ids of its own, and neither style nor ground", () => {
  const alone = chainPicture({ title: "A", layers: [layer("a")] });
  assert.match(alone, /<style>/);
  assert.match(alone, /prefers-color-scheme:dark/);
  const inside = chainPicture({ title: "A", layers: [layer("a")] }, { id: "disk-7" });
  assert.doesNotMatch(inside, /<style>|class="paper"/);
  assert.match(inside, /aria-labelledby="disk-7-title disk-7-desc"/);
});

Deno.test("trees are drawn in order, however deep and however many, with a limit", () => {
  let chain: TreeDescription = { ...layer("leaf"), children: [] };
  for (let depth = 0; depth < 20_000; depth++) chain = { ...layer(`l${depth}`), children: [chain] };
  const deep = treePicture({ title: "deep", roots: [chain] });
  assert.match(deep, />and 18001 more images</);
  assert.ok(deep.length < 3_000_000);
  const roots = ["a", "b"].map((name) => ({
    ...layer(name),
    children: [{ ...layer(`${name}1`), children: [] }, { ...layer(`${name}2`), children: [] }],
  }));
  const names = [...treePicture({ title: "two", roots }).matchAll(/class="name"[^>]*>([^<]*)</g)];
  assert.deepEqual(names.map(([, name]) => name), ["a", "a1", "a2", "b", "b1", "b2"]);
});

/** Runs of sectors and their layers. */
const anyRuns = fc.array(
  fc.tuple(
    fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 5000 })),
    fc.option(fc.nat({ max: 3 })),
  ),
  { minLength: 1, maxLength: 60 },
);

Deno.test("buckets count each sector once, in each part of a disk", () => {
  fc.assert(
    fc.property(
      anyRuns,
      fc.integer({ min: 1, max: 300 }),
      fc.nat(),
      fc.nat(),
      (runs, most, a, b) => {
        const extents = extentsOf(runs);
        const sectors = extents.flatMap(({ lengthBytes, layer }) =>
          new Array<number>(lengthBytes / 512).fill(layer ?? -1)
        );
        const sizeBytes = sectors.length * 512;
        const startBytes = (a % sectors.length) * 512;
        const lengthBytes = 512 + (b % sectors.length) * 512;
        const found = countBuckets(extents, {
          ...{ sizeBytes, layerCount: 4, most, startBytes, lengthBytes, leastBytes: 512 },
        });
        assert.ok(found.count <= most && found.startBytes <= startBytes);
        assert.equal(found.endBytes, Math.min(sizeBytes, startBytes + lengthBytes));
        for (let bucket = 0; bucket < found.count; bucket++) {
          const from = (found.startBytes + bucket * found.bucketBytes) / 512;
          const to = Math.min(found.endBytes / 512, from + found.bucketBytes / 512);
          const part = sectors.slice(from, to);
          for (let layer = 0; layer < 4; layer++) {
            const held = part.filter((each) => each === layer).length;
            assert.equal(found.heldBytes[bucket * 4 + layer], held * 512);
          }
          const { share } = shareOf(found, { bucket });
          assert.ok(Math.abs(share - part.filter((each) => each >= 0).length / part.length) < 1e-9);
        }
      },
    ),
    { numRuns: 150 },
  );
});

Deno.test("runs are exact while they are few, and rounded to the image with most when not", () => {
  fc.assert(
    fc.property(anyRuns, fc.integer({ min: 1, max: 80 }), (runs, most) => {
      const extents = extentsOf(runs);
      const sectors = extents.flatMap(({ lengthBytes, layer }) =>
        new Array<number>(lengthBytes / 512).fill(layer ?? -1)
      );
      const sizeBytes = sectors.length * 512;
      const found = gatherRuns(extents, { sizeBytes, layerCount: 4, most });
      assert.ok(found.runs.length <= most);
      const units = found.runs.flatMap(([count, layer]) => new Array<number>(count).fill(layer));
      const perUnit = found.unitBytes / 512;
      assert.equal(units.length, Math.ceil(sectors.length / perUnit));
      let isRounded = false;
      for (const [unit, layer] of units.entries()) {
        const part = sectors.slice(unit * perUnit, (unit + 1) * perUnit);
        const counts = [0, 1, 2, 3].map((each) => part.filter((held) => held === each).length);
        const highest = Math.max(...counts);
        assert.equal(layer, highest === 0 ? -1 : counts.indexOf(highest));
        isRounded ||= new Set(part).size > 1;
      }
      assert.equal(found.isRounded, isRounded);
      if (found.unitBytes > 512) {
        const changes = sectors.filter((held, at) => at === 0 || held !== sectors[at - 1]).length;
        assert.ok(changes > most);
      }
    }),
    { numRuns: 100 },
  );
});

Deno.test("a map of a disk of 64 TiB in many pieces is not large", () => {
  function* pieces(): Generator<LayerExtent> {
    const lengthBytes = 2 ** 28;
    for (let at = 0; at < 64 * TIB; at += lengthBytes) {
      yield { offsetBytes: at, lengthBytes: lengthBytes / 4, layer: (at / lengthBytes) % 30 };
    }
  }
  const disk = {
    ...{ name: "large", sizeBytes: 64 * TIB },
    layers: Array.from({ length: 30 }, (_each, index) => `layer${index}.vhd`),
  };
  const buckets = countBuckets(pieces(), { ...disk, layerCount: 30, most: MAP_BUCKETS });
  assert.ok(buckets.count <= MAP_BUCKETS && buckets.count > MAP_BUCKETS / 4);
  const text = mapPicture(disk, buckets);
  assert.ok(text.length < 2_500_000, `${text.length} characters`);
  assert.ok(text.includes(">546 GiB, 0.8 %<"));
  const runs = gatherRuns(pieces(), { ...disk, layerCount: 30, most: 50_000 });
  assert.ok(runs.isRounded && runs.runs.length <= 50_000);
});

Deno.test("a map names its part, its squares and what each image holds", () => {
  const extents = extentsOf([[2048, 0], [2048, 1], [4096, null]]);
  const disk = { name: "child.vhd", sizeBytes: 8192 * 512, layers: ["child.vhd", "base.vhd"] };
  const whole = mapPicture(
    disk,
    countBuckets(extents, { ...disk, layerCount: 2, most: MAP_BUCKETS }),
  );
  assert.match(whole, />4 MiB; a square is 4 KiB, in the colour of/);
  assert.match(
    whole,
    /child\.vhd holds 1 MiB, 25 %\. base\.vhd holds 1 MiB, 25 %\. 2 MiB hold no data\./,
  );
  const part = countBuckets(extents, {
    ...{ ...disk, layerCount: 2, most: 64, startBytes: 2 ** 20, lengthBytes: 2 ** 16 },
  });
  assert.match(mapPicture(disk, part), />1 MiB to 1\.1 MiB of 4 MiB; a square is 4 KiB/);
});

Deno.test("latencies are drawn in place, with their percentiles in words", () => {
  const reads = { name: "reads", requests: 1001, p50: 96, p99: 96, p99_9: 2048, highest: 2000 };
  const writes = { name: "writes", requests: 0, p50: 0, p99: 0, p99_9: 0, highest: 0 };
  const text = latencyPicture({
    title: "Latency",
    kinds: [{ ...reads, histogram: [[96, 1000], [2048, 1]] }, { ...writes, histogram: [] }],
  });
  assert.match(
    text,
    /1001 reads: half took at most 96 µs, 99 % at most 96 µs, 99\.9 % at most 2\.05 ms/,
  );
  assert.match(text, /No writes\./);
  assert.match(text, /<title>80 µs to 96 µs: 1000<\/title>/);
  assert.match(text, /height="84"/);
  const ticks = [...text.matchAll(/text-anchor="middle">([^<]*)</g)].map(([, tick]) => tick);
  assert.deepEqual(ticks, ["100 µs", "1 ms", "100 µs", "1 ms"]);
});

Deno.test("sizes, shares and times are short, and little is not nothing", () => {
  assert.deepEqual([0, 1023, 1536, 2 ** 51].map(formatSize), ["0 B", "1023 B", "1.5 KiB", "2 PiB"]);
  assert.deepEqual(
    [[0, 9], [1, 10_000], [1, 3], [9999, 10_000], [7, 7], [0, 0]].map(([part, whole]) =>
      formatShare(part, whole)
    ),
    ["0 %", "< 0.1 %", "33.3 %", "> 99.9 %", "100 %", "0 %"],
  );
  assert.deepEqual([7, 999, 1234, 2_500_000].map(formatMicroseconds), [
    ...["7 µs", "999 µs", "1.23 ms", "2.5 s"],
  ]);
});

Deno.test("long names keep their ends", () => {
  assert.equal(fitName("short.vhd", 200), "short.vhd");
  const fitted = fitName(`/srv/${"x".repeat(100)}/disk.vhd`, 160);
  assert.match(fitted, /^\/srv\/.*…x*\/disk\.vhd$/);
  assert.ok(fitted.length <= 160 / (13 * 0.61));
  assert.ok([...fitName("漢".repeat(50), 160)].length <= 11);
  assert.ok(fitName("y".repeat(1_000_000), 160).length <= 21);
});

Deno.test("texts can be read on light and on dark grounds", () => {
  const light = (colour: string): number => {
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
    const [red, green, blue] = parts.map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    );
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  for (const { paper, ink, soft, wrong } of Object.values(GROUNDS)) {
    for (const colour of [ink, soft, wrong]) {
      const [a, b] = [light(paper), light(colour)].sort((x, y) => y - x);
      assert.ok((a + 0.05) / (b + 0.05) >= 4.5, `${colour} on ${paper}`);
    }
  }
});
