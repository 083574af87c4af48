/** What the closer look works on. */
export interface CloserLookData {
  readonly sizeBytes: number;
  readonly unitBytes: number;
  /** Names of the images as they are shown, the topmost first. */
  readonly layers: readonly string[];
  /** How many colours there are. */
  readonly colours: number;
  /** Length in units and layer of each run, one after the other. */
  readonly runs: readonly number[];
}

/** The parts of an element that the closer look uses. */
export interface LookElement {
  textContent: string | null;
  hidden: boolean;
  disabled: boolean;
  value: string;
  setAttribute(name: string, value: string): void;
  append(...children: LookElement[]): void;
  replaceChildren(...children: LookElement[]): void;
  addEventListener(kind: string, listener: (event: LookEvent) => void): void;
  getBoundingClientRect(): { readonly left: number; readonly width: number };
}

/** The parts of an event that the closer look uses. */
export interface LookEvent {
  readonly clientX: number;
  preventDefault(): void;
}

/** The parts of a page's window that the closer look uses. */
export interface LookWindow {
  readonly document: {
    getElementById(id: string): LookElement | null;
    createElement(name: string): LookElement;
    createElementNS(namespace: string, name: string): LookElement;
  };
  readonly location: { hash: string };
  addEventListener(kind: string, listener: () => void): void;
}

/**
 * The program of a page with a map: it shows a part of the disk, down to single blocks. The part is in the
 * address, as `#at=BYTES&span=BYTES`, so that it can be bookmarked and the browser's back button works.
 *
 * The function becomes the text of the program. It must use nothing that is outside it.
 */
export function closerLook(view: LookWindow): void {
  const SVG = "http://www.w3.org/2000/svg";
  const [columns, columnPx, heightPx, left] = [256, 3.5, 96, 84];
  const mostRows = 200;
  const { document, location } = view;
  const element = (id: string): LookElement => {
    const found = document.getElementById(id);
    if (found === null) throw new Error(`There is no element ${id}`);
    return found;
  };
  const { sizeBytes, unitBytes, layers, colours, runs }: CloserLookData = JSON.parse(
    element("data").textContent ?? "",
  );
  const starts: number[] = [0];
  for (let at = 0; at < runs.length; at += 2) starts.push(starts[at / 2] + runs[at]);
  const leastSpan = Math.min(sizeBytes, Math.max(unitBytes, 4096) * 16);
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const sizeText = (bytes: number): string => {
    let unit = 0;
    while (unit < 5 && bytes >= 1024 ** (unit + 1)) unit++;
    return `${Number((bytes / 1024 ** unit).toFixed(2))} ${units[unit]}`;
  };
  const readSize = (text: string): number => {
    const [, digits = "", prefix = ""] = /^\s*([\d.]+)\s*([kmgtp]?)i?b?\s*$/i.exec(text) ?? [];
    return Number(digits || NaN) * 1024 ** " kmgtp".indexOf(prefix.toLowerCase() || " ");
  };
  /** The part that is shown: within the disk, and not smaller than can be told apart. */
  const part = (): { at: number; span: number } => {
    const given = /^#at=(\d{1,16})&span=(\d{1,16})$/.exec(location.hash);
    const span = Math.min(sizeBytes, Math.max(leastSpan, Number(given?.[2] ?? sizeBytes)));
    const at = Math.min(sizeBytes - span, Number(given?.[1] ?? 0));
    return { at: Math.floor(at / unitBytes) * unitBytes, span };
  };
  const show = (at: number, span: number): void => {
    const whole = Math.round(Math.min(sizeBytes, Math.max(leastSpan, span)));
    const start = Math.round(Math.min(sizeBytes - whole, Math.max(0, at)));
    location.hash = `#at=${start}&span=${whole}`;
  };
  /** The first run that ends behind an offset. */
  const runAt = (offset: number): number => {
    let [low, high] = [0, runs.length / 2];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (starts[middle + 1] * unitBytes <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const rect = (x: number, y: number, width: number, height: number, name: string): LookElement => {
    const shape = document.createElementNS(SVG, "rect");
    const all = { x, y, width, height };
    for (const [key, value] of Object.entries(all)) shape.setAttribute(key, `${value}`);
    shape.setAttribute("class", name);
    return shape;
  };
  /** Bytes that each image holds of each column. */
  const heldIn = (at: number, span: number): Map<number, number>[] => {
    const held = Array.from({ length: columns }, () => new Map<number, number>());
    const width = span / columns;
    for (let run = runAt(at); run < runs.length / 2; run++) {
      const from = Math.max(at, starts[run] * unitBytes);
      const to = Math.min(at + span, starts[run + 1] * unitBytes);
      if (from >= at + span) break;
      const layer = runs[run * 2 + 1];
      if (layer < 0) continue;
      const last = Math.min(columns - 1, Math.ceil((to - at) / width) - 1);
      for (let column = Math.floor((from - at) / width); column <= last; column++) {
        const bytes = Math.min(to, at + (column + 1) * width) - Math.max(from, at + column * width);
        held[column].set(layer, (held[column].get(layer) ?? 0) + bytes);
      }
    }
    return held;
  };
  const drawBars = (at: number, span: number): void => {
    const shapes = [rect(left, 0, columns * columnPx, heightPx, "hollow")];
    const stacks = heldIn(at, span).map((held) => {
      let y = heightPx;
      return [...held].sort(([a], [b]) => b - a).map(([layer, bytes]) => {
        const height = Math.max(1, heightPx * bytes / (span / columns));
        y = Math.max(0, y - height);
        return { y, height: Math.min(heightPx, height), layer };
      });
    });
    const signs = stacks.map((stack) => JSON.stringify(stack));
    for (let first = 0; first < columns;) {
      let end = first + 1;
      // Neighbours that are alike are drawn as one: there is no seam between them.
      while (end < columns && signs[end] === signs[first]) end++;
      for (const { y, height, layer } of stacks[first]) {
        const [x, width] = [left + first * columnPx, (end - first) * columnPx];
        shapes.push(rect(x, y, width, height, `p${layer % colours}`));
      }
      first = end;
    }
    element("bars").replaceChildren(...shapes);
    element("from").textContent = sizeText(at);
    element("to").textContent = sizeText(at + span);
  };
  const cell = (text: string, name: string): LookElement => {
    const made = document.createElement("td");
    made.textContent = text;
    made.setAttribute("class", name);
    return made;
  };
  /** Lists the runs of the part. Returns how many are not listed. */
  const listRuns = (at: number, span: number): number => {
    const rows: LookElement[] = [];
    let run = runAt(at);
    for (; run < runs.length / 2 && starts[run] * unitBytes < at + span; run++) {
      if (rows.length === mostRows) break;
      const from = starts[run] * unitBytes;
      const layer = runs[run * 2 + 1];
      const row = document.createElement("tr");
      row.append(
        cell(`${from}`, "number"),
        cell(`${Math.min(sizeBytes, starts[run + 1] * unitBytes) - from}`, "number"),
        cell(layer < 0 ? "no data" : layers[layer], layer < 0 ? "soft" : "name"),
      );
      rows.push(row);
    }
    element("runs").replaceChildren(...rows);
    let end = run;
    if (run < runs.length / 2) end = Math.max(run, runAt(at + span - 1) + 1);
    return end - run;
  };
  const draw = (): void => {
    const { at, span } = part();
    drawBars(at, span);
    const more = listRuns(at, span);
    element("shown").textContent = `Shows ${sizeText(at)} to ${sizeText(at + span)}; ` +
      `a column is ${sizeText(span / columns)}.` +
      (more > 0 ? ` ${more} more ranges are not listed: zoom in to see them.` : "");
    element("in").disabled = span <= leastSpan;
    element("out").disabled = span >= sizeBytes;
    element("whole").disabled = span >= sizeBytes;
    element("back").disabled = at <= 0;
    element("on").disabled = at + span >= sizeBytes;
  };
  const click = (id: string, act: (at: number, span: number) => void): void => {
    element(id).addEventListener("click", () => {
      const { at, span } = part();
      act(at, span);
    });
  };
  click("in", (at, span) => show(at + span * 3 / 8, span / 4));
  click("out", (at, span) => show(at - span * 3 / 2, span * 4));
  click("back", (at, span) => show(at - span / 2, span));
  click("on", (at, span) => show(at + span / 2, span));
  click("whole", () => show(0, sizeBytes));
  element("closer").addEventListener("click", ({ clientX }) => {
    const box = element("closer").getBoundingClientRect();
    const { at, span } = part();
    const x = (clientX - box.left) / box.width * (left + columns * columnPx + 16) - left;
    const hit = at + span * Math.min(1, Math.max(0, x / (columns * columnPx)));
    show(hit - span / 8, span / 4);
  });
  element("go").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = readSize(element("offset").value);
    const isOffset = wanted >= 0 && wanted < sizeBytes;
    element("refused").textContent = isOffset
      ? ""
      : `This is no offset on the disk: it must be below ${sizeText(sizeBytes)}, such as 1.5 GiB.`;
    if (isOffset) show(wanted, part().span === sizeBytes ? leastSpan * 16 : part().span);
  });
  view.addEventListener("hashchange", draw);
  element("look").hidden = false;
  draw();
}
