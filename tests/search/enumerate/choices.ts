/**
 * The choices of what survives of undecided changes.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import type { Kept, UndecidedChange } from "../../../src/testing/simulated_disk.ts";

const SECTOR_BYTES = 512;
/** With more undecided changes than this, not every subset is tried. */
export const MOST_UNDECIDED = 12;
const RANDOM_SUBSETS = 64;

/** What survives of each undecided change. */
export interface Choice {
  /** The same for choices that leave the same disk, as long as no sync ends. */
  readonly key: string;
  /** Whether all changes whose operations have ended survive: what a killed process leaves. */
  readonly isKill: boolean;
  readonly kind: "subset" | "sampled subset" | "torn";
  keep(index: number): Kept;
}

/** All choices, or those that there is time for. */
export function* choicesOf(list: readonly UndecidedChange[], random: Random): Generator<Choice> {
  const names = namesOf(list);
  const isWhole = list.length <= MOST_UNDECIDED;
  for (const kept of isWhole ? allSubsets(list.length) : someSubsets(list.length, random)) {
    if (list.some(({ needs }, i) => kept[i] === 1 && needs >= 0 && kept[needs] === 0)) continue;
    yield {
      key: names.filter((_, i) => kept[i] === 1).sort().join(),
      isKill: list.every(({ inFlight }, i) => inFlight || kept[i] === 1),
      kind: isWhole ? "subset" : "sampled subset",
      keep: (index) => kept[index] === 1,
    };
  }
  yield* tornChoices(list, names);
}

/** Each write of several sectors, the first or the last half of it, with all others or alone. */
function* tornChoices(
  list: readonly UndecidedChange[],
  names: readonly string[],
): Generator<Choice> {
  for (const [torn, { kind, lengthBytes }] of list.entries()) {
    const sectors = Math.ceil(lengthBytes / SECTOR_BYTES);
    if (kind !== "write" || sectors < 2) continue;
    for (const others of [true, false]) {
      for (const first of [true, false]) {
        const half = Math.ceil(sectors / 2);
        const rest = others ? names.filter((_, i) => i !== torn).sort().join() : "";
        yield {
          key: `${rest} ${first ? "first" : "last"} half of ${names[torn]}`,
          isKill: false,
          kind: "torn",
          // The length of the file is kept, or the half might lie behind its end.
          keep: (index) => {
            if (index !== torn) return others || list[index].kind === "length";
            return (sector) => (sector < half) === first;
          },
        };
      }
    }
  }
}

/** Names of the changes that stay the same while they are undecided. */
function namesOf(list: readonly UndecidedChange[]): string[] {
  const counts = new Map<string, number>();
  return list.map(({ kind, path, offsetBytes, lengthBytes }) => {
    const name = `${kind} ${path} ${offsetBytes}+${lengthBytes}`;
    const count = counts.get(name) ?? 0;
    counts.set(name, count + 1);
    return `${name} #${count}`;
  });
}

function* allSubsets(length: number): Generator<Uint8Array> {
  for (let mask = 0; mask < 1 << length; mask++) {
    yield Uint8Array.from({ length }, (_, i) => mask >> i & 1);
  }
}

/** At most two kept, at most two lost, and random ones. */
function* someSubsets(length: number, random: Random): Generator<Uint8Array> {
  for (const most of [0, 1]) {
    yield new Uint8Array(length).fill(most);
    for (let i = 0; i < length; i++) {
      for (let j = i; j < length; j++) {
        const subset = new Uint8Array(length).fill(most);
        subset[i] = 1 - most;
        subset[j] = 1 - most;
        yield subset;
      }
    }
  }
  for (let n = 0; n < RANDOM_SUBSETS; n++) {
    const share = random.next();
    yield Uint8Array.from({ length }, () => random.chance(share) ? 1 : 0);
  }
}
