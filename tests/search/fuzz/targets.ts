import type { TargetEntry } from "./target.ts";

/** The targets. Each is a file in `targets/`. */
export const TARGETS: readonly TargetEntry[] = [];
