import { createHash } from "node:crypto";
import { Markup, markup, NOTHING } from "./markup.ts";
import { GROUNDS, PICTURE_STYLE } from "./style.ts";

/** A page that is one file: nothing of it comes from elsewhere. */
export interface PageContent {
  readonly title: string;
  readonly body: readonly Markup[];
  /** A program of the page, and what it works on; none without it. */
  readonly script?: { readonly program: string; readonly data: unknown };
}

/** Custom properties with the colours of a ground. */
function groundRules({ ink, soft, line, hollow, paper, wrong }: Record<string, string>): string {
  return `--ink:${ink};--soft:${soft};--line:${line};--hollow:${hollow};--paper:${paper};--wrong:${wrong}`;
}

const PAGE_STYLE = `:root{color-scheme:light;${groundRules(GROUNDS.light)}}
@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;${groundRules(GROUNDS.dark)}}}
body{margin:0 auto;padding:1.5rem;max-width:64rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.25rem 0 .75rem;max-width:48rem}
.soft{color:var(--soft)}
.wrong{color:var(--wrong)}
.wide{overflow-x:auto;max-width:100%}
.wide:focus-visible,button:focus-visible,input:focus-visible{outline:2px solid var(--ink);outline-offset:2px}
svg.picture{display:block;max-width:100%;height:auto;min-width:36rem}
svg.picture.closer{cursor:zoom-in}
table{border-collapse:collapse;font-size:.875rem;width:100%}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--hollow);vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.name{font-family:ui-monospace,monospace}
button,input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:.375rem;padding:.25rem .75rem;min-height:2.25rem}
button:not(:disabled){cursor:pointer}
button:disabled{color:var(--soft)}
.tools{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.5rem 0}
.tools input{width:9rem}
@media print{.tools{display:none}body{padding:0;max-width:none}svg.picture{min-width:0}h2{break-after:avoid}tr,svg{break-inside:avoid}}
`;

/** What allows an element of this content, and no other. */
function allowed(content: string): string {
  return `'sha256-${createHash("sha256").update(content).digest("base64")}'`;
}

/** A value as JSON that cannot end the element in which it is. */
function embeddedJson(value: unknown): Markup {
  return new Markup(JSON.stringify(value).replaceAll("<", "\\u003c"));
}

/** A page as text. */
export function htmlPage({ title, body, script }: PageContent): string {
  const style = PAGE_STYLE + PICTURE_STYLE;
  const scripts = script === undefined ? "'none'" : allowed(script.program);
  const policy = `default-src 'none'; style-src ${allowed(style)}; script-src ${scripts}; ` +
    "base-uri 'none'; form-action 'none'";
  const program = script === undefined ? NOTHING : markup`
<script type="application/json" id="data">${embeddedJson(script.data)}</script>
<script>${new Markup(script.program)}</script>`;
  return markup`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<style>${new Markup(style)}</style>
</head>
<body>
<main>
${body}
</main>${program}
</body>
</html>
`.text;
}

/** A table. Cells of columns whose heading begins with `#` are numbers, on the right. */
export function table(
  { caption, head, rows }: {
    caption: string;
    head: readonly string[];
    rows: readonly (readonly (string | Markup)[])[];
  },
): Markup {
  const isNumber = head.map((name) => name.startsWith("#"));
  const css = (column: number): string => isNumber[column] ? "number" : "text";
  const cells = head.map((name, column) =>
    markup`<th scope="col" class="${css(column)}">${name.replace(/^#/, "")}</th>`
  );
  const lines = rows.map((row) =>
    markup`<tr>${row.map((cell, column) => markup`<td class="${css(column)}">${cell}</td>`)}</tr>`
  );
  return markup`<div class="wide" tabindex="0" role="region" aria-label="${caption}"><table>
<caption>${caption}</caption>
<thead><tr>${cells}</tr></thead>
<tbody>${lines}</tbody>
</table></div>`;
}

/** A picture that is wider than a phone's screen. */
export function wide(label: string, picture: string): Markup {
  return markup`<div class="wide" tabindex="0" role="region" aria-label="${label}">${new Markup(
    picture,
  )}</div>`;
}
