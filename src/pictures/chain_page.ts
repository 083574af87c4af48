import { chainPicture, treePicture } from "./chain_picture.ts";
import type { LayerDescription, TreeDescription } from "./descriptions.ts";
import { type Markup, markup } from "./markup.ts";
import { htmlPage, table, wide } from "./page.ts";
import { formatShare, formatSize } from "./sizes.ts";

/** More images are counted, and not listed. */
const MOST_LISTED = 5000;

/** Images as a table. */
function imagesTable(layers: readonly LayerDescription[], count = layers.length): Markup {
  const more = count - layers.length;
  return table({
    caption: more > 0 ? `The first ${layers.length} of ${count} images` : "Images",
    head: ["Image", "Type", "#Disk", "#File", "#Holds", "#Share", "Notes"],
    rows: layers.map(({ name, type, sizeBytes, fileBytes, heldBytes, notes, problem }) => [
      markup`<span class="name">${name}</span>`,
      type,
      sizeBytes === null ? "" : formatSize(sizeBytes),
      fileBytes === null ? "" : formatSize(fileBytes),
      heldBytes === null ? "" : formatSize(heldBytes),
      heldBytes === null || sizeBytes === null ? "" : formatShare(heldBytes, sizeBytes),
      problem === null
        ? notes.join(", ")
        : markup`<span class="wrong">${[...notes, problem].join(", ")}</span>`,
    ]),
  });
}

/** A chain as a drawing and as a table, the topmost image first. */
export function chainSection(layers: readonly LayerDescription[]): Markup[] {
  return [
    wide("Chain of images", chainPicture({ title: "Chain of images", layers }, { id: "chain" })),
    imagesTable(layers.slice(0, MOST_LISTED), layers.length),
  ];
}

/** The images of trees in the order in which they are drawn. */
function listed(roots: readonly TreeDescription[]): [TreeDescription[], number] {
  const found: TreeDescription[] = [];
  const open = roots.toReversed();
  let count = 0;
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    if (count++ < MOST_LISTED) found.push(next);
    for (const child of next.children.toReversed()) open.push(child);
  }
  return [found, count];
}

/** A page with images and what is made on them. It is one file. */
export function treePage(
  { title, roots }: { title: string; roots: readonly TreeDescription[] },
): string {
  const [layers, count] = listed(roots);
  return htmlPage({
    title,
    body: [
      markup`<h1 class="name">${title}</h1>`,
      markup`<p class="soft">${
        count === 1 ? "One image" : `${`${count}`} images`
      }. Each is drawn under the one that it is made on.</p>`,
      wide("Tree of images", treePicture({ title, roots }, { id: "tree" })),
      markup`<h2>All images</h2>`,
      imagesTable(layers, count),
    ],
  });
}
