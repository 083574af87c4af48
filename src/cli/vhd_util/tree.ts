import { Errno, messageOf } from "../../../ffi/errno.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import type { Confinement } from "../../files/confinement.ts";
import { allocatedBlocks } from "../../vhd/format/bat.ts";
import { resolveParent, unresolvedParent } from "../../vhd/image/parent.ts";
import { openVhd, type VhdImage } from "../../vhd/image/image.ts";
import { plainText } from "../../log/plain_text.ts";
import { canonicalPath, fileNameOf, folderOf, normalizePath } from "../../files/paths.ts";
import { osStorage } from "../../files/storage.ts";
import { expandGlob } from "../glob.ts";
import { jsonText } from "../json.ts";
import { formatSize } from "../../pictures/sizes.ts";
import { treePage } from "../../pictures/chain_page.ts";
import { treePicture } from "../../pictures/chain_picture.ts";
import type { TreeDescription } from "../../pictures/descriptions.ts";
import { type CommandCall, expectedErrno, type Subcommand } from "../subcommands/command.ts";
import { deliverPicture, PICTURE_OPTIONS, pictureWish } from "../subcommands/picture_options.ts";

/** `vhd-util tree`. */
export const treeCommand: Subcommand = {
  name: "tree",
  summary: "Draw the chains of the images in a folder",
  synopsis: "[--json] [FOLDER | FILE…]\n[--svg | --html] [-o FILE] [FOLDER | FILE…]",
  usage: "options: [--json] [--svg] [--html] [-o file] [-h help] [folder or files]",
  options: [
    { name: "json", text: "print JSON: an array of images, each with its children" },
    ...PICTURE_OPTIONS,
  ],
  followsParents: true,
  example: `
$ vhd-util tree /images
/images
├─ disk.vhd         10 GiB   45.5 KiB  0% allocated  hidden
│  ├─ monday.vhd    10 GiB   2.1 MiB   0% allocated
│  └─ today.vhd     10 GiB   46.5 KiB  0% allocated
└─ lost.vhd         missing
   └─ orphan.vhd    10 GiB   46.5 KiB  0% allocated`,
  operands: true,

  run(call: CommandCall): number {
    const wish = pictureWish(call);
    const { paths, title } = imagesIn(call.operands);
    const roots = growForest(paths);
    if (call.has("json")) {
      call.output.print(jsonText(roots.map(toJson)));
    } else if (wish !== null) {
      const forest = { title, roots: roots.map((root) => describe(root, title)) };
      deliverPicture(call, wish, wish.kind === "svg" ? treePicture(forest) : treePage(forest));
    } else {
      const lines = roots.flatMap((root, index) =>
        draw(root, { indent: "", last: index === roots.length - 1, folder: title })
      );
      const width = Math.max(0, ...lines.map(({ name }) => [...name].length));
      call.output.printLine(`${title}`);
      for (const { name, facts } of lines) {
        const padding = " ".repeat(width - [...name].length);
        call.output.printLine(`${name}${padding}  ${facts}`.trimEnd());
      }
    }
    return 0;
  },
};

interface TreeNode {
  readonly path: string;
  /** Null for a missing parent and for a file that is not an image. */
  readonly facts: NodeFacts | null;
  /** Why there are no facts: `missing`, or an error message. */
  readonly problem: string | null;
  readonly children: TreeNode[];
}

interface NodeFacts {
  readonly type: string;
  readonly sizeBytes: number;
  readonly fileBytes: number;
  readonly allocatedBytes: number;
  readonly hidden: boolean;
  readonly parent: ParentFacts | null;
}

interface ParentFacts {
  readonly path: string;
  readonly raw: boolean;
  /** It lies outside the allowed folders and is not opened. */
  readonly refused: boolean;
  /** Where its own parents may be. */
  readonly confinement: Confinement;
}

function imagesIn(operands: readonly string[]): { paths: string[]; title: string } {
  const [first = "."] = operands;
  const isFolder = osStorage.status(first).kind === "directory";
  const folder = isFolder ? first.replace(/(.)\/+$/, "$1") : ".";
  if (!isFolder) return { paths: [...operands], title: workingFolder() };
  const paths = expandGlob("*.vhd", () => {}, folder);
  return { paths, title: osStorage.realPath(folder) };
}

function factsOf(image: VhdImage): NodeFacts {
  const { type, sizeBytes } = image;
  const allocatedBytes = type === "fixed"
    ? sizeBytes
    : Math.min(sizeBytes, allocatedBlocks(image.bat) * image.blockSizeBytes);
  return {
    type,
    sizeBytes,
    fileBytes: image.file.sizeBytes(),
    allocatedBytes,
    hidden: image.hidden,
    parent: image.parent === null ? null : { ...findAbove(image), raw: image.parent.raw },
  };
}

/** Where the parent is, or where it should be. */
function findAbove(image: VhdImage): Omit<ParentFacts, "raw"> {
  const { confinement } = image;
  try {
    const path = canonicalPath(osStorage, resolveParent(image, { anyUuid: true }));
    return { path, refused: false, confinement };
  } catch (error) {
    const refused = expectedErrno(error) === Errno.EPERM;
    const stored = unresolvedParent(image) ?? "unknown";
    const folder = folderOf(canonicalPath(osStorage, image.path));
    const path = normalizePath(osStorage, stored.startsWith("/") ? stored : `${folder}/${stored}`);
    return { path, refused, confinement };
  }
}

/** The node of a parent that was not among the images. */
function examineParent({ path, raw, refused, confinement }: ParentFacts): TreeNode {
  if (refused) {
    const problem = "not opened: outside the folders that parents may be in (--parent-root)";
    return { path, facts: null, children: [], problem };
  }
  return raw ? rawNode(path) : examine(path, confinement);
}

function examine(path: string, confinement?: Confinement): TreeNode {
  const none = { path, facts: null, children: [] };
  if (!osStorage.exists(path)) return { ...none, problem: "missing" };
  try {
    const image = openVhd(path, { lenient: true, ignoreDisabled: true, confinement });
    try {
      return { path, facts: factsOf(image), problem: null, children: [] };
    } finally {
      image.close();
    }
  } catch (error) {
    expectedErrno(error);
    return { ...none, problem: messageOf(error) };
  }
}

function rawNode(path: string): TreeNode {
  const none = { path, children: [] };
  if (!osStorage.exists(path)) return { ...none, facts: null, problem: "missing" };
  const file = osStorage.open(path, "read");
  const fileBytes = file.sizeBytes();
  file.close();
  const facts: NodeFacts = {
    type: "raw",
    sizeBytes: fileBytes,
    fileBytes,
    allocatedBytes: fileBytes,
    hidden: false,
    parent: null,
  };
  return { ...none, facts, problem: null };
}

/** Puts every image under its parent. Parents may be in other folders. */
function growForest(paths: readonly string[]): TreeNode[] {
  const nodes = new Map<string, TreeNode>();
  for (const path of paths) {
    const name = osStorage.exists(path) ? canonicalPath(osStorage, path) : path;
    nodes.set(name, examine(name));
  }
  const roots: TreeNode[] = [];
  // The loop appends parents to the map that it walks.
  for (const node of nodes.values()) {
    const parent = node.facts?.parent ?? null;
    if (parent === null) {
      roots.push(node);
      continue;
    }
    let above = nodes.get(parent.path);
    if (above === undefined) {
      above = examineParent(parent);
      nodes.set(parent.path, above);
    }
    if (isBelow(node, above)) roots.push({ ...node, problem: "its own ancestor" });
    else above.children.push(node);
  }
  sortNodes(roots);
  return roots;
}

/** Whether a node is among the descendants of another: to put it above would close a cycle. */
function isBelow(above: TreeNode, node: TreeNode): boolean {
  return node === above || above.children.some((child) => isBelow(child, node));
}

function sortNodes(nodes: TreeNode[]): void {
  nodes.sort((a, b) => (a.path < b.path ? -1 : 1));
  for (const node of nodes) sortNodes(node.children);
}

/** The name of an image that is shown: without the folder that all are in. */
function nameIn(folder: string, { path }: TreeNode): string {
  return folderOf(path) === folder ? fileNameOf(path) : path;
}

interface Line {
  readonly name: string;
  readonly facts: string;
}

function draw(
  node: TreeNode,
  { indent, last, folder }: { indent: string; last: boolean; folder: string },
): Line[] {
  const name = plainText(nameIn(folder, node));
  const below = `${indent}${last ? "   " : "│  "}`;
  return [
    { name: `${indent}${last ? "└─ " : "├─ "}${name}`, facts: factsText(node) },
    ...node.children.flatMap((child, index) =>
      draw(child, { indent: below, last: index === node.children.length - 1, folder })
    ),
  ];
}

function factsText({ facts, problem }: TreeNode): string {
  if (facts === null) return problem ?? "";
  const { sizeBytes, fileBytes, allocatedBytes, type, hidden } = facts;
  const percent = `${Math.floor((allocatedBytes / Math.max(1, sizeBytes)) * 100)}% allocated`;
  const notes = [type === "raw" || type === "fixed" ? type : "", hidden ? "hidden" : "", problem];
  return [
    formatSize(sizeBytes).padEnd(9),
    formatSize(fileBytes).padEnd(9),
    percent.padEnd(14),
    notes.filter(Boolean).join(", "),
  ].join(" ");
}

/** An image and those below it, for a drawing. */
function describe(node: TreeNode, folder: string): TreeDescription {
  const { facts, problem, children } = node;
  return {
    name: nameIn(folder, node),
    type: facts?.type ?? "",
    sizeBytes: facts?.sizeBytes ?? null,
    fileBytes: facts?.fileBytes ?? null,
    heldBytes: facts?.allocatedBytes ?? null,
    notes: facts?.hidden === true ? ["hidden"] : [],
    problem,
    children: children.map((child) => describe(child, folder)),
  };
}

function toJson({ path, facts, problem, children }: TreeNode): Record<string, unknown> {
  return {
    vhd: path,
    ...(facts === null ? {} : {
      type: facts.type,
      capacity: facts.sizeBytes,
      size: facts.fileBytes,
      allocated: facts.allocatedBytes,
      hidden: facts.hidden,
    }),
    ...(problem === null ? {} : { problem }),
    children: children.map(toJson),
  };
}
