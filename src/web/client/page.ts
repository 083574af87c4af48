/// <reference lib="dom" />

/** The address of the control that has the focus, to find it again in new markup. */
function focusedLink(within: Element): string | null {
  const { activeElement } = document;
  return activeElement instanceof HTMLAnchorElement && within.contains(activeElement)
    ? activeElement.getAttribute("href")
    : null;
}

/** Fetches this page and takes parts of it, by their ids, in place of those that are shown. */
export async function renew(...ids: readonly string[]): Promise<void> {
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const id of ids) {
    const [old, now] = [document.getElementById(id), page.getElementById(id)];
    if (old === null || now === null) continue;
    const focused = focusedLink(old);
    old.replaceWith(document.adoptNode(now));
    if (focused === null) continue;
    now.querySelector<HTMLElement>(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }
}

/** Sets the text of a place, if it is another one. */
export function setText(place: Element | null, text: string): void {
  if (place !== null && place.textContent !== text) place.textContent = text;
}

/** Says what is wrong with the figures; null for nothing. */
export function showProblem(problem: string | null): void {
  const place = document.getElementById("problem");
  if (place === null) return;
  place.hidden = problem === null;
  setText(place, problem ?? "");
}

/** Makes a list of so many entries, each with its text. */
export function fillList(list: Element, texts: readonly string[]): HTMLLIElement[] {
  const entries = [...list.querySelectorAll("li")];
  while (entries.length > texts.length) entries.pop()?.remove();
  while (entries.length < texts.length) {
    const entry = document.createElement("li");
    list.append(entry);
    entries.push(entry);
  }
  entries.forEach((entry, index) => setText(entry, texts[index]));
  return entries;
}
