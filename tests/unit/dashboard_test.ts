/**
 * The dashboard and the alerts of the package: they are well formed, and ask for nothing that is not printed.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { FileSample } from "../../src/observe/files.ts";
import { metricsText } from "../../src/observe/prometheus.ts";
import { diskSample, histogramOf, hostSample, layerSample } from "../support/observe.ts";
import { familiesIn, type Family } from "../support/prometheus.ts";

const PACKAGING = new URL("../../packaging/", import.meta.url);

/** All families that there can be, with all their labels. */
function allFamilies(): Map<string, Family> {
  const file: FileSample = {
    sizeBytes: 1,
    allocatedBytes: 1,
    filesystem: { sizeBytes: 2, availableBytes: 1 },
  };
  const disk = diskSample({
    latency: { read: histogramOf([64, 1]), write: histogramOf(), flush: histogramOf() },
    chain: [layerSample({ cache: { hits: 1, misses: 1 } })],
    secondary: { name: "vhd:/b", state: "mirror", redirected: 0 },
  });
  return familiesIn(metricsText(hostSample([disk]), new Map([[disk.chain[0].path, file]])));
}

/** Labels that Prometheus adds, and that of the bounds of histograms. */
const ADDED_LABELS = ["instance", "job", "le"];

/** Fails for a query with a metric or a label that there is not. */
function checkQuery(query: string, families: ReadonlyMap<string, Family>): void {
  const named = [...query.matchAll(/\bblktap_\w+/g)].map(([name]) => name);
  const known = named.map((name) =>
    families.get(name) ?? families.get(name.replace(/_(bucket|sum|count)$/, ""))
  );
  known.forEach((family, index) => assert.ok(family !== undefined, `${named[index]} in ${query}`));
  const labels = new Set(
    known.flatMap((family) =>
      family?.samples.flatMap((sample) => Object.keys(sample.labels)) ?? []
    ),
  );
  const selected = [...query.matchAll(/(\w+)(?:=~|!~|!=|=)"/g)].map(([, label]) => label);
  const grouped = [...query.matchAll(/\bby \(([^)]*)\)/g)].flatMap(([, list]) => list.split(/, */));
  for (const label of [...selected, ...grouped]) {
    assert.ok(labels.has(label) || ADDED_LABELS.includes(label), `${label} in ${query}`);
  }
}

interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly gridPos: {
    readonly x: number;
    readonly y: number;
    readonly w: number;
    readonly h: number;
  };
  readonly datasource: { readonly type: string; readonly uid: string };
  readonly targets: readonly { readonly expr: string; readonly refId: string }[];
  readonly fieldConfig: {
    readonly defaults: { readonly unit: string };
    readonly overrides: unknown[];
  };
}

interface Dashboard {
  readonly title: string;
  readonly uid: string;
  readonly schemaVersion: number;
  readonly time: { readonly from: string; readonly to: string };
  readonly panels: readonly Panel[];
  readonly templating: {
    readonly list: readonly {
      readonly name: string;
      readonly type: string;
      readonly query: unknown;
    }[];
  };
}

function readDashboard(): Dashboard {
  return JSON.parse(Deno.readTextFileSync(new URL("grafana-dashboard.json", PACKAGING)));
}

Deno.test("the dashboard has what Grafana needs", () => {
  const { title, uid, schemaVersion, time, panels, templating } = readDashboard();
  assert.deepEqual([title, uid, time.to], ["blktap", "blktap", "now"]);
  assert.ok(schemaVersion >= 36);
  const variables = templating.list.map(({ name }) => name);
  assert.deepEqual(variables, ["datasource", "instance", "minor"]);
  assert.ok(panels.length > 10);
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  for (const { type, title, gridPos, datasource, targets, fieldConfig } of panels) {
    assert.ok(["stat", "timeseries", "heatmap", "table"].includes(type), title);
    assert.deepEqual(datasource, { type: "prometheus", uid: "${datasource}" }, title);
    assert.ok(gridPos.x + gridPos.w <= 24 && gridPos.w > 0 && gridPos.h > 0, title);
    assert.ok(targets.length > 0, title);
    assert.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length, title);
    assert.ok(fieldConfig.defaults.unit !== "", title);
  }
  const overlaps = panels.flatMap(({ id, gridPos: a }) =>
    panels.filter(({ id: other, gridPos: b }) =>
      id < other && a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h
    ).map((other) => `${id} and ${other.id}`)
  );
  assert.deepEqual(overlaps, []);
});

Deno.test("the dashboard asks for metrics and labels that are printed, and knows its variables", () => {
  const families = allFamilies();
  const { panels, templating } = readDashboard();
  const queries = [
    ...panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)),
    ...templating.list.map(({ query }) => JSON.stringify(query).replaceAll('\\"', '"')),
  ];
  const variables = new Set(templating.list.map(({ name }) => name));
  for (const query of queries) {
    checkQuery(query, families);
    for (const [, name] of query.matchAll(/\$(?!__)(\w+)/g)) assert.ok(variables.has(name), query);
  }
});

Deno.test("the alerts ask for metrics and labels that are printed", () => {
  const families = allFamilies();
  const text = Deno.readTextFileSync(new URL("prometheus-alerts.yml", PACKAGING));
  const rules = text.split(/^ {6}- alert: /m).slice(1);
  const names = rules.map((rule) => rule.split("\n")[0]);
  assert.equal(new Set(names).size, names.length);
  for (const wanted of ["DiskFull", "DiskRetrying", "LongChain", "TapdiskDead"]) {
    assert.ok(names.includes(`Blktap${wanted}`), wanted);
  }
  for (const rule of rules) {
    const query = /^ {8}expr: (.+)$/m.exec(rule)?.[1] ?? "";
    assert.ok(query !== "", rule);
    checkQuery(query, families);
    assert.match(rule, /^ {10}severity: (critical|warning)$/m);
    assert.match(rule, /^ {10}summary: "/m);
    assert.match(rule, /^ {10}description: "/m);
  }
});

Deno.test("a query for what is not printed would be found", () => {
  const families = allFamilies();
  assert.throws(() => checkQuery("rate(blktap_nothing[5m])", families), /blktap_nothing/);
  assert.throws(() => checkQuery('blktap_disk_state{mood="good"}', families), /mood/);
  assert.throws(() => checkQuery("sum by (mood) (blktap_disk_state)", families), /mood/);
});
