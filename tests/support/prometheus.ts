/**
 * The text format of Prometheus, read as strictly as its documentation describes it, for tests of what is
 * printed.
 *
 * @module
 */
import assert from "node:assert/strict";

/** A value, with its labels. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** A family of metrics. */
export interface Family {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly samples: readonly Sample[];
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y;

function labelsOf(text: string): Record<string, string> {
  const labels: Record<string, string> = {};
  LABEL.lastIndex = 0;
  while (LABEL.lastIndex < text.length) {
    const at = LABEL.lastIndex;
    const match = LABEL.exec(text);
    assert.ok(match !== null, `labels: ${text.slice(at)}`);
    const [, name, value] = match;
    assert.ok(!Object.hasOwn(labels, name), `the label ${name} is there twice`);
    labels[name] = value.replace(/\\([\\"n])/g, (_, c) => c === "n" ? "\n" : c);
  }
  return labels;
}

function sampleOf(line: string): Sample {
  const [, name, , labels = "", value] = /^([^ {]+)(\{(.*)\})? ([^ ]+)$/.exec(line) ?? [];
  assert.ok(name !== undefined && NAME.test(name), `a sample: ${line}`);
  assert.ok(/^(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)$/.test(value), `a value: ${line}`);
  return { name, labels: labelsOf(labels), value: Number(value) };
}

/** A family that is being read. */
class OpenFamily implements Family {
  readonly samples: Sample[] = [];

  constructor(readonly name: string, readonly type: string, readonly help: string) {}

  add(line: string): void {
    const sample = sampleOf(line);
    const { name } = sample;
    const stem = this.type === "histogram" ? name.replace(/_(bucket|sum|count)$/, "") : name;
    assert.equal(stem, this.name, `in its family: ${line}`);
    this.samples.push(sample);
  }
}

/** The families in a text, by name. Fails for a text that breaks a rule of the format. */
export function familiesIn(text: string): Map<string, Family> {
  assert.ok(text.endsWith("\n"));
  const families = new Map<string, OpenFamily>();
  let help: [name: string, text: string] = ["", ""];
  let family = new OpenFamily("", "", "");
  for (const line of text.slice(0, -1).split("\n")) {
    const [, keyword, name, rest] = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line) ?? [];
    if (keyword === "HELP") help = [name, rest];
    else if (keyword === "TYPE") {
      assert.equal(help[0], name, "TYPE follows HELP");
      assert.ok(!families.has(name), `${name} is there twice`);
      family = new OpenFamily(name, rest, help[1]);
      families.set(name, family);
    } else family.add(line);
  }
  for (const each of families.values()) checkFamily(each);
  return families;
}

function checkFamily({ name, type, help, samples }: Family): void {
  assert.ok(help.length > 10, name);
  assert.ok(samples.length > 0, `${name} has samples`);
  assert.equal(name.endsWith("_total"), type === "counter", `${name} is a ${type}`);
  const keys = samples.map((sample) => `${sample.name} ${JSON.stringify(sample.labels)}`);
  assert.equal(new Set(keys).size, keys.length, `${name} has samples with the same labels`);
  if (type === "histogram") checkHistograms(name, samples);
}

function checkHistograms(name: string, samples: readonly Sample[]): void {
  const counts = samples.filter((sample) => sample.name === `${name}_count`);
  for (const { labels, value } of counts) {
    const isOf = (sample: Sample): boolean =>
      Object.entries(labels).every(([label, text]) => sample.labels[label] === text);
    const buckets = samples.filter((sample) => sample.name === `${name}_bucket` && isOf(sample));
    const bounds = buckets.map(({ labels }) => labels.le === "+Inf" ? Infinity : Number(labels.le));
    assert.deepEqual(bounds, bounds.toSorted((a, b) => a - b));
    assert.equal(bounds.at(-1), Infinity);
    buckets.forEach(({ value }, index) => {
      assert.ok(index === 0 || value >= buckets[index - 1].value, "buckets are cumulative");
    });
    assert.equal(buckets.at(-1)?.value, value);
    assert.equal(
      samples.filter(({ name: of, ...each }) => of === `${name}_sum` && isOf({ name: of, ...each }))
        .length,
      1,
    );
  }
}
