import { formatSize } from "../pictures/sizes.ts";
import type { Fact } from "./facts.ts";
import { timeText } from "./format.ts";
import { type Html, markup, type Part } from "./html.ts";
import type { Monitor } from "./monitor.ts";
import type { FoundImage, ScanFacts } from "./work.ts";

/** The paths of all images that tapdisks have open. */
function servedPaths(monitor: Monitor): Set<string> {
  const paths = new Set<string>();
  for (const { sample } of monitor.disks.values()) {
    paths.add(sample.path);
    for (const { path } of sample.chain) paths.add(path);
  }
  return paths;
}

/** Whether there are disks whose images are not all known. */
function isUncertain({ last, disks }: Monitor): boolean {
  const hidden = [...disks.values()].some(({ sample }) =>
    sample.path !== "" && sample.chain.length === 0
  );
  return hidden || last === null || last.silent.length > 0;
}

function pathIn(name: string): string {
  return name.slice(name.indexOf(":") + 1);
}

function row({ name, fileBytes, roomBytes, facts, problem }: FoundImage): Html {
  const size = (bytes: number | null): string => bytes === null ? "–" : formatSize(bytes);
  return markup`
    <tr>
      <th scope="row" class="name">${name}</th>
      <td class="number">${size(fileBytes)}</td>
      <td class="number">${size(roomBytes)}</td>
      <td>${
    problem === null ? facts : markup`
        <span class="problem">${problem}</span>
      `
  }</td>
    </tr>
  `;
}

function tableOf(images: readonly FoundImage[]): Html {
  return markup`
    <div class="scroll" role="region" aria-label="Images not served" tabindex="0">
      <table>
        <thead>
          <tr>
            <th scope="col">Image</th>
            <th scope="col">File</th>
            <th scope="col">Room</th>
            <th scope="col">What it is</th>
          </tr>
        </thead>
        <tbody>${images.map(row)}</tbody>
      </table>
    </div>
  `;
}

function found({ value, timeMs }: { value: ScanFacts; timeMs: number }, monitor: Monitor): Html {
  const served = servedPaths(monitor);
  const images = value.images.filter(({ name, realPath }) =>
    !served.has(pathIn(name)) && (realPath === null || !served.has(realPath))
  );
  const count = `${images.length} image${images.length === 1 ? "" : "s"} not served`;
  return markup`
    <p>${count}, looked for at ${timeText(timeMs)}.${
    value.isCut &&
    " There are more: the scan looks at the first ones only."
  }</p>
    ${
    value.problems.map((problem) =>
      markup`
        <p class="problem">${problem}</p>
      `
    )
  }
    ${
    isUncertain(monitor) && markup`
      <p class="problem">
        Some disks are paused, or their tapdisks do not answer: images of theirs may be among these.
      </p>
    `
  }
    ${images.length > 0 && tableOf(images)}
  `;
}

/** The page with the images that nobody serves. */
export function imagesContent(
  scan: Fact<ScanFacts> | null,
  { folders, monitor }: { folders: readonly string[]; monitor: Monitor },
): Part {
  if (scan === null) {
    return markup`
      <p>
        No folder is looked into. Start this page with <code>--images FOLDER</code>, once for each folder.
      </p>
    `;
  }
  const where = markup`
    <p>Looked for in these folders, by the endings of names. Folders within them are left out.</p>
    <ul>${folders.map((folder) => markup`<li class="name">${folder}</li>`)}</ul>
  `;
  if ("isPending" in scan) {
    return markup`
      ${where}<p id="images" data-pending>
        The folders are being read, slowly, so that disks do not wait. Without a script, load this page
        again.
      </p>
    `;
  }
  if ("error" in scan) {
    return markup`
      ${where}<p class="problem">${scan.error}</p>
    `;
  }
  return markup`
    ${where}<div id="images">${found(scan, monitor)}</div>
  `;
}
