import type { ScannedImage } from "../../vhd/check/scan.ts";

/** An image as it is listed. */
export interface ListedImage {
  /** Path or volume name; canonical when chains are drawn. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly facts: ScannedImage;
}

/** An image and its place in the listing. */
export interface ArrangedImage {
  readonly image: ListedImage;
  /** 0 for one without a parent in the list. */
  readonly depth: number;
  /** Whether its parent, if it has one, is in the list. */
  readonly found: boolean;
}

/**
 * Sorts images by name, each child after its parent. Hidden images come first among those without a
 * parent, and last among siblings.
 */
export function arrangeImages(images: readonly ListedImage[]): ArrangedImage[] {
  const byName = new Map<string, ListedImage>();
  for (const image of images) if (!byName.has(image.name)) byName.set(image.name, image);
  const sorted = [...byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const children = new Map<string, ListedImage[]>();
  for (const image of sorted) {
    const { parent } = image.facts;
    if (parent === null || !byName.has(parent)) continue;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [image]);
    else siblings.push(image);
  }
  const arranged: ArrangedImage[] = [];
  const done = new Set<ListedImage>();
  const add = (image: ListedImage, depth: number): void => {
    if (done.has(image)) return;
    done.add(image);
    const { parent } = image.facts;
    arranged.push({ image, depth, found: parent !== null && byName.has(parent) });
    const below = children.get(image.name) ?? [];
    for (const child of below) if (child.facts.hidden === 0) add(child, depth + 1);
    for (const child of below) if (child.facts.hidden !== 0) add(child, depth + 1);
  };
  const isRoot = ({ facts }: ListedImage): boolean =>
    facts.parent === null || !byName.has(facts.parent);
  for (const image of sorted) if (isRoot(image) && image.facts.hidden !== 0) add(image, 0);
  for (const image of sorted) if (isRoot(image)) add(image, 0);
  // The rest are images whose parents form a cycle.
  for (const image of sorted) add(image, 0);
  return arranged;
}
