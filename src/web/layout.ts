import { type Html, markup, type Part } from "./html.ts";

/** What every page shows around its own content. */
export interface PageFrame {
  /** Names of the files of the page's script and style. */
  readonly assets: { readonly script: string; readonly style: string };
  /** Whether the page may change disks. */
  readonly allowsChanges: boolean;
  /** The name of this host. */
  readonly host: string;
  /** Why the figures are not new; null when they are. */
  readonly problem: string | null;
}

/** One page. */
export interface Page {
  readonly title: string;
  /** Which entry of the navigation it is. */
  readonly here?: "disks" | "images" | "events";
  readonly content: Part;
  /** What the script does on it. */
  readonly script?: { readonly stream: string };
}

function entry(here: Page["here"], name: Page["here"], path: string, text: string): Html {
  const current = here === name ? markup` aria-current="page"` : markup``;
  return markup`<li><a href="${path}"${current}>${text}</a></li>`;
}

/** A whole page. It can be read and used without its script. */
export function pageOf(frame: PageFrame, { title, here, content, script }: Page): Html {
  const stream = script === undefined ? markup`` : markup` data-stream="${script.stream}"`;
  return markup`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title} – blktap on ${frame.host}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/assets/${frame.assets.style}">
<script src="/assets/${frame.assets.script}" type="module"></script>
</head>
<body${stream}>
<a class="skip" href="#content">Skip to content</a>
<header>
<p class="brand">blktap <span>${frame.host}</span></p>
<nav aria-label="Pages"><ul>
${entry(here, "disks", "/", "Disks")}
${entry(here, "images", "/images", "Images not served")}
${entry(here, "events", "/events", "Events")}
</ul></nav>
<p class="mode">${frame.allowsChanges ? "Changes are allowed" : "Read-only"}</p>
</header>
<main id="content" tabindex="-1">
<h1>${title}</h1>
<p id="problem" role="status" class="problem"${frame.problem === null ? markup` hidden` : ""}>${
    frame.problem ?? ""
  }</p>
${content}
</main>
<footer><p>Figures are of the last second while a page is open. Times are UTC.</p></footer>
</body>
</html>
`;
}

/** A page that only says something. */
export function messagePage(frame: PageFrame, title: string, text: Part): Html {
  return pageOf(frame, { title, content: markup`<p>${text}</p>` });
}
