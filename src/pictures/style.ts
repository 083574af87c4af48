/** Colours of layers on a light and on a dark ground, the topmost first. They repeat in longer chains. */
const LAYER_COLOURS: readonly (readonly [light: string, dark: string])[] = [
  ["#0969da", "#58a6ff"],
  ["#bc4c00", "#f0883e"],
  ["#1a7f37", "#3fb950"],
  ["#8250df", "#bc8cff"],
  ["#a40e26", "#ff7b72"],
  ["#0f766e", "#39c5cf"],
  ["#9a3b88", "#f778ba"],
  ["#7d5a00", "#e3b341"],
];

/** How many colours of layers there are: the classes are `p0`, `p1` and so on. */
export const LAYER_COLOUR_COUNT = LAYER_COLOURS.length;

/** The class of a layer's colour: rules of {@linkcode PICTURE_STYLE}. */
export function layerClass(layer: number): string {
  return `p${layer % LAYER_COLOURS.length}`;
}

const LIGHT = 0;
const DARK = 1;

/** The rules of one ground. */
function rulesOf(
  ground: typeof LIGHT | typeof DARK,
  { ink, soft, line, hollow, paper, wrong }: Record<
    "ink" | "soft" | "line" | "hollow" | "paper" | "wrong",
    string
  >,
): string {
  return [
    `.picture text{fill:${ink}}`,
    `.picture .soft{fill:${soft}}`,
    `.picture .line{stroke:${line};fill:none}`,
    `.picture .hollow{fill:${hollow}}`,
    `.picture .paper{fill:${paper}}`,
    `.picture .wrong{fill:${wrong}}`,
    `.picture .mark{stroke:${ink};fill:none}`,
    ...LAYER_COLOURS.map((colours, layer) => `.picture .p${layer}{fill:${colours[ground]}}`),
  ].join("\n");
}

/** Colours of the ground and of texts, for pages with pictures. */
export const GROUNDS = {
  light: {
    ink: "#1f2328",
    soft: "#59636e",
    line: "#818b98",
    hollow: "#e6eaef",
    paper: "#ffffff",
    wrong: "#b3261e",
  },
  dark: {
    ink: "#e6edf3",
    soft: "#9da7b3",
    line: "#6e7681",
    hollow: "#2a313a",
    paper: "#0d1117",
    wrong: "#ff8a80",
  },
} as const;

/**
 * The style of all pictures. A picture that is a file of its own has it inside; a page with pictures has
 * it once, in its style sheet. Paper is light.
 */
export const PICTURE_STYLE = `.picture{font-family:system-ui,sans-serif;font-size:13px}
.picture .name{font-family:ui-monospace,monospace}
.picture .head{font-size:15px;font-weight:600}
.picture .small{font-size:12px}
${rulesOf(LIGHT, GROUNDS.light)}
@media screen and (prefers-color-scheme:dark){
${rulesOf(DARK, GROUNDS.dark)}
}
`;
