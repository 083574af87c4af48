/** Markup of `blktap web`: what comes from outside stays text. */
import assert from "node:assert/strict";
import { escapeHtml, markup, picture } from "../../src/web/html.ts";
import { latencyText, numberText, shortName, timeText } from "../../src/web/format.ts";
import {
  HEAT_BOUNDS_US,
  heatColumn,
  heatRow,
  History,
  HISTORY_SAMPLES,
} from "../../src/web/history.ts";

Deno.test("web: names cannot become markup, neither in text nor in attributes", () => {
  const name = `</td><script>alert("1")</script>'&`;
  const escaped = "&lt;/td&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39;&amp;";
  assert.equal(markup`<p title="${name}">${name}</p>`.text, `<p title="${escaped}">${escaped}</p>`);
});

Deno.test("web: control characters and those that turn text round are shown as escapes", () => {
  assert.equal(escapeHtml("a\nb\u202ec\udce4"), "a\\nb\\u202ec\\xe4");
});

Deno.test("web: markup in markup is not escaped again; nothing is made of null and false", () => {
  const rows = ["<", 2].map((cell) => markup`<td>${cell}</td>`);
  assert.equal(markup`<tr>${rows}${null}${false}</tr>`.text, "<tr><td>&lt;</td><td>2</td></tr>");
  assert.equal(markup`${picture("<svg/>")}`.text, "<svg/>");
});

Deno.test("web: numbers and times in the form of tables", () => {
  assert.deepEqual([0, 3, 0.26, 9.96, 10, 1234.5, 1234567].map(numberText), [
    "0",
    "3",
    "0.3",
    "10",
    "10",
    "1\u2009235",
    "1\u2009234\u2009567",
  ]);
  assert.deepEqual([null, 0, 40, 400, 1500, 25_000, 2_500_000].map(latencyText), [
    "–",
    "0 µs",
    "40 µs",
    "0.40 ms",
    "1.5 ms",
    "25 ms",
    "2.5 s",
  ]);
  assert.equal(timeText(Date.UTC(2026, 0, 2, 3, 4, 5)), "03:04:05");
  assert.equal(shortName("vhd:/srv/a.vhd"), "a.vhd");
  assert.equal(shortName("nbd:"), "nbd:");
});

Deno.test("web: the heat map counts each request once, the slowest in the last row", () => {
  assert.equal(heatRow(1), 0);
  assert.equal(heatRow(32), 0);
  assert.equal(heatRow(33), 1);
  assert.equal(heatRow(2 ** 40), HEAT_BOUNDS_US.length);
  const buckets: [number, number][] = [[20, 1], [32, 2], [40, 3], [2 ** 30, 4]];
  const column = heatColumn({ requests: 10, sumUs: 0, highestUs: 0, buckets });
  assert.deepEqual([column[0], column[1], column.at(-1)], [3, 3, 4]);
  assert.equal(column.reduce((sum, count) => sum + count, 0), 10);
});

Deno.test("web: a history forgets the oldest", () => {
  const history = new History();
  for (let i = 0; i < HISTORY_SAMPLES + 5; i++) history.add([i], [i]);
  assert.equal(history.points.length, HISTORY_SAMPLES);
  assert.equal(history.points[0][0], 5);
  assert.equal(history.columns.length, HISTORY_SAMPLES);
});
