import { fileInName } from "../driver/layers.ts";
import { type Html, markup, type Part } from "./html.ts";
import { imageOf, pathOf, type WatchedDisk } from "./watched.ts";

/** Types of images on which a new image can be put as a file. */
const TYPES: readonly string[] = ["vhd", "qcow2", "aio"];
/** The longest name of a file (NAME_MAX). */
const MOST_NAME_BYTES = 255;

/** What a form says. */
export interface SnapshotWish {
  /** The name of a file in the folder of the image that is written now. */
  readonly name: string;
  /** Whether the new image gets the name of the one that is written now. */
  readonly rename: boolean;
}

/** The file of a disk's topmost image; null where a snapshot is none of a file. */
export function fileOf({ sample }: WatchedDisk): string | null {
  const file = fileInName(imageOf(sample));
  return file !== null && TYPES.includes(file.driver.type) ? file.path : null;
}

/** The place of the file that a wish names. */
export function placeOf(file: string, { name }: SnapshotWish): string {
  return file.slice(0, file.lastIndexOf("/") + 1) + name;
}

/** Takes a wish from a form; a text says what is wrong with it. */
export function wishOf(form: URLSearchParams): SnapshotWish | string {
  const name = form.get("name") ?? "";
  const bytes = new TextEncoder().encode(name).length;
  if (name === "") return "The file needs a name.";
  if (bytes > MOST_NAME_BYTES) return `The name is longer than ${MOST_NAME_BYTES} bytes.`;
  if (/[/\p{Cc}]/u.test(name) || name.startsWith(".")) {
    return "The name must be that of a file in the same folder, without / and not with a dot first.";
  }
  return { name, rename: form.get("rename") === "yes" };
}

/** What a token of a form is for: this disk, with this image, and this wish. */
export function purposeOf({ key, sample }: WatchedDisk, wish: SnapshotWish | null): string {
  return JSON.stringify(["snapshot", key, imageOf(sample), wish?.name, wish?.rename]);
}

/** A name that no file of before has. */
export function suggestedName(file: string, timeMs: number): string {
  const name = file.slice(file.lastIndexOf("/") + 1);
  const dot = name.lastIndexOf(".");
  const [stem, suffix] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ""];
  const time = new Date(timeMs).toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
  return `${stem}-${time}${suffix}`;
}

function back(disk: WatchedDisk): Html {
  return markup`
    <p><a href="${pathOf(disk)}">Back to the disk, without a change</a></p>
  `;
}

/** The first step: what is to be made. */
export function snapshotForm(
  disk: WatchedDisk,
  { wish, token, problem }: { wish: SnapshotWish; token: string; problem: string | null },
): Part {
  const file = fileOf(disk);
  if (file === null) {
    return markup`
      <p>
        A snapshot of this kind of image cannot be made here. "tap-ctl snapshot" can make one of an image
        on Ceph.
      </p>${back(disk)}
    `;
  }
  return markup`
    <p>
      The image that is written now keeps the data of that moment. A new image on top of it takes all
      writes from then on. Requests wait for a moment.
    </p>
    ${
    problem !== null && markup`
      <p class="problem" role="alert">${problem}</p>
    `
  }
    <form method="post" action="${pathOf(disk)}/snapshot" class="steps">
      <input type="hidden" name="step" value="check"><input
        type="hidden"
        name="token"
        value="${token}"
      >
      <p>
        <label for="name">Name of the file, in ${file.slice(0, file.lastIndexOf("/") + 1)}</label>
        <input
          id="name"
          name="name"
          required
          maxlength="${MOST_NAME_BYTES}"
          value="${wish.name}"
          autocomplete="off"
          spellcheck="false"
        >
      </p>
      <p>
        <input
          type="checkbox"
          id="rename"
          name="rename"
          value="yes"
          ${
    wish.rename
      ? markup`
              checked
            `
      : ""
  }
          aria-describedby="rename-note"
        >
        <label for="rename">The disk keeps the name of its image</label>
      </p>
      <p id="rename-note" class="note">
        With this, the data of now gets the name above, and the new image the name that the image has
        now: /etc/blktap/devices stays right. Without it, the new image gets the name above.
      </p>
      <p><button type="submit">Next: check</button></p>
    </form>
    ${back(disk)}
  `;
}

/** The second step: what will be done, and the button for it. */
export function confirmForm(
  disk: WatchedDisk,
  { wish, file, token }: { wish: SnapshotWish; file: string; token: string },
): Part {
  const place = placeOf(file, wish);
  const [kept, written] = wish.rename ? [place, file] : [file, place];
  return markup`
    <p>This will be done to minor ${disk.sample.minor} of process ${disk.sample.pid}:</p>
    <ul>
      ${
    wish.rename && markup`
        <li><span class="name">${file}</span> becomes <span class="name">${place}</span>.</li>
      `
  }
      <li><span class="name">${kept}</span> keeps the data of now, and is not written any more.</li>
      <li><span class="name">${written}</span> is made on top of it, and takes all writes.</li>
    </ul>
    <form method="post" action="${pathOf(disk)}/snapshot" class="steps">
      <input type="hidden" name="step" value="make"><input
        type="hidden"
        name="token"
        value="${token}"
      >
      <input type="hidden" name="name" value="${wish.name}">
      <input type="hidden" name="rename" value="${wish.rename ? "yes" : "no"}">
      <p><button type="submit" class="change">Make the snapshot</button></p>
    </form>
    ${back(disk)}
  `;
}
